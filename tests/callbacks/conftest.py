"""Data of four batches, and a Trainer that shows nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from taskloom import Trainer

MakeTrainer = Callable[..., Trainer]
BATCHES, BATCH_SIZE = 4, 2


@pytest.fixture
def loader() -> DataLoader[Any]:
    """Four batches of two samples."""
    x = torch.randn(BATCHES * BATCH_SIZE, 3)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=BATCH_SIZE)


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Makes a Trainer on the CPU that prints and writes nothing unless told to."""

    def make(*callbacks: Any, **arguments: Any) -> Trainer:
        quiet = {
            "accelerator": "cpu",
            "logger": False,
            "checkpoint": False,
            "progress": False,
            "run_dir": tmp_path / "runs",
        }
        return Trainer(callbacks=list(callbacks), **{**quiet, **arguments})

    return make
