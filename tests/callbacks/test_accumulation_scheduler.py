"""More micro-batches per step as training goes on."""

from __future__ import annotations

from typing import Any

import pytest
from callbacks.line import Line

from taskloom.callbacks import GradientAccumulationScheduler, LambdaCallback


def steps_by_epoch(make_trainer: Any, loader: Any, schedule: dict[int, int], **arguments: Any) -> list[int]:
    steps: list[int] = []
    record = LambdaCallback(on_train_epoch_end=lambda trainer, task: steps.append(trainer.global_step))
    make_trainer(GradientAccumulationScheduler(schedule), record, max_epochs=4).fit(Line(), loader, **arguments)
    return [after - before for before, after in zip([0, *steps], steps, strict=False)]


@pytest.mark.holds("GR-02")
@pytest.mark.parametrize(
    ("schedule", "steps"),
    [({0: 1, 1: 2, 3: 4}, [4, 2, 2, 1]), ({2: 3}, [4, 4, 2, 2]), ({0: 4}, [1, 1, 1, 1]), ({0: 4, 1: 1}, [1, 4, 4, 4])],
    ids=str,
)
def test_steps_per_epoch(schedule: dict[int, int], steps: list[int], make_trainer: Any, loader: Any) -> None:
    assert steps_by_epoch(make_trainer, loader, schedule) == steps


@pytest.mark.holds("GR-02")
def test_a_resume_goes_on_in_the_schedule(make_trainer: Any, loader: Any) -> None:
    schedule = {0: 1, 1: 2}
    first = make_trainer(GradientAccumulationScheduler(schedule), max_epochs=1, checkpoint=True).fit(Line(), loader)
    trainer = make_trainer(GradientAccumulationScheduler(schedule), max_epochs=2, checkpoint=True)
    assert trainer.fit(Line(), loader, ckpt_path=first.last_checkpoint).steps == 4 + 2


def test_twice_is_an_error(make_trainer: Any, loader: Any) -> None:
    trainer = make_trainer(GradientAccumulationScheduler({0: 2}), max_epochs=1, accumulate_grad_batches=4)
    with pytest.raises(ValueError, match="accumulate_grad_batches is set twice"):
        trainer.fit(Line(), loader)


def test_manual_optimisation_is_an_error(make_trainer: Any, loader: Any) -> None:
    task = Line()
    task.automatic_optimization = False
    with pytest.raises(ValueError, match="nothing to schedule in manual optimisation"):
        make_trainer(GradientAccumulationScheduler({0: 2}), max_epochs=1).fit(task, loader)


@pytest.mark.parametrize(
    ("schedule", "text"), [({}, "empty schedule"), ({0: 0}, "at least 1"), ({-1: 2}, "at least 1")]
)
def test_mistakes(schedule: dict[int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GradientAccumulationScheduler(schedule)
