"""Training that is killed at every change it makes to the disk, and disks that fill up, slow down and corrupt."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.equality import contents
from checkpoint.faults import Fault, Faults, full_from, in_a_process, killed_at, slowed
from torch import nn
from torch.utils.data import DataLoader

from taskloom import CheckpointError, CheckpointPolicy, RunFolder, TaskModule, Trainer
from taskloom.checkpoint import best_checkpoint, latest_checkpoint, verify_checkpoint
from taskloom.checkpoint.manifest import Manifest

STEPS = 3


class Task(TaskModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.3), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def train(root: Path, *, asynchronous: bool, ckpt_path: str | None = None) -> Path:
    """Three steps, a checkpoint after each, the newest two and the best kept."""
    policy = CheckpointPolicy(monitor="loss", save_top_k=1, keep_last=2, every="1 steps", asynchronous=asynchronous)
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        checkpoint=policy,
        logger=False,
        progress=False,
        log_every_n_steps=1,
        seed=0,
        run_dir=RunFolder(root=str(root), name="run"),
    )
    data = DataLoader(torch.arange(16.0).reshape(8, 2), batch_size=2, shuffle=True)
    result = trainer.fit(Task(), data, ckpt_path=ckpt_path)
    assert result.last_checkpoint is not None
    return result.last_checkpoint


def faulty(root: Path, fault: Fault | None, **options: Any) -> tuple[int, list[int]]:
    """Train with a fault; return the number of changes to the disk, and which of them are writes."""
    with Faults(fault).injected() as faults:
        train(root, **options)
    return faults.count, faults.writes


def confirmed(folder: Path) -> int:
    """The step that `last.json` names: whoever looked there was promised this checkpoint."""
    path = folder / "last.json"
    return json.loads(path.read_text())["step"] if path.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.holds("R1", "R16")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_killed_at_any_change_the_newest_confirmed_checkpoint_is_left_and_training_ends_the_same(
    tmp_path, asynchronous
):
    root, result = tmp_path / "killed", tmp_path / "result"
    train(tmp_path / "first", asynchronous=asynchronous)  # here, so that forks find everything imported
    total, writes = faulty(tmp_path / "whole", None, asynchronous=asynchronous)
    expected = contents(latest_checkpoint(tmp_path / "whole/run/checkpoints")[0])
    points = [(number, False) for number in range(1, total + 1)] + [(number, True) for number in writes]
    assert len(points) >= 200
    continued = set(random.Random(0).sample(points, 20))
    for point in points:
        shutil.rmtree(root, ignore_errors=True)
        fault = killed_at(point[0], half=point[1])
        status = in_a_process(lambda: faulty(root, fault, asynchronous=asynchronous), result)  # noqa: B023
        assert status == signal.SIGKILL, point
        folder = root / "run/checkpoints"
        found, skipped = latest_checkpoint(folder)
        assert (Manifest.read(found).step if found else 0) >= confirmed(folder), (point, skipped)
        if (folder / "best.json").exists():
            assert verify_checkpoint(best_checkpoint(folder)) == [], point
        if point in continued:
            if found is None:
                shutil.rmtree(root, ignore_errors=True)
            path = "last" if found else None
            end = in_a_process(lambda: str(train(root, asynchronous=asynchronous, ckpt_path=path)), result)  # noqa: B023
            assert contents(Path(end)) == expected, point
            assert not list(folder.glob(".step-*")), "what the killed process left is tidied"


@pytest.mark.holds("R1")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_a_disk_that_fills_up_at_any_write_leaves_the_checkpoint_before(tmp_path, asynchronous):
    """The error names the file system and what to do, and reaches the caller of fit from the background too."""
    result = tmp_path / "result"
    _, writes = faulty(tmp_path / "whole", None, asynchronous=asynchronous)
    later = [number for number in writes if number > writes[len(writes) * 2 // 5]]  # the first checkpoint is there
    for number in later[:: max(1, len(later) // 8)]:
        root = tmp_path / f"full-{number}"

        def run(root: Path = root, number: int = number) -> str:
            try:
                faulty(root, full_from(number), asynchronous=asynchronous)
            except CheckpointError as error:
                return str(error)
            return ""

        message = in_a_process(run, result)
        assert "free space on the file system of" in message
        assert "earlier checkpoints are untouched" in message
        found, _ = latest_checkpoint(root / "run/checkpoints")
        assert found is not None
        assert Manifest.read(found).step >= confirmed(root / "run/checkpoints") >= 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte (needs the right to mount); let go of once no tensor is mapped from it."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.holds("R1")
@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_on_a_full_disk_the_last_good_checkpoint_can_be_continued_from(small_disk, asynchronous):
    def fill() -> None:
        class Growing(Task):
            def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
                size = self.trainer.global_step * 60_000
                (small_disk / "data.bin").write_bytes(os.urandom(size))

        trainer = Trainer(
            max_steps=30,
            accelerator="cpu",
            checkpoint=CheckpointPolicy(every="1 steps", asynchronous=asynchronous),
            logger=False,
            progress=False,
            run_dir=RunFolder(root=str(small_disk), name="run"),
        )
        trainer.fit(Growing(), DataLoader(torch.ones(60, 2), batch_size=2))

    with pytest.raises((CheckpointError, OSError), match=r"No space left|free space"):
        fill()
    found, _ = latest_checkpoint(small_disk / "run/checkpoints")
    assert found is not None
    (small_disk / "data.bin").unlink()
    trainer = Trainer(
        max_steps=Manifest.read(found).step + 2, accelerator="cpu", logger=False, progress=False, run_dir=small_disk
    )
    assert trainer.fit(Task(), DataLoader(torch.ones(60, 2), batch_size=2), ckpt_path=found).status == "finished"


@pytest.mark.holds("R16")
def test_on_a_slow_disk_every_checkpoint_is_of_its_step(tmp_path):
    """Weights change at every step while earlier ones are still being written."""
    fast, slow = tmp_path / "fast", tmp_path / "slow"
    in_a_process(lambda: faulty(fast, None, asynchronous=True), tmp_path / "result")
    in_a_process(lambda: faulty(slow, slowed(0.01), asynchronous=True), tmp_path / "result")
    names = sorted(path.name for path in (fast / "run/checkpoints").glob("step-*"))
    assert len(names) >= 2
    for name in names:
        assert contents(slow / "run/checkpoints" / name) == contents(fast / "run/checkpoints" / name)


@pytest.mark.holds("R1")
@pytest.mark.parametrize("damage", ["a byte", "cut short", "removed"])
def test_damage_to_any_file_of_the_newest_is_walked_back_from_and_named(tmp_path, damage):
    newest = train(tmp_path, asynchronous=False)
    files = [path for path in newest.rglob("*") if path.is_file()]
    assert len(files) >= 6
    for path in files:
        data = path.read_bytes()
        if damage == "a byte":
            path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        elif damage == "cut short":
            path.write_bytes(data[: len(data) // 2])
        else:
            path.unlink()
        found, skipped = latest_checkpoint(newest.parent)
        assert found is not None
        assert found.name < newest.name
        assert any(newest.name in line for line in skipped), skipped
        path.write_bytes(data)
    assert latest_checkpoint(newest.parent)[0] == newest
