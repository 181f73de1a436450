"""The rows to learn from: a CSV file, or a well-known function when none is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from taskloom import DataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

ROWS = 2_000  # of the function
COLUMNS = 10


def read_csv(path: str | Path) -> Tensor:
    """Read a file of numbers with one line of column names.

    Returns:
        float32 [rows, columns]; the last column is what is to be predicted.

    Raises:
        ValueError: a cell is no number, or there are fewer than two columns.
    """
    table = np.genfromtxt(path, delimiter=",", skip_header=1, ndmin=2, dtype=np.float32)
    if table.shape[1] < 2 or not np.isfinite(table).all():
        raise ValueError(f"{path}: every cell must be a number, in two columns or more. Got: {table.shape[1]} columns.")
    return torch.from_numpy(table)


def friedman(rows: int, seed: int) -> Tensor:
    """Draw rows of Friedman's first benchmark (1991, Annals of Statistics 19), a common test of regression.

    Five of the ten inputs matter; the noise has variance 1, so that no model explains more than 96 % of the variance.

    Returns:
        float32 [rows, 11]; the last column is what is to be predicted.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, COLUMNS, generator=generator)
    y = 10 * (torch.pi * x[:, 0] * x[:, 1]).sin() + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]
    y += torch.randn(rows, generator=generator)
    return torch.cat([x, y.unsqueeze(1)], dim=1)


class TableData(DataModule):
    """A table in three parts, 70 / 15 / 15 %, standardised with the mean and deviation of the training part's columns.

    Args:
        path: a CSV file with a line of names; the last column is to be predicted. None draws Friedman's function.
        batch_size: rows per device and micro-batch.
        seed: decides which row goes where.
    """

    def __init__(self, path: str | None = None, batch_size: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.parts: list[TensorDataset] = []

    @property
    def num_features(self) -> int:
        """Number of columns that are not the target; the configuration links it to the task."""
        if self.hparams.path is None:
            return COLUMNS
        with Path(self.hparams.path).open() as file:
            return file.readline().count(",")

    def setup(self, stage: str) -> None:
        """Read, split and standardise the table, the same way for every stage."""
        path, seed = self.hparams.path, self.hparams.seed
        table = friedman(ROWS, seed) if path is None else read_csv(path)
        order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
        held_out = max(1, round(0.15 * len(table)))
        parts = table[order].split([len(table) - 2 * held_out, held_out, held_out])
        mean, deviation = parts[0].mean(dim=0), parts[0].std(dim=0).clamp_min(1e-8)
        standard = [(part - mean) / deviation for part in parts]
        self.parts = [TensorDataset(part[:, :-1], part[:, -1]) for part in standard]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=self.hparams.batch_size)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=self.hparams.batch_size)

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=self.hparams.batch_size)
