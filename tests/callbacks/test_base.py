"""What every callback can rely on: state, order, coming and going."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from callbacks.line import Line

from taskloom import Callback
from taskloom.callbacks import EarlyStopping, LambdaCallback
from taskloom.callbacks.base import check_hook_names, ordered


class Counter(Callback):
    """Counts batches, over resumes."""

    def __init__(self) -> None:
        self.batches = 0

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.batches = state["batches"]

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1


class First(Callback):
    """Takes part in the start of training."""

    def __init__(self, trace: list[str]) -> None:
        self.trace = trace

    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.trace.append(type(self).__name__)


class Second(First):
    pass


class Last(First):
    after = (First,)


class Sooner(First):
    before = (First, Second)


@pytest.mark.holds("CB-01")
def test_state_goes_through_a_checkpoint(make_trainer: Any, loader: Any) -> None:
    first = Counter()
    saved = make_trainer(first, max_epochs=1, checkpoint=True).fit(Line(), loader).last_checkpoint
    again = Counter()
    make_trainer(again, max_epochs=3, checkpoint=True).fit(Line(), loader, ckpt_path=saved)
    assert (first.batches, again.batches) == (4, 12)


@pytest.mark.holds("CB-01")
def test_order(make_trainer: Any, loader: Any) -> None:
    trace: list[str] = []
    callbacks = [Last(trace), Second(trace), First(trace), Sooner(trace)]
    make_trainer(*callbacks, max_epochs=1).fit(Line(), loader)
    assert trace == ["Sooner", "Second", "First", "Last"]


def test_a_circle_of_wishes() -> None:
    class Before(Callback):
        before = (First,)
        after = (First,)

    with pytest.raises(ValueError, match="order of these callbacks cannot be satisfied: Before, First"):
        ordered([Before(), First([])])


@pytest.mark.holds("CB-01")
def test_a_misspelt_hook_is_an_error(make_trainer: Any) -> None:
    class Misspelt(Callback):
        def on_train_batch_ends(self) -> None: ...

    with pytest.raises(ValueError, match=r"Misspelt\.on_train_batch_ends is not a hook.*'on_train_batch_end'"):
        make_trainer(Misspelt(), max_epochs=1)
    with pytest.raises(TypeError, match="must be an instance"):
        check_hook_names(Counter)  # type: ignore[arg-type]


@pytest.mark.holds("CB-02")
def test_callbacks_come_and_go(make_trainer: Any, loader: Any) -> None:
    kept, popped, removed = Counter(), Counter(), First([])
    trainer = make_trainer(kept, max_epochs=1)
    trainer.add_callback(popped)
    trainer.add_callback(removed)
    assert trainer.callbacks == [kept, popped, removed]
    assert trainer.pop_callback(popped) is popped
    trainer.remove_callback(First)
    assert trainer.pop_callback(EarlyStopping) is None
    trainer.fit(Line(), loader)
    assert (kept.batches, popped.batches, removed.trace) == (4, 0, [])


@pytest.mark.holds("CB-11")
def test_lambda_callback(make_trainer: Any, loader: Any) -> None:
    seen: list[Any] = []
    callback = LambdaCallback(
        on_train_batch_end=lambda trainer, task, outputs, batch, batch_idx: seen.append(batch_idx),
        on_train_end=lambda trainer, task: seen.append("end"),
    )
    make_trainer(callback, max_epochs=1).fit(Line(), loader)
    assert seen == [0, 1, 2, 3, "end"]


@pytest.mark.holds("CB-11")
def test_lambda_callback_with_a_hook_that_is_none() -> None:
    with pytest.raises(ValueError, match=r"no hook 'on_train_ends'.*Did you mean 'on_train_end'"):
        LambdaCallback(on_train_ends=print)
    with pytest.raises(TypeError, match="takes a function"):
        LambdaCallback(on_train_end=3)  # type: ignore[arg-type]
