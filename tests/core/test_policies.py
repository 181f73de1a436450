from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom import (
    Accumulation,
    Between,
    DebugOptions,
    GradientClipping,
    LimitBatches,
    LogPolicy,
    RunFolder,
    ValidationPolicy,
)


@pytest.mark.holds("CF-06")
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (GradientClipping, None, GradientClipping()),
        (GradientClipping, 1, GradientClipping(max_norm=1.0)),
        (Accumulation, 4, Accumulation(batches=4)),
        (Accumulation, {0: 1, 5: 4}, Accumulation(batches={0: 1, 5: 4})),
        (ValidationPolicy, "2 epochs", ValidationPolicy(every="2 epochs")),
        (ValidationPolicy, None, ValidationPolicy(every=None)),
        (LimitBatches, None, LimitBatches()),
        (LimitBatches, 3, LimitBatches(train=3, validate=3, test=3, predict=3)),
        (LimitBatches, {"train": 0.5}, LimitBatches(train=0.5)),
        (Between, 5, Between(max=5)),
        (Between, -1, Between(max=math.inf)),
        (Between, None, Between()),
        (LogPolicy, "1%", LogPolicy(every="1%")),
        (RunFolder, "out", RunFolder(root="out")),
        (DebugOptions, True, DebugOptions(detect_anomaly=True, check_gradients=True)),
    ],
)
def test_a_plain_value_means_its_usual_object(kind, value, expected):
    assert kind.of(value) == expected
    assert kind.of(expected) is expected


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: GradientClipping(max_norm=1, max_value=1), ValueError, "clipped by norm or by value, not both"),
        (lambda: GradientClipping(max_norm=0), ValueError, "max_norm must be above zero. Got: 0. Fix: leave gradient_"),
        (lambda: GradientClipping(max_value=-1), ValueError, "max_value must be above zero. Got: -1"),
        (lambda: GradientClipping(norm_type=math.nan), ValueError, "norm_type must be above zero. Got: nan"),
        (lambda: Accumulation(0), ValueError, "takes whole numbers of at least 1. Got: 0. Fix: pass 4, or"),
        (lambda: Accumulation(True), ValueError, "takes whole numbers of at least 1. Got: True"),
        (lambda: Accumulation({0: 2.5}), ValueError, "takes whole numbers of at least 1"),
        (lambda: Accumulation({-1: 2}), ValueError, "takes whole numbers of at least 1"),
        (lambda: Accumulation(on_skip="drop"), ValueError, "on_skip has no choice 'drop'. Fix: use one of 'drop_and"),
        (lambda: Accumulation(on_nonfinite="rise"), ValueError, "on_nonfinite has no choice .*Did you mean 'raise'"),
        (lambda: Accumulation(max_consecutive_skips=0), ValueError, "max_consecutive_skips must be at least 1. Got: 0"),
        (lambda: ValidationPolicy(every="sometimes"), ValueError, "This text is not an interval. Got: 'sometimes'"),
        (lambda: ValidationPolicy(start_after="1 week"), ValueError, "An interval has no unit 'week'"),
        (lambda: LimitBatches(train=-1), ValueError, "The limit of 'train' is a number of batches .*Got: -1"),
        (lambda: LimitBatches(test=1.5), ValueError, "The limit of 'test' .*Got: 1.5"),
        (lambda: LimitBatches(overfit=True), ValueError, "The limit of 'overfit' .*Got: True"),
        (lambda: LimitBatches(predict="all"), ValueError, "The limit of 'predict' .*Got: 'all'"),
        (lambda: LimitBatches.of({"trian": 1}), ValueError, "has no stage 'trian'.*Did you mean 'train'"),
        (lambda: Between(3, 2), ValueError, "Bounds of training must satisfy 0 <= min <= max. Got: Between"),
        (lambda: Between.of(-2), ValueError, "Bounds of training must satisfy"),
        (lambda: LogPolicy(0), ValueError, "log_every_n_steps must be at least 1. Got: 0. Fix: use logger=False"),
        (lambda: LogPolicy(True), TypeError, "log_every_n_steps is a whole number or a text. Got: True"),
        (lambda: LogPolicy(2.5), TypeError, "log_every_n_steps is a whole number or a text. Got: 2.5. Fix: pass 50"),
        (lambda: LogPolicy("often"), ValueError, "This text is not an interval. Got: 'often'"),
    ],
)
def test_a_mistake_says_what_to_write(make, error, text):
    with pytest.raises(error, match=text):
        make()


@given(st.dictionaries(st.integers(0, 20), st.integers(1, 9)), st.integers(0, 30))
def test_an_accumulation_schedule_holds_until_the_next_entry(schedule, epoch):
    begun = [start for start in schedule if start <= epoch]
    assert Accumulation(schedule).at_epoch(epoch) == (schedule[max(begun)] if begun else 1)


@given(st.data(), st.integers(1, 10_000))
def test_a_part_of_a_loader_that_is_a_whole_number_of_batches_is_that_number(data, length):
    batches = data.draw(st.integers(1, length))
    assert LimitBatches.apply(batches / length, length, "train") == batches


@pytest.mark.parametrize(
    ("limit", "length", "batches"),
    [(None, 7, 7), (None, math.inf, math.inf), (3, 7, 3), (9, 7, 7), (0, 7, 0), (0.0, 7, 0), (3, math.inf, 3),
     (1.0, math.inf, math.inf), (0.5, 7, 3), (0.29, 100, 29)],
)  # fmt: skip
def test_what_a_limit_leaves(limit, length, batches):
    assert LimitBatches.apply(limit, length, "train") == batches


@pytest.mark.holds("DA-08")
def test_a_part_of_a_loader_without_a_length_is_refused():
    with pytest.raises(ValueError, match=r"The train loader has no length, .*Fix: limit_batches={'train': 100}"):
        LimitBatches.apply(0.5, math.inf, "train")


def test_a_part_that_is_no_batch_is_refused():
    with pytest.raises(ValueError, match=r"The limit of the validate loader leaves no batch of it. Got: 0.01"):
        LimitBatches.apply(0.01, 10, "validate")
