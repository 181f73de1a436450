"""Saves in the background beside worker processes, threads' warnings and the end of the interpreter."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.equality import contents
from loop.test_async_checkpoints import Slow, Task, fit, saved
from torch.utils.data import DataLoader

from taskloom import Callback, CheckpointPolicy, Trainer
from taskloom.checkpoint import latest_checkpoint, verify_checkpoint
from taskloom.core.errors import TaskloomWarning


@pytest.mark.holds("R16")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_workers_that_are_forked_during_a_save_do_not_disturb_it(tmp_path, monkeypatch):
    """Each epoch starts new workers right after the checkpoint of the last one was begun."""
    writing = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 0:
                writing.append(any(thread.name.startswith("saving") for thread in threading.enumerate()))

    def train(folder: Path, **policy: Any) -> list[Path]:
        keep = CheckpointPolicy(keep_last=-1, fsync=False, **policy)
        trainer = Trainer(
            max_epochs=3, accelerator="cpu", checkpoint=keep, run_dir=folder, progress=False, seed=0,
            logger=False, callbacks=[Watch()],
        )  # fmt: skip
        torch.manual_seed(1)
        data = torch.arange(16.0).reshape(8, 2) / 16
        return saved(trainer.fit(Task(), DataLoader(data, batch_size=2, shuffle=True, num_workers=2)))

    blocking = train(tmp_path / "blocking", asynchronous=False)
    writing.clear()
    Slow(monkeypatch, 0.02)
    background = train(tmp_path / "background")
    assert writing == [False, True, True]
    for one, other in zip(background, blocking, strict=True):
        assert verify_checkpoint(one) == []
        assert contents(one) == contents(other)


def test_a_warning_of_the_background_reaches_the_user(tmp_path):
    def in_the_way(trainer: Trainer, *_: Any) -> None:
        (trainer.run_folder / "checkpoints/step-00000002").mkdir(parents=True)
        (trainer.run_folder / "checkpoints/step-00000002/manifest.json").write_text("{")

    class Obstruct(Callback):
        def on_train_start(self, trainer: Trainer, task: Any) -> None:
            in_the_way(trainer)

    with pytest.warns(TaskloomWarning, match=r"step-00000002 is in the way of a new checkpoint and cannot be read"):
        result = fit(tmp_path, Obstruct(), steps=2)
    assert verify_checkpoint(result.last_checkpoint) == []


_KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from taskloom.checkpoint.files import HashedFile
from loop.test_async_checkpoints import fit, Task
from taskloom import Callback

real = HashedFile.write
def slow(file, data):
    time.sleep(0.02)
    real(file, data)
HashedFile.write = slow

class Die(Callback):
    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        saving = any(thread.name.startswith("saving") for thread in threading.enumerate())
        if trainer.global_step >= 5 and saving:
            print(trainer.last_checkpoint.name, flush=True)
            {how}

fit(Path(sys.argv[1]), Die(), steps=50, every="2 steps")
"""


@pytest.mark.holds("R1", "R16")
def test_a_process_that_is_killed_during_a_save_leaves_the_one_before(tmp_path):
    program = _KILLED.replace("{how}", "os.kill(os.getpid(), signal.SIGKILL)")
    done = _run(program, tmp_path)
    assert done.returncode == -9, done.stderr
    found, _ = latest_checkpoint(next(tmp_path.glob("*/checkpoints")))
    assert found is not None
    assert found.name >= done.stdout.split()[-1]
    assert verify_checkpoint(found) == []


@pytest.mark.holds("R16")
def test_a_program_that_ends_during_a_save_waits_for_it(tmp_path):
    done = _run(_KILLED.replace("{how}", "sys.exit(3)"), tmp_path)
    assert done.returncode == 3, done.stderr
    folder = next(tmp_path.glob("*/checkpoints"))
    assert not list(folder.glob(".step*")), "nothing is left half written"
    assert all(verify_checkpoint(path) == [] for path in folder.glob("step-*"))
    assert len(list(folder.glob("step-*"))) >= 2


def _run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    tests = str(Path(__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", program, str(folder), tests], capture_output=True, text=True, timeout=120, check=False
    )
