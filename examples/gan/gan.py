"""A generative adversarial network on handwritten digits: two optimizers that take turns, in manual optimisation.

The generator turns noise into 8x8 images, the discriminator tells them from real ones, and each learns from the
other's mistakes (Goodfellow et al. 2014, arXiv:1406.2661, with the non-saturating loss of its section 3). The real
images are the 1,797 digits that scikit-learn brings along.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split

from taskloom import DataModule, TaskModule
from taskloom.core.errors import missing_package

PIXELS = 8 * 8
GREYS = " .:-=+*#%@"


def load_images() -> TensorDataset:
    """Read all images, each float32 [64], -1 (white) to 1 (black).

    Raises:
        ImportError: scikit-learn, which brings the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise missing_package("The digits data", "scikit-learn", "examples") from missing
    return TensorDataset(torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1)


def tile(images: Tensor, columns: int) -> Tensor:
    """Lay images [N, 64] out as one picture, uint8 [height, width], 0 black to 255 white, white lines between them."""
    shades = ((1 - images.clamp(-1, 1)) / 2 * 255).round().to(torch.uint8).view(-1, 8, 8)
    framed = F.pad(shades, (1, 1, 1, 1), value=255)
    rows = [torch.cat(list(row), dim=1) for row in framed.split(columns) if len(row) == columns]
    return torch.cat(rows, dim=0)


def write_png(path: Path, picture: Tensor, scale: int = 4) -> None:
    """Write a grey picture, uint8 [height, width], `scale` times as large.

    The format is four chunks (ISO/IEC 15948: signature, IHDR, IDAT, IEND), too little to need an imaging library.
    """
    picture = picture.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    height, width = picture.shape
    lines = b"".join(b"\0" + bytes(line.tolist()) for line in picture)  # each line begins with its filter, 0 for none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits of grey
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def as_text(images: Tensor) -> str:
    """Draw images [N, 64] side by side with characters."""
    levels = ((images.clamp(-1, 1) + 1) / 2 * (len(GREYS) - 1)).round().int().view(-1, 8, 8)
    lines = levels.permute(1, 0, 2).tolist()
    return "\n".join("  ".join("".join(GREYS[level] * 2 for level in image) for image in line) for line in lines)


class DigitImages(DataModule):
    """Images without their labels: 1,527 to learn from and 270 to compare with.

    Args:
        batch_size: images per device and micro-batch.
        split_seed: decides which image goes where.
    """

    def __init__(self, batch_size: int = 64, split_seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.splits: list[Subset[Any]] = []

    def setup(self, stage: str) -> None:
        """Read the images and split them, the same way for every stage."""
        generator = torch.Generator().manual_seed(self.hparams.split_seed)
        self.splits = random_split(load_images(), [1527, 270], generator=generator)

    def train_dataloader(self) -> DataLoader[Any]:
        # A short last batch would give batch normalisation a different noise level, so it is left out.
        return DataLoader(self.splits[0], batch_size=self.hparams.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.splits[1], batch_size=len(self.splits[1]))


class GAN(TaskModule):
    """Generator and discriminator, two MLPs that train in turns.

    A picture of what the generator makes of always the same noise is written after each validation.

    Args:
        noise: numbers the generator starts from.
        hidden: width of the hidden layers.
        lr: learning rate of both Adam optimizers.
        beta1: their first moment's decay; 0.5 keeps the game from oscillating (Radford et al. 2016, arXiv:1511.06434).
    """

    shown_noise: Tensor

    def __init__(self, noise: int = 32, hidden: int = 256, lr: float = 4e-4, beta1: float = 0.5) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(noise, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, PIXELS),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Linear(PIXELS, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2),
            nn.Dropout(0.3),
            nn.Linear(hidden, 1),
        )
        self.register_buffer("shown_noise", torch.randn(32, noise))

    def forward(self, noise: Tensor) -> Tensor:
        """Return images [N, 64] for noise [N, noise]."""
        images: Tensor = self.generator(noise)
        return images

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        generator_optimizer, discriminator_optimizer = self.optimizers()
        fake = self(torch.randn(len(real), self.hparams.noise, device=self.device))

        # Its turn: only the generator's parameters ask for gradients, those of the discriminator are left alone.
        with self.toggled_optimizer(generator_optimizer):
            fooled = F.softplus(-self.discriminator(fake)).mean()
            self._update(generator_optimizer, fooled)

        with self.toggled_optimizer(discriminator_optimizer):
            missed = F.softplus(-self.discriminator(real)).mean()
            believed = F.softplus(self.discriminator(fake.detach())).mean()
            self._update(discriminator_optimizer, (missed + believed) / 2)

        self.log("train/generator_loss", fooled, prog_bar=True)
        self.log("train/discriminator_loss", (missed + believed) / 2, prog_bar=True)

    def _update(self, optimizer: Optimizer, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        (real,) = batch
        fake = self(torch.randn(len(real), self.hparams.noise, device=self.device))
        # Energy distance (Székely & Rizzo 2013, J. Stat. Plan. Inference 143): 0 only when both are distributed alike.
        distance = 2 * torch.cdist(real, fake).mean() - torch.pdist(real).mean() - torch.pdist(fake).mean()
        self.log("val/energy_distance", distance, prog_bar=True, batch_size=len(real))

    def on_validation_epoch_end(self) -> None:
        if self._pictures is not None and not self.trainer.sanity_checking:
            picture = tile(self(self.shown_noise), columns=8)
            write_png(self._pictures / f"step-{self.global_step:08d}.png", picture)

    def on_fit_end(self) -> None:
        self.eval()
        with torch.no_grad():
            self.print(as_text(self(self.shown_noise[:6])))
        if self._pictures is not None:
            self.print(f"\nPictures: {self._pictures}")

    @property
    def _pictures(self) -> Path | None:
        """Where pictures go: nowhere in a run that writes nothing (`--fast_dev_run`) and on other ranks than 0."""
        folder = self.trainer.run_folder
        return folder / "samples" if folder is not None and self.trainer.is_global_zero else None

    def configure_optimizers(self) -> list[Optimizer]:
        betas = (self.hparams.beta1, 0.999)
        return [
            torch.optim.Adam(self.generator.parameters(), lr=self.hparams.lr, betas=betas),
            torch.optim.Adam(self.discriminator.parameters(), lr=self.hparams.lr, betas=betas),
        ]
