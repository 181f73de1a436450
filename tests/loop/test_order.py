"""The order of everything is the docstring of taskloom.loop.fit; these traces hold it."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

import pytest
from loop.tiny import At, Line, loader, quiet
from loop.tracing import RUNS, TRACES

from taskloom import Callback
from taskloom.callbacks import EarlyStopping
from taskloom.core.hooks import TaskHooks, TransferHooks
from taskloom.loop import evaluate, fit, predict

ROWS = {
    "automatic": ("R39", "TM-16", "TM-17", "TM-18", "TM-19", "TM-20", "TM-21", "TM-22", "TM-25"),
    "closure": ("R39", "TM-24"),
    "manual": ("R39", "TM-22", "TM-27"),
    "max_steps": ("R39", "TM-17", "TM-18"),
    "exception": ("R39", "LC-30"),
    "validate": ("R39", "TM-19", "TM-20"),
    "test": ("R39", "TM-19", "TM-20"),
    "predict": ("R39", "TM-19", "TM-20"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.holds(*ROWS[name])) for name in RUNS])
def test_the_trace_is_the_golden_one(name: str, tmp_path: Path) -> None:
    golden = (TRACES / f"{name}.txt").read_text()
    traced = "\n".join(RUNS[name](folder=tmp_path)) + "\n"
    difference = "".join(difflib.unified_diff(golden.splitlines(True), traced.splitlines(True), "golden", "now"))
    assert not difference, f"If this is meant, run `python tests/loop/tracing.py`:\n{difference}"


@pytest.mark.holds("R39")
def test_the_contract_names_the_hooks_in_the_order_of_the_trace() -> None:
    """Every hook that the docstring of the fit loop names follows the one before it in the golden trace."""
    known = {*vars(TransferHooks), *vars(TaskHooks), "configure_callbacks", "configure_optimizers", "training_step"}
    contract = fit.__doc__.split("```")[1]
    named = list(dict.fromkeys(name for name in re.findall(r"\w+", contract) if name in known))
    trace = (TRACES / "max_steps.txt").read_text()  # without accumulation every batch has all hooks
    first = {name: trace.find(f"  {name}(") for name in named}
    absent = {name for name in named if first[name] < 0}
    assert absent == {
        "on_load_checkpoint",
        "on_sanity_check_start",
        "on_sanity_check_end",
        "on_validation_model_zero_grad",
    }
    order = [name for name in named if name not in {*absent, "on_log", "on_save_checkpoint"}]
    assert order == sorted(order, key=first.__getitem__)
    assert len(order) >= 18


@pytest.mark.holds("R39")
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_the_contract_of_evaluation_is_the_order_of_the_trace(stage: str) -> None:
    text = predict.__doc__ if stage == "predict" else evaluate.__doc__.replace("validation", _prefix(stage))
    named = dict.fromkeys(re.findall(r"on_\w+|\w+_step", text.split("```")[1]))
    trace = (TRACES / f"{stage}.txt").read_text()
    places = [trace.find(f"  {name}(") for name in named if name != f"on_{_prefix(stage)}_model_zero_grad"]
    found = [place for place in places if place >= 0]
    assert found == sorted(found)
    assert len(found) >= 9


def _prefix(stage: str) -> str:
    return {"validate": "validation"}.get(stage, stage)


@pytest.mark.holds("R39")
def test_callbacks_run_in_their_order_unless_they_wish_otherwise() -> None:
    order: list[str] = []

    class Noted(Callback):
        def on_train_start(self, trainer, task):
            order.append(type(self).__name__)

    class A(Noted):
        pass

    class B(Noted):
        pass

    class Z(Noted):
        before = (A,)

    A.after = (B,)
    quiet(A(), B(), Z(), max_steps=1).fit(Line(), loader())
    assert order == ["B", "Z", "A"]


@pytest.mark.holds("R39")
def test_wishes_that_contradict_each_other_are_an_error() -> None:
    class A(Callback):
        pass

    class B(Callback):
        before = (A,)

    A.before = (B,)
    with pytest.raises(ValueError, match=r"The order of these callbacks cannot be satisfied: A, B\..*form a circle"):
        quiet(A(), B(), max_steps=1).fit(Line(), loader())


@pytest.mark.holds("TM-15")
def test_callbacks_of_the_task_join_and_replace(tmp_path: Path) -> None:
    class Own(Line):
        def configure_callbacks(self):
            assert self.trainer is trainer
            return [EarlyStopping("val/loss", patience=1), At(on_train_start=lambda *_: started.append(1))]

    started: list[int] = []
    given = EarlyStopping("train/loss", patience=9)
    trainer = quiet(given, max_steps=1)
    trainer.fit(Own(), loader(), loader())
    assert started == [1]
    assert [each.patience for each in trainer.early_stopping_callbacks] == [1]
    assert trainer.callbacks == [given]


@pytest.mark.holds("TM-18")
@pytest.mark.parametrize("where", ["task", "callback"])
@pytest.mark.parametrize("first", [0, 2])
def test_a_batch_start_that_returns_minus_one_ends_the_epoch(where: str, first: int) -> None:
    ended: list[tuple[int, int]] = []

    def leave(batch: int) -> int | None:
        return -1 if batch == first else None

    class Leaving(Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            return leave(batch_idx)

    class Task(Line):
        def on_train_batch_start(self, batch, batch_idx):
            return leave(batch_idx) if where == "task" else None

        def on_train_epoch_end(self):
            ended.append((self.current_epoch, len(self.seen)))

    task = Task()
    result = quiet(*([Leaving()] if where == "callback" else []), max_epochs=3).fit(task, loader())
    assert result.epochs == 3
    assert ended == [(0, first), (1, 2 * first), (2, 3 * first)]
    assert result.steps == 3 * first


@pytest.mark.holds("TM-18", "GR-03")
@pytest.mark.parametrize("kind", ["automatic", "closure"])
def test_minus_one_steps_on_the_window_it_leaves_open(kind: str) -> None:
    class Task(Line):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 else None

    class Closing(Task):
        def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
            assert batch_idx in (1, 2)
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    task = (Task if kind == "automatic" else Closing)()
    trainer = quiet(max_epochs=2, accumulate_grad_batches=2)
    result = trainer.fit(task, loader())
    assert result.steps == 4
    assert trainer.progress.micro_batches == len(task.seen) == 6
