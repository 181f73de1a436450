"""When `EarlyStopping` stops, and why."""

from __future__ import annotations

import math
from typing import Any

import pytest
from callbacks.line import Line

from taskloom.callbacks import EarlyStopping


@pytest.mark.holds("CB-04")
@pytest.mark.parametrize(
    ("values", "arguments", "epochs", "reason"),
    [
        ([3, 2, 1, 0.5, 0.1], {"patience": 1}, 5, "max_epochs"),
        ([3, 2, 2, 2, 2], {"patience": 2}, 4, "did not improve on 2 in the last 2 checks"),
        ([3, 4, 2, 4, 4], {"patience": 2}, 5, "did not improve on 2 in the last 2 checks"),
        ([3, 2.95, 2.9, 2.85, 2.8], {"patience": 2, "min_delta": 0.2}, 3, "did not improve on 3"),
        ([3, 2.95, 2.9, 2.85, 2.8], {"patience": 2, "min_delta": -0.2}, 3, "did not improve on 3"),
        ([1, 2, 3, 4, 5], {"patience": 1, "mode": "max"}, 5, "max_epochs"),
        ([5, 4, 3, 2, 1], {"patience": 2, "mode": "max"}, 3, "did not improve on 5"),
        ([3, 2, math.nan, 1, 1], {}, 3, "val became nan; the best was 2"),
        ([3, 2, math.nan, 1, 1], {"check_finite": False, "patience": 2}, 5, "max_epochs"),
        ([3, 2, 0.5, 0.4, 0.3], {"stopping_threshold": 1.0}, 3, "val 0.5 reached the threshold 1"),
        ([3, 2, 20, 1, 1], {"divergence_threshold": 10.0}, 3, "val 20 is worse than the limit 10"),
        ([1, 2, 9, 9, 9], {"mode": "max", "stopping_threshold": 5.0}, 3, "val 9 reached the threshold 5"),
    ],
)  # fmt: skip
def test_rules(
    values: list[float], arguments: dict[str, Any], epochs: int, reason: str, make_trainer: Any, loader: Any
) -> None:
    result = make_trainer(EarlyStopping("val", **arguments), max_epochs=5).fit(Line(val=values), loader, loader)
    assert result.epochs == epochs
    assert reason in result.stop_reason
    assert result.status == ("finished" if reason == "max_epochs" else "stopped")


@pytest.mark.holds("CB-04")
def test_best_score_and_counts(make_trainer: Any, loader: Any) -> None:
    stopping = EarlyStopping("val", patience=2)
    make_trainer(stopping, max_epochs=5).fit(Line(val=[3, 1, 2, 2, 2]), loader, loader)
    assert stopping.best_score.item() == 1
    assert (stopping.wait_count, stopping.stopped_epoch) == (2, 3)


@pytest.mark.holds("CB-04")
def test_patience_is_counted_over_a_resume(make_trainer: Any, loader: Any) -> None:
    values = [3, 2, 2, 2, 2, 2]
    first = EarlyStopping("val", patience=3)
    saved = make_trainer(first, max_epochs=3, checkpoint=True).fit(Line(val=values), loader, loader).last_checkpoint
    assert first.wait_count == 1
    second = EarlyStopping("val", patience=3)
    result = make_trainer(second, max_epochs=6, checkpoint=True).fit(Line(val=values), loader, loader, ckpt_path=saved)
    assert result.epochs == 5
    assert second.best_score.item() == 2


def test_validations_within_an_epoch_are_checks(make_trainer: Any, loader: Any) -> None:
    result = make_trainer(EarlyStopping("val", patience=2), max_epochs=5, val_check_interval=0.25).fit(
        Line(val=[1] * 5), loader, loader
    )
    assert result.steps == 3


@pytest.mark.parametrize("validates", [True, False])
def test_a_training_metric_is_checked_at_the_end_of_epochs(validates: bool, make_trainer: Any, loader: Any) -> None:
    stopping = EarlyStopping("train", patience=2)
    task = Line(train=[3, 2, 2, 2, 2], val=[0] * 5)
    result = make_trainer(stopping, max_epochs=5, val_check_interval=0.5).fit(
        task, loader, loader if validates else None
    )
    assert result.epochs == 4


def test_a_validation_that_is_rarer_than_epochs_is_waited_for(make_trainer: Any, loader: Any) -> None:
    result = make_trainer(EarlyStopping("val", patience=1), max_epochs=8, val_check_interval="2 epochs").fit(
        Line(val=list(range(8))), loader, loader
    )
    assert result.epochs == 4


def test_checks_can_be_moved_to_the_end_of_epochs(make_trainer: Any, loader: Any) -> None:
    stopping = EarlyStopping("val", patience=1, check_on_train_epoch_end=True)
    result = make_trainer(stopping, max_epochs=5, val_check_interval=0.25).fit(Line(val=[1] * 5), loader, loader)
    assert result.epochs == 2


@pytest.mark.holds("CB-04")
def test_a_metric_that_was_never_logged_is_an_error_that_names_the_others(make_trainer: Any, loader: Any) -> None:
    task = Line(val=[1], train=[1])
    with pytest.raises(ValueError, match=r"'vall', which was not logged.*train, train/loss, val.*Did you mean 'val'"):
        make_trainer(EarlyStopping("vall"), max_epochs=1).fit(task, loader, loader)


def test_an_absent_metric_can_be_tolerated(make_trainer: Any, loader: Any) -> None:
    result = make_trainer(EarlyStopping("other", strict=False), max_epochs=2).fit(Line(), loader)
    assert result.epochs == 2


def test_neither_sanity_check_nor_validate_is_a_check(make_trainer: Any, loader: Any) -> None:
    stopping = EarlyStopping("val", patience=1)
    trainer = make_trainer(stopping, max_epochs=1, num_sanity_val_steps=2)
    task = Line(val=[1, 1])
    trainer.fit(task, loader, loader)
    trainer.validate(task, loader, verbose=False)
    assert stopping.wait_count == 0


def test_two_watch_two_metrics(make_trainer: Any, loader: Any) -> None:
    patient, hasty = EarlyStopping("val", patience=4), EarlyStopping("train", patience=1)
    assert patient.state_key != hasty.state_key
    task = Line(val=[1] * 9, train=[5, 4, 4, 4, 4, 4, 4, 4, 4])
    result = make_trainer(patient, hasty, max_epochs=9).fit(task, loader, loader)
    assert result.epochs == 3
    assert "train did not improve" in result.stop_reason


def test_it_says_what_it_does(make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(EarlyStopping("val", patience=1, verbose=True), max_epochs=3).fit(Line(val=[2, 1, 1]), loader, loader)
    assert capsys.readouterr().out.splitlines() == [
        "EarlyStopping: val improved to 2",
        "EarlyStopping: val improved to 1",
        "EarlyStopping: val did not improve on 1 in the last 1 check",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"), [({"mode": "maximum"}, "'min' or 'max'"), ({"patience": -1}, "at least 0")]
)
def test_mistakes(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EarlyStopping("val", **arguments)
