"""A resumed run does what the uninterrupted one would have done from there on: every hook, at the same counters."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop.tracing import OF_DATA, OF_TASK, Data, Monitoring, Other, Trace, Traced

from taskloom import CheckpointPolicy, Trainer, ValidationPolicy
from taskloom.callbacks.base import HOOKS

SAVED = "on_save_checkpoint("


class Plain(Traced):
    """Its schedules watch nothing, so that it may validate whenever it likes, or never."""

    def configure_optimizers(self) -> Any:
        (optimizer,), (by_step, by_epoch, _) = super().configure_optimizers()
        return [optimizer], [by_step, by_epoch]


def run(
    folder: Path, train: int, every: str, ckpt_path: Path | None = None, *, watches: bool = True, **options: Any
) -> tuple[list[str], Trainer]:
    lines = Trace()
    task = Traced() if watches else Plain()
    task.trace = lines
    callbacks = [
        lines.record("other", Other(), HOOKS),
        lines.record("monitoring", Monitoring("val/loss", patience=99), ("on_validation_end", "on_train_epoch_end")),
    ]
    policy = CheckpointPolicy(every=every, keep_last=-1, fsync=False)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        progress=False,
        callbacks=callbacks,
        checkpoint=policy,
        run_dir=folder,
        num_sanity_val_steps=1,
        **options,
    )
    lines.trainer = trainer
    lines.record("task", task, OF_TASK)
    data = lines.record("data", Data(train), tuple(name for name in OF_DATA if name != "state_dict"))
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return lines.lines, trainer


def moments(lines: list[str]) -> list[tuple[int, int]]:
    """Return (line, step) of every checkpoint."""
    return [(number, int(line.split()[0].split("/")[1])) for number, line in enumerate(lines) if SAVED in line]


def continued(lines: list[str], *, within_epoch: bool) -> list[str]:
    """Return what a resumed run did once its training began, without the one hook that is called again."""
    start = next(number for number, line in enumerate(lines) if "on_train_start(" in line)
    assert not [line for line in lines[:start] if "validation" in line or "sanity" in line or SAVED in line]
    rest = lines[start + 1 :]
    if within_epoch:
        assert "on_train_epoch_start(" in rest[0]
        rest = rest[1:]
    return rest


def check(folder: Path, stops: slice, train: int, every: str, **options: Any) -> int:
    whole, trainer = run(folder, train, every, **options)
    assert moments(whole)[-1][1] == trainer.global_step  # the last step is in a checkpoint, always
    for line, step in moments(whole)[stops]:
        path = trainer.last_checkpoint.with_name(f"step-{step:08d}")
        # In a batch of its own the epoch goes on; at an epoch's end its counter has moved already.
        before = [each for each in whole[:line] if "on_train_epoch_start(" in each or "on_train_epoch_end(" in each]
        within = bool(before) and "on_train_epoch_start(" in before[-1]
        resumed, _ = run(folder, train, every, ckpt_path=path, **options)
        ended = [each for each in whole[:line] if "on_train_end(" in each]  # the training ends once more then
        expected, got = ended + whole[line + 1 :], continued(resumed, within_epoch=within)
        difference = "\n".join(difflib.unified_diff(expected, got, "uninterrupted", f"resumed at {step}", lineterm=""))
        assert not difference, difference
    return len(moments(whole))


@pytest.mark.holds("R22")
@pytest.mark.parametrize(
    ("train", "every", "options", "saves"),
    [
        (10, "1 steps", {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": "1 steps"}, 6),
        (8, "1 steps", {"max_epochs": 1.5, "val_check_interval": "3 steps"}, 6),
        (8, "3 steps", {"max_steps": 5}, 2),
        (6, "1 epoch", {"max_epochs": 3, "val_check_interval": "2 epochs", "watches": False}, 3),
        # a schedule that watches a metric is given each value once, also where the restart lies between the two
        (4, "1 epoch", {"max_epochs": 4, "val_check_interval": ValidationPolicy("2 epochs", on_start=True)}, 4),
    ],
)
def test_a_run_resumed_at_any_checkpoint_goes_on_as_if_nothing_had_been(
    train: int, every: str, options: dict[str, Any], saves: int, tmp_path: Path
) -> None:
    assert check(tmp_path, slice(None), train, every, **options) == saves


@pytest.mark.holds("R22")
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    train=st.integers(2, 13),
    every=st.sampled_from(["1 steps", "2 steps", "2 batches", "0.5 epochs", "1 epoch"]),
    validate=st.sampled_from(["1 steps", "2 steps", "3 batches", "50%", "0.5 epochs", "1 epoch", None]),
    accumulate=st.integers(1, 3),
    end=st.sampled_from([{"max_epochs": 1}, {"max_epochs": 2}, {"max_steps": 4}, {"max_epochs": 1.5}]),
    stop=st.integers(0, 20),
)
def test_whatever_is_due_when(
    train: int, every: str, validate: str | None, accumulate: int, end: dict[str, Any], stop: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    options = {"watches": False, "val_check_interval": validate, "accumulate_grad_batches": accumulate, **end}
    count = 6  # saves at most, so that a stop falls on any of them
    check(tmp_path_factory.mktemp("runs"), slice(stop % count, stop % count + 1), train, every, **options)
