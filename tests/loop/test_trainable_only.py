"""Checkpoints that leave out what is not trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loop.tiny import equal, loader, quiet, weights
from torch import nn
from torch.nn import functional as F

from taskloom import CheckpointPolicy, RestorePolicy, TaskModule, Trainer
from taskloom.checkpoint import open_checkpoint
from taskloom.checkpoint.left_out import TensorHashes, tensor_hash
from taskloom.core.errors import CheckpointError, TaskloomWarning

SMALL = CheckpointPolicy(trainable_only=True, fsync=False)


class Adapted(TaskModule):
    """A frozen base, with batch statistics that go on, under a small adapter."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.base = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.1))
        for parameter in self.base.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.base.requires_grad_(False)
        self.adapter = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self.adapter(self.base(batch[0])), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((each for each in self.parameters() if each.requires_grad), lr=0.1)


def fit(task: TaskModule, folder: Path, steps: int, policy: Any = SMALL, **more: Any) -> Trainer:
    torch.manual_seed(3)
    trainer = quiet(max_steps=steps, checkpoint=policy, run_dir=folder)
    trainer.fit(task, loader(16, 4, shuffle=True), **more)
    return trainer


@pytest.mark.holds("R38", "CK-21")
def test_training_resumes_exactly_beside_the_same_base(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, first, second = Adapted(), Adapted(), Adapted()
    first.load_state_dict(task.state_dict())
    fit(task, tmp_path / "whole", 6)
    path = fit(first, tmp_path, 3).last_checkpoint
    with open_checkpoint(path) as reader:
        assert set(reader.model_names()) == {
            "adapter.weight", "adapter.bias",
            "base.1.running_mean", "base.1.running_var", "base.1.num_batches_tracked",
        }  # fmt: skip
        assert reader.state["left_out"]["tensors"]["base.0.weight"] == tensor_hash(first.base[0].weight)
    fit(second, tmp_path, 6, ckpt_path=path)
    assert equal(weights(task), weights(second))
    assert equal(list(task.buffers()), list(second.buffers()))
    quiet().validate(Adapted(), loader(16, 4), ckpt_path=path, verbose=False)
    loaded = Adapted.load_from_checkpoint(path)
    assert equal(weights(loaded), weights(first))


@pytest.mark.holds("R38", "CK-21")
def test_another_base_is_refused_by_name(tmp_path: Path) -> None:
    path = fit(Adapted(), tmp_path, 3).last_checkpoint
    other = Adapted()
    with torch.no_grad():
        other.base[0].bias[0] += 1e-6
    before = weights(other)
    with pytest.raises(CheckpointError, match=r"1 of the 4 tensors beside it are not those .*: base\.0\.bias\. Fix"):
        fit(other, tmp_path, 6, ckpt_path=path)
    with pytest.raises(CheckpointError, match=r"base\.0\.bias"):
        quiet().test(other, loader(16, 4), ckpt_path=path)
    assert equal(weights(other), before)
    with pytest.raises(CheckpointError, match="4 of the 4 tensors"):
        Adapted.load_from_checkpoint(path, seed=8)
    fit(other, tmp_path, 6, ckpt_path=path, restore=RestorePolicy(missing="allow"))
    with pytest.warns(TaskloomWarning, match=r"base\.0\.bias"):
        fit(other, tmp_path, 6, ckpt_path=path, restore=RestorePolicy(missing="warn"))


@pytest.mark.holds("CK-21")
def test_a_policy_that_keeps_everything_shares_its_checkpoint(tmp_path: Path) -> None:
    whole = CheckpointPolicy(every="2 steps", keep_last=-1, fsync=False)
    trainer = fit(Adapted(), tmp_path, 3, [CheckpointPolicy(trainable_only=True, every="1 step", keep_last=-1), whole])
    held = {}
    for path in trainer.last_checkpoint.parent.glob("step-*"):
        with open_checkpoint(path) as reader:
            held[int(path.name[-1])] = "base.0.weight" in reader.model_names()
    assert held == {1: False, 2: True, 3: False}


@pytest.mark.holds("CK-10", "CK-21")
def test_weights_only_without_the_base(tmp_path: Path) -> None:
    policy = CheckpointPolicy(trainable_only=True, weights_only=True, fsync=False)
    task = Adapted()
    path = fit(task, tmp_path, 3, policy).last_checkpoint
    with open_checkpoint(path) as reader:
        assert reader.kinds == ["model"]
        assert "left_out" in reader.state
    assert equal(weights(Adapted.load_from_checkpoint(path)), weights(task))


def test_only_changed_tensors_are_hashed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Any] = []
    real = tensor_hash
    monkeypatch.setattr(
        "taskloom.checkpoint.left_out.tensor_hash", lambda tensor: hashed.append(tensor) or real(tensor)
    )
    hashes, one, other = TensorHashes(), torch.ones(2), torch.ones(2)
    first = hashes.of([("one", one), ("other", other)])
    assert first["one"] == first["other"]
    other.add_(1)
    assert hashes.of([("one", one), ("other", other)])["other"] != first["other"]
    assert len(hashed) == 3
    assert tensor_hash(torch.ones(2, 1)) != tensor_hash(torch.ones(1, 2)) != tensor_hash(torch.ones(2).double())
