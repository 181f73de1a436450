"""Checkpoints that are written while training goes on."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.equality import contents
from torch import nn
from torch.utils.data import DataLoader

from taskloom import Callback, CheckpointError, CheckpointPolicy, TaskModule, Trainer
from taskloom.checkpoint import files, verify_checkpoint
from taskloom.checkpoint.files import HashedFile
from taskloom.checkpoint.snapshot import SnapshotBuffers
from taskloom.core.errors import ConfigError


class Task(TaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.2), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.net(batch).square().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.05)


def fit(folder: Path, *callbacks: Callback, steps: int = 6, task: TaskModule | None = None, **policy: Any) -> Any:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        checkpoint=CheckpointPolicy(**{"every": "1 steps", "keep_last": -1, **policy}),
        run_dir=folder,
        progress=False,
        seed=0,
        callbacks=callbacks,
    )
    torch.manual_seed(1)
    return trainer.fit(task or Task(), DataLoader(torch.arange(40.0).reshape(20, 2) / 40, batch_size=2, shuffle=True))


def saved(result: Any) -> list[Path]:
    return sorted((result.run_folder / "checkpoints").glob("step-*"))


class Slow:
    """Makes every write wait, and lets a test know and decide."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.threads: set[str] = set()
        real_write, event = HashedFile.write, threading.Event()

        def write(file: HashedFile, data: Any) -> None:
            if file._path.suffix == ".safetensors":
                self.threads.add(threading.current_thread().name)
            event.wait(seconds)
            real_write(file, data)

        monkeypatch.setattr(HashedFile, "write", write)


@pytest.mark.holds("R16", "CK-19")
def test_on_slow_storage_every_checkpoint_is_that_of_its_step(tmp_path, monkeypatch):
    """Weights change at every step, a save takes many steps: what is written is what a blocking save writes."""
    blocking = saved(fit(tmp_path / "blocking", asynchronous=False))
    slow = Slow(monkeypatch, 0.004)
    background = saved(fit(tmp_path / "background"))
    assert [path.name for path in background] == [path.name for path in blocking] != []
    for one, other in zip(background, blocking, strict=True):
        assert contents(one) == contents(other)
    assert slow.threads == {f"saving {path.name}" for path in background}


@pytest.mark.holds("R16")
def test_one_snapshot_is_held_and_the_next_save_waits_for_the_one_before(tmp_path, monkeypatch):
    Slow(monkeypatch, 0.002)
    alive: list[int] = []
    real = SnapshotBuffers.take
    made: set[int] = set()

    def take(self: SnapshotBuffers, content: Any) -> Any:
        alive.append(sum(thread.name.startswith("saving") for thread in threading.enumerate()))
        taken = real(self, content)
        made.add(self.nbytes)
        return taken

    monkeypatch.setattr(SnapshotBuffers, "take", take)
    fit(tmp_path)
    assert alive == [0] * 6
    assert len(made) <= 2, "the optimizer has no state before the first step; after that all snapshots are of one size"


def test_training_goes_on_while_a_save_is_in_hand(tmp_path, monkeypatch):
    may_write, seen = threading.Event(), []
    real = files.write_file

    def write_file(path: Path, *arguments: Any, **keywords: Any) -> Any:
        if threading.current_thread().name.startswith("saving") and path.name == "state.json":
            assert may_write.wait(20)
        return real(path, *arguments, **keywords)

    class Release(Callback):
        def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            seen.append(any(thread.name.startswith("saving") for thread in threading.enumerate()))
            if trainer.global_step == 5:
                may_write.set()

    monkeypatch.setattr("taskloom.checkpoint.writer.write_file", write_file)
    result = fit(tmp_path, Release(), every="3 steps", steps=5)
    assert seen == [False, False, False, True, True]
    assert [path.name for path in saved(result)] == ["step-00000003", "step-00000005"]


@pytest.mark.holds("R16")
def test_a_failure_in_the_background_ends_training_at_the_next_batch(tmp_path, monkeypatch):
    steps, failed = [], threading.Event()

    def no_space(path: Path, *arguments: Any, **keywords: Any) -> Any:
        failed.set()
        raise OSError(28, "No space left on device")

    class Count(Callback):
        def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            steps.append(trainer.global_step)
            if trainer.global_step == 4:
                assert failed.wait(10)
                for thread in threading.enumerate():
                    if thread.name.startswith("saving"):
                        thread.join()

    monkeypatch.setattr("taskloom.checkpoint.writer.write_tensor_file", no_space)
    with pytest.raises(CheckpointError, match=r"step-00000003.*No space left.*free space"):
        fit(tmp_path, Count(), every="3 steps", steps=100)
    assert steps == [1, 2, 3, 4]


def test_a_failure_of_the_last_save_is_raised_by_fit(tmp_path, monkeypatch):
    def no_space(*arguments: Any, **keywords: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("taskloom.checkpoint.writer.write_tensor_file", no_space)
    with pytest.raises(CheckpointError, match="No space left"):
        fit(tmp_path, every="6 steps")


@pytest.mark.holds("R16", "R21")
def test_everything_is_written_when_fit_returns(tmp_path, monkeypatch):
    Slow(monkeypatch, 0.02)
    result = fit(tmp_path, steps=3)
    assert result.last_checkpoint.name == "step-00000003"
    assert verify_checkpoint(result.last_checkpoint) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("saving")]


def test_everything_is_written_when_fit_fails(tmp_path, monkeypatch):
    Slow(monkeypatch, 0.02)

    class Fail(Callback):
        def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Fail())
    (run,) = tmp_path.iterdir()
    assert verify_checkpoint(run / "checkpoints/step-00000002") == []
    assert not list((run / "checkpoints").glob(".step*"))


def test_what_is_not_data_is_refused_in_the_foreground(tmp_path):
    class Holder(Task):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["made"] = object()

    with pytest.raises(CheckpointError, match=r"state.custom.made is not data") as caught:
        fit(tmp_path, task=Holder())
    assert caught.value.__cause__ is None


def test_a_monitored_metric_that_is_missing_is_told_in_the_foreground(tmp_path):
    with pytest.raises(ConfigError, match=r"monitors 'accuracy', which was not logged"):
        fit(tmp_path, monitor="accuracy")


def test_saving_to_a_path_blocks_until_it_is_verified(tmp_path, monkeypatch):
    Slow(monkeypatch, 0.01)

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 2:
                trainer.save_checkpoint(tmp_path / "mine")
                assert verify_checkpoint(tmp_path / "mine") == []

    fit(tmp_path / "runs", Save(), steps=3)


@pytest.mark.holds("CK-19")
def test_policies_that_block_and_policies_that_do_not_share_a_checkpoint(tmp_path):
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        checkpoint=[
            CheckpointPolicy(every="1 steps", asynchronous=False),
            CheckpointPolicy(every="2 steps", weights_only=True),
            CheckpointPolicy(every="2 steps", keep_last=2),
        ],
        run_dir=tmp_path,
        progress=False,
    )
    result = trainer.fit(Task(), DataLoader(torch.ones(8, 2), batch_size=2))
    assert [path.name for path in saved(result)] == ["step-00000002"]
    assert all(keeper.last_path == result.last_checkpoint for keeper in trainer.checkpoints)
