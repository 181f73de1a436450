from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom import Interval
from taskloom.core.interval import parse_seconds


@pytest.mark.parametrize(
    ("value", "amount", "unit"),
    [
        ("1 epoch", 1, "epochs"),
        ("0.5 epochs", 0.5, "epochs"),
        (" 500 Steps ", 500, "steps"),
        ("200 batches", 200, "batches"),
        ("1 batch", 1, "batches"),
        ("10 minutes", 600, "seconds"),
        ("2 min", 120, "seconds"),
        ("1.5 h", 5400, "seconds"),
        ("3 days", 3 * 86400, "seconds"),
        ("10 s", 10, "seconds"),
        ("10%", 0.1, "run"),
        ("00:01:00:00", 3600, "seconds"),
        ("00:01:30", 90, "seconds"),
        (7, 7, "batches"),
        (0.25, 0.25, "epochs"),
        (timedelta(minutes=1), 60, "seconds"),
        (Interval(3, "steps"), 3, "steps"),
    ],
)
def test_every_accepted_spelling(value, amount, unit):
    assert Interval.parse(value) == Interval(amount, unit)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("soon", ValueError, "This text is not an interval. Got: 'soon'. Fix: write '1 epoch'"),
        ("-1 epoch", ValueError, "This text is not an interval"),
        ("3 fortnights", ValueError, "An interval has no unit 'fortnights'"),
        ("2.5 steps", ValueError, "An interval of steps must be a positive whole amount. Got: 2.5"),
        ("0 epochs", ValueError, "An interval of epochs must be a positive amount. Got: 0.0"),
        ("150%", ValueError, "An interval of run must be a positive amount. Got: 1.5"),
        (0, ValueError, "An interval of batches must be a positive whole amount"),
        (1.5, ValueError, "A float interval is a part of an epoch, above 0 and at most 1.0. Got: 1.5"),
        (True, TypeError, "An interval cannot be read from this type. Got: True"),
        (None, TypeError, "An interval cannot be read from this type. Got: None"),
    ],
)
def test_a_mistake_says_what_to_write(value, error, text):
    with pytest.raises(error, match=text.replace("'", ".")):
        Interval.parse(value)


def test_a_unit_that_there_is_not():
    with pytest.raises(ValueError, match=r"An interval has no such unit. Got: 'weeks'. Fix: use one of epochs, steps"):
        Interval(1, "weeks")


whole = st.integers(1, 10**12)
part = st.floats(1e-6, 1e9, allow_nan=False)


@given(
    st.one_of(
        st.builds(Interval, whole, st.sampled_from(["steps", "batches"])),
        st.builds(Interval, part, st.sampled_from(["epochs", "seconds"])),
        st.builds(Interval, st.floats(1e-6, 1), st.just("run")),
    )
)
def test_its_text_is_read_back_as_the_same_interval(interval):
    assert Interval.parse(str(interval)) == interval


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1 batch"), ("1234567 steps", "1234567 steps"), ("7%", "7%"), ("90 seconds", "90 seconds"), (1.0, "1 epoch")],
)
def test_its_text_is_what_one_would_write(value, text):
    assert str(Interval.parse(value)) == text


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("2 hours", 7200), ("00:12:00:00", 43200), (timedelta(1), 86400), ({"minutes": 2}, 120), (5, 5)],
)
def test_durations_in_time(value, seconds):
    assert parse_seconds(value) == seconds


def test_a_duration_in_steps_is_none_in_time():
    with pytest.raises(ValueError, match=r"A duration in time was expected. Got: '5 steps'. Fix: write '10 minutes'"):
        parse_seconds("5 steps")
