"""Recognise handwritten digits: the smallest complete taskloom project on real data.

The data are the 1,797 8x8 images that scikit-learn brings along (the test half of the UCI "Optical Recognition of
Handwritten Digits" set, https://archive.ics.uci.edu/dataset/80), so nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, random_split

from taskloom import DataModule, TaskModule
from taskloom.core.errors import missing_package

Batch = tuple[Tensor, Tensor]


def load_images() -> TensorDataset:
    """Read all images.

    Returns:
        Pairs of an image (float32 [1, 8, 8], 0 white to 1 black) and its digit (int64), in scikit-learn's order.

    Raises:
        ImportError: scikit-learn, which brings the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise missing_package("The digits data", "scikit-learn", "examples") from missing
    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16  # the set counts 16 grey levels
    return TensorDataset(images, torch.tensor(bunch.target, dtype=torch.int64))


class DigitsData(DataModule):
    """The images, split into 1,257 for training, 270 for validation and 270 for testing.

    Args:
        batch_size: images per device and micro-batch.
        split_seed: decides which image goes where; the same seed gives the same split everywhere.
        num_workers: processes that load; the images are in memory, so none is fastest.
    """

    def __init__(self, batch_size: int = 64, split_seed: int = 0, num_workers: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.splits: list[Subset[Any]] = []

    def setup(self, stage: str) -> None:
        """Read the images and split them, the same way for every stage."""
        generator = torch.Generator().manual_seed(self.hparams.split_seed)
        self.splits = random_split(load_images(), [1257, 270, 270], generator=generator)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.splits[0], shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.splits[1])

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.splits[2])

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.splits[2])

    def _loader(self, dataset: Dataset[Any], *, shuffle: bool = False) -> DataLoader[Any]:
        workers: int = self.hparams.num_workers
        return DataLoader(
            dataset,
            batch_size=self.hparams.batch_size,
            shuffle=shuffle,
            num_workers=workers,
            persistent_workers=workers > 0,
        )


class Digits(TaskModule):
    """A small convolutional classifier.

    Args:
        width: channels of the first convolutions; the last has twice as many.
        dropout: probability of leaving out a feature before the last layer.
        lr: learning rate of AdamW. It falls to 0.3 of itself whenever validation accuracy stops improving.
        weight_decay: of AdamW, decoupled.
    """

    def __init__(
        self,
        width: int = 24,
        dropout: float = 0.2,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            *self._convolution(1, width),
            *self._convolution(width, width),
            nn.MaxPool2d(2),
            *self._convolution(width, 2 * width),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * 2 * 2, 10),
        )
        self.example_input_array = torch.zeros(1, 1, 8, 8)

    @staticmethod
    def _convolution(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
        convolution = nn.Conv2d(channels_in, channels_out, kernel_size=3, padding=1, bias=False)
        return convolution, nn.BatchNorm2d(channels_out), nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, 10] of images [N, 1, 8, 8]."""
        logits: Tensor = self.net(images)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, digits = batch
        loss = F.cross_entropy(self(images), digits)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the most likely digit of each image, int64 [N]."""
        return self(batch[0]).argmax(dim=1)

    def _evaluate(self, batch: Batch, stage: str) -> None:
        images, digits = batch
        logits = self(images)
        correct = (logits.argmax(dim=1) == digits).float().mean()
        # The batch size is the weight of a batch in the epoch's mean, so a short last batch counts for what it holds.
        self.log(f"{stage}/loss", F.cross_entropy(logits, digits), batch_size=len(digits))
        self.log(f"{stage}/accuracy", correct, prog_bar=True, batch_size=len(digits))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.3, patience=3)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "epoch", "monitor": "val/accuracy"},
        }
