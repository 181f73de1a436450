"""The examples, killed after every step of an epoch and continued: the same bytes as if nothing had happened."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.equality import contents, series
from checkpoint.faults import in_a_process

from taskloom import Callback, CheckpointPolicy, RunFolder, Trainer
from taskloom.callbacks import EMAWeightAveraging

Fit = Callable[..., Path]


class KilledAfter(Callback):
    """Sends SIGKILL to its own process at the end of the batch that completes a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def trained(
    root: Path, stop: int | None, ckpt_path: str | None, fit: Callable[[Trainer, Any], None], **options: Any
) -> Path:
    killer = [] if stop is None else [KilledAfter(stop)]
    trainer = Trainer(
        accelerator="cpu",
        run_dir=RunFolder(root=str(root), name="run"),
        checkpoint=CheckpointPolicy(every="1 steps", keep_last=2, fsync=False),
        log_every_n_steps=1,
        progress=False,
        seed=7,
        callbacks=[*options.pop("callbacks", []), *killer],
        **options,
    )
    fit(trainer, ckpt_path)
    return root


def check_every_stop(tmp_path: Path, stops: range, run: Callable[[Path, int | None, str | None], Path]) -> None:
    result = tmp_path / "result"
    run(tmp_path / "first", None, None)  # here, so that forks find everything imported
    gc.collect()  # persistent workers of validation live as long as their loader
    in_a_process(lambda: run(tmp_path / "whole", None, None), result)
    name = f"run/checkpoints/step-{stops.stop:08d}"
    expected, logged = contents(tmp_path / "whole" / name), series(tmp_path / "whole")
    assert len(logged) >= stops.stop
    for stop in stops:
        root = tmp_path / "killed"
        shutil.rmtree(root, ignore_errors=True)
        assert in_a_process(lambda: run(root, stop, None), result) == signal.SIGKILL  # noqa: B023
        saved = any((root / "run/checkpoints").glob("step-*"))
        if not saved:
            shutil.rmtree(root)
        in_a_process(lambda: run(root, None, "last" if saved else None), result)  # noqa: B023
        found = contents(root / name)
        assert {key for key in expected if found.get(key) != expected[key]} == set(), f"stopped after step {stop}"
        assert found.keys() == expected.keys()
        assert series(root) == logged, f"stopped after step {stop}"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.holds("R3", "R13", "CK-06", "CK-09", "DA-30")
def test_digits_end_with_the_same_bytes_wherever_they_were_killed(load, tmp_path):
    """With dropout, shuffling, two workers, accumulation, averaged weights and the loss scaling of float16."""
    digits = load("digits")

    def fit(trainer: Trainer, ckpt_path: str | None) -> None:
        trainer.fit(
            digits.Digits(width=2), datamodule=digits.DigitsData(batch_size=128, num_workers=2), ckpt_path=ckpt_path
        )

    def run(root: Path, stop: int | None, ckpt_path: str | None) -> Path:
        return trained(
            root,
            stop,
            ckpt_path,
            fit,
            max_epochs=2,
            accumulate_grad_batches=2,
            precision="16-mixed",
            callbacks=[EMAWeightAveraging(decay=0.9)],
        )

    check_every_stop(tmp_path, range(1, 10), run)  # an epoch has 10 batches, which are 5 steps


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.holds("R3", "R13", "CK-06")
def test_stdlib_gpt_ends_with_the_same_bytes_wherever_it_was_killed(load, tmp_path):
    """With clipping and a schedule by step."""
    gpt = load("stdlib_gpt")
    torch.set_num_threads(1)

    def fit(trainer: Trainer, ckpt_path: str | None) -> None:
        task = gpt.StdlibGPT(block_size=16, width=16, depth=1, heads=2, warmup_steps=2, sample_length=0)
        data = gpt.StdlibData(
            block_size=16, batch_size=4, windows_per_epoch=32, max_train_bytes=20_000, max_val_bytes=2_000
        )
        trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)

    def run(root: Path, stop: int | None, ckpt_path: str | None) -> Path:
        return trained(root, stop, ckpt_path, fit, max_steps=16, gradient_clip_val=1.0, val_check_interval="3 steps")

    check_every_stop(tmp_path, range(1, 16), run)  # two epochs of 8 steps
