"""What loading a checkpoint holds in memory beside the state that it fills."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from loop.tiny import quiet
from torch import nn
from torch.utils.data import DataLoader

from taskloom import CheckpointPolicy, TaskModule
from taskloom.checkpoint import CheckpointReader


@pytest.mark.holds("R11")
def test_loading_holds_the_state_and_one_tensor(tmp_path, monkeypatch):
    """However many tensors there are, one that was read is let go of before the next is."""

    def fit(**more: Any) -> Any:
        layers = [nn.Linear(4, 4) for _ in range(20)]
        trainer = quiet(max_steps=1 if not more else 2, checkpoint=CheckpointPolicy(fsync=False), run_dir=tmp_path)
        return trainer.fit(Stack(layers), DataLoader(torch.ones(4, 4), batch_size=2), **more)

    class Stack(TaskModule):
        def __init__(self, layers: list[nn.Module]) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.layers(batch).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters())

    alive: list[weakref.ref[torch.Tensor]] = []
    most, read = 0, CheckpointReader.tensor

    def counted(reader: CheckpointReader, kind: str, name: str) -> torch.Tensor:
        nonlocal most
        tensor = read(reader, kind, name)
        alive[:] = [each for each in alive if each() is not None]
        alive.append(weakref.ref(tensor))
        most = max(most, len(alive))
        return tensor

    saved = fit().last_checkpoint
    monkeypatch.setattr(CheckpointReader, "tensor", counted)
    fit(ckpt_path=saved)
    assert 1 <= most <= 2, "the one that was just copied is let go of when the next has been read"
