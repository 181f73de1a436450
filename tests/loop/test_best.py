"""Saving by what was measured: only the best, after the validation, and back in the task when training ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.test_checkpoints import Measured, saved_steps
from loop.tiny import At, equal, loader, quiet, weights
from safetensors.torch import load_file

from taskloom import CheckpointError, CheckpointPolicy, Trainer
from taskloom.callbacks import EMAWeightAveraging
from taskloom.checkpoint import open_checkpoint
from taskloom.core.errors import ConfigError, TaskloomWarning


def policy(**more: Any) -> CheckpointPolicy:
    return CheckpointPolicy(**{"monitor": "score", "mode": "max", "fsync": False, "load_best_at_end": True, **more})


def train(folder: Path, *values: float, callbacks: Any = (), **more: Any) -> tuple[Trainer, Measured]:
    """One epoch of one step per value, which its validation measures."""
    torch.manual_seed(3)
    task = Measured(*values)
    trainer = quiet(*callbacks, max_epochs=len(values), checkpoint=policy(**more), run_dir=folder)
    trainer.fit(task, loader(2), loader(2))
    return trainer, task


def stored(checkpoint: Path) -> list[torch.Tensor]:
    tensors = load_file(checkpoint / "model/model-00001-of-00001.safetensors")
    return [tensors["layer.weight"], tensors["layer.bias"]]


@pytest.mark.holds("CK-05")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_fit_ends_with_the_weights_of_the_best_checkpoint(tmp_path, asynchronous):
    after = []
    look = At(on_fit_end=lambda _, task: after.extend(weights(task)))
    trainer, task = train(tmp_path, 1.0, 9.0, 5.0, callbacks=[look], asynchronous=asynchronous)
    assert (trainer.best_checkpoint.name, trainer.last_checkpoint.name) == ("step-00000002", "step-00000003")
    assert equal(weights(task), stored(trainer.best_checkpoint))
    assert equal(after, weights(task))
    assert not equal(weights(task), stored(trainer.last_checkpoint))


def test_without_it_the_weights_of_the_last_step_stay(tmp_path):
    trainer, task = train(tmp_path, 1.0, 9.0, 5.0, load_best_at_end=False)
    assert equal(weights(task), stored(trainer.last_checkpoint))


@pytest.mark.holds("CK-05")
def test_the_best_of_an_earlier_process_counts(tmp_path):
    trainer, _ = train(tmp_path, 9.0, 1.0)
    task = Measured(2.0)
    again = quiet(max_epochs=3, checkpoint=policy(), run_dir=tmp_path)
    again.fit(task, loader(2), loader(2), ckpt_path=trainer.last_checkpoint)
    assert again.best_checkpoint.name == "step-00000001"
    assert equal(weights(task), stored(again.best_checkpoint))


@pytest.mark.holds("CK-05")
def test_a_best_that_was_damaged_is_not_loaded(tmp_path):
    def damage(trainer: Trainer, task: Any) -> None:
        file = trainer.best_checkpoint / "model/model-00001-of-00001.safetensors"
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)

    with pytest.raises(CheckpointError, match=r"step-00000001.*damaged or changed"):
        train(tmp_path, 9.0, 5.0, 4.0, asynchronous=False, callbacks=[At(on_train_end=damage)])


def test_what_was_never_measured_has_no_best(tmp_path):
    with (
        pytest.warns(TaskloomWarning, match="No checkpoint is best by 'score', so the task keeps the weights"),
        pytest.warns(TaskloomWarning, match="'score' is nan"),
    ):
        trainer, task = train(tmp_path, math.nan)
    assert equal(weights(task), stored(trainer.last_checkpoint))


def test_the_best_weights_are_not_saved_with_the_moments_of_the_last_step(tmp_path):
    trainer, _ = train(tmp_path / "runs", 1.0, 9.0, 5.0)
    with pytest.raises(CheckpointError, match=r"weights of step 2, the optimizer the moments of step 3.*weights_only"):
        trainer.save_checkpoint(tmp_path / "mine")
    trainer.save_checkpoint(tmp_path / "mine", weights_only=True)
    with open_checkpoint(tmp_path / "mine") as reader:
        assert (reader.manifest.step, reader.manifest.metrics["score"]) == (2, (9.0, 2))
    trainer, _ = train(tmp_path / "runs", 1.0, 9.0)
    trainer.save_checkpoint(tmp_path / "whole")


@pytest.mark.holds("CK-05")
def test_the_average_of_the_best_checkpoint_is_what_the_task_ends_with(tmp_path):
    average = EMAWeightAveraging(decay=0.5)
    trainer, task = train(tmp_path, 1.0, 9.0, 5.0, callbacks=[average])
    with open_checkpoint(trainer.best_checkpoint) as reader:
        expected = [reader.tensor("average", name) for name in ("layer.weight", "layer.bias")]
    assert equal(weights(task), expected)


@pytest.mark.parametrize("more", [{"monitor": None}, {"save_top_k": 0}])
def test_there_must_be_a_best_to_load(more):
    with pytest.raises(ConfigError, match=r"needs a monitor and save_top_k of at least 1.*monitor='val/loss'"):
        policy(**more)
    with pytest.raises(ConfigError, match="Several policies ask for load_best_at_end"):
        quiet(checkpoint=[policy(), policy(monitor="other")], max_epochs=1)


@pytest.mark.holds("CK-03", "CK-04")
@pytest.mark.parametrize(("every", "steps"), [("20%", [2, 4, 6, 8, 10]), ("40%", [4, 8, 10]), ("5 steps", [5, 10])])
def test_parts_of_a_run(every, steps, tmp_path):
    assert saved_steps(CheckpointPolicy(every=every, keep_last=-1, fsync=False), tmp_path) == steps
    assert sorted(int(path.name[5:]) for path in tmp_path.glob("*/checkpoints/step-*")) == steps


@pytest.mark.holds("CK-03", "CK-04", "R21")
def test_only_an_improvement_is_saved_and_it_is_of_the_step_that_was_measured(tmp_path):
    """`save_strategy="best"`: validation comes before the checkpoint of its step."""
    train(tmp_path, 3.0, 1.0, 5.0, 4.0, keep_last=0, load_best_at_end=False)
    (path,) = tmp_path.glob("*/checkpoints/step-*")
    with open_checkpoint(path) as reader:
        assert (reader.manifest.step, reader.manifest.metrics["score"]) == (3, (5.0, 3))
