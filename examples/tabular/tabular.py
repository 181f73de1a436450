"""Tell malignant from benign tumours with torchmetrics objects that are logged as they are.

The data are scikit-learn's bundled "Breast Cancer Wisconsin (Diagnostic)" set (Street, Wolberg & Mangasarian 1993;
https://archive.ics.uci.edu/dataset/17): 569 tumours, 30 measurements of cell nuclei each, 37 % malignant.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryF1Score, BinaryRecall

from taskloom import DataModule, Loss, TaskModule
from taskloom.core.errors import missing_package

FEATURES = 30
MEAN_RADIUS = 0  # the first measurement
SLICES = ("small", "large")


def load_tumours() -> tuple[Tensor, Tensor]:
    """Read the table.

    Returns:
        Measurements (float32 [569, 30]) and labels (float32 [569], 1 for malignant).

    Raises:
        ImportError: scikit-learn, which brings the table, is not installed.
    """
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError as missing:
        raise missing_package("The breast cancer data", "scikit-learn", "examples") from missing
    bunch = load_breast_cancer()
    # scikit-learn codes malignant as 0; what the model looks for is the positive class here.
    return torch.tensor(bunch.data, dtype=torch.float32), 1 - torch.tensor(bunch.target, dtype=torch.float32)


class TumourData(DataModule):
    """The table in three parts, 60 / 20 / 20 %, standardised with the mean and deviation of the training part.

    Validation has two loaders, `small` and `large` tumours (by the training part's median radius), because a model that
    is right on average can still miss the small ones.

    Args:
        batch_size: tumours per device and micro-batch.
        split_seed: decides which tumour goes where.
    """

    def __init__(self, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.parts: dict[str, TensorDataset] = {}

    def setup(self, stage: str) -> None:
        """Read, split and standardise the table, the same way for every stage."""
        features, labels = load_tumours()
        generator = torch.Generator().manual_seed(self.hparams.split_seed)
        order = torch.randperm(len(features), generator=generator)
        train, val, test = order.split([341, 114, 114])
        mean, deviation = features[train].mean(dim=0), features[train].std(dim=0)
        standard = (features - mean) / deviation
        large = features[:, MEAN_RADIUS] > features[train, MEAN_RADIUS].median()
        chosen = {"train": train, "small": val[~large[val]], "large": val[large[val]], "test": test}
        self.parts = {name: TensorDataset(standard[rows], labels[rows]) for name, rows in chosen.items()}

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.parts["train"], shuffle=True)

    def val_dataloader(self) -> dict[str, DataLoader[Any]]:
        return {name: self._loader(self.parts[name]) for name in SLICES}

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.parts["test"])

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.parts["test"])

    def _loader(self, dataset: Dataset[Any], *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(dataset, batch_size=self.hparams.batch_size, shuffle=shuffle)


class Tumours(TaskModule):
    """A binary classifier of table rows.

    Args:
        hidden: width of the hidden layer.
        dropout: probability of leaving out a hidden feature.
        lr: learning rate of AdamW.
        weight_decay: of AdamW, decoupled.
        malignant_weight: how much more a malignant tumour counts in the loss; above 1 trades precision for recall.
    """

    def __init__(
        self,
        hidden: int = 32,
        dropout: float = 0.2,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        malignant_weight: float = 1.5,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )
        # One metric object per loader, and two that see all of them. The binned curve keeps its memory constant.
        self.val_auroc = nn.ModuleList(BinaryAUROC(thresholds=200) for _ in SLICES)
        self.val_auroc_all, self.val_loss_all = BinaryAUROC(thresholds=200), MeanMetric()
        self.test_metrics = MetricCollection(
            {"accuracy": BinaryAccuracy(), "recall": BinaryRecall(), "f1": BinaryF1Score(), "auroc": BinaryAUROC()},
            prefix="test/",
        )

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits [N] of standardised rows [N, 30]."""
        logits: Tensor = self.net(rows).squeeze(-1)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Loss:
        loss = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        rows, labels = batch
        logits = self(rows)
        probabilities, loss = logits.sigmoid(), F.binary_cross_entropy_with_logits(logits, labels)
        auroc = self.val_auroc[dataloader_idx]
        auroc.update(probabilities, labels.int())
        self.val_auroc_all.update(probabilities, labels.int())
        self.val_loss_all.update(loss, weight=len(rows))
        self.log("val/auroc", auroc)  # one value per loader: val/auroc/small and val/auroc/large

    def on_validation_epoch_end(self) -> None:
        self.log("val/auroc_all", self.val_auroc_all, prog_bar=True)
        self.log("val/loss_all", self.val_loss_all)

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        rows, labels = batch
        self.test_metrics.update(self(rows).sigmoid(), labels.int())
        self.log_dict(self.test_metrics)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Return each row's probability of being malignant, beside what it was."""
        rows, labels = batch
        return {"probability": self(rows).sigmoid(), "malignant": labels}

    def _loss(self, batch: list[Tensor]) -> Loss:
        """Binary cross-entropy, each row weighted by its class; the weights' sum is what it is the mean over."""
        rows, labels = batch
        weights = 1 + (self.hparams.malignant_weight - 1) * labels
        total = F.binary_cross_entropy_with_logits(self(rows), labels, weight=weights, reduction="sum")
        return Loss(total, weights.sum())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
