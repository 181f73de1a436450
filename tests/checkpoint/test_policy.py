from __future__ import annotations

from dataclasses import FrozenInstanceError
from datetime import timedelta

import pytest

from taskloom.checkpoint import CheckpointPolicy
from taskloom.core.errors import ConfigError
from taskloom.core.interval import Interval


def test_defaults_are_those_of_the_design():
    policy = CheckpointPolicy()
    assert (policy.monitor, policy.mode, policy.save_top_k, policy.keep_last, policy.every) == (
        None,
        "min",
        1,
        1,
        "1 epoch",
    )
    assert (policy.asynchronous, policy.fsync, policy.weights_only) == (True, True, False)
    with pytest.raises(FrozenInstanceError):
        policy.mode = "max"


def test_intervals_are_parsed():
    assert CheckpointPolicy(every="500 steps").interval == Interval(500, "steps")
    assert CheckpointPolicy(every=timedelta(minutes=10)).interval == Interval(600, "seconds")


def test_all_problems_are_in_one_error():
    with pytest.raises(ConfigError, match=r"^5 problems") as raised:
        CheckpointPolicy(monitor=3, mode="minimum", save_top_k=-2, keep_last=1.5, every="often")
    assert len(raised.value.problems) == 5
    assert "Did you mean 'min'?" in str(raised.value)
    assert "CheckpointPolicy.every: This text is not an interval" in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_top_k": 3}, r"save_top_k=3\) needs a monitor.*or keep_last=3 for the newest"),
        ({"keep_last": 0}, r"would keep no checkpoint at all.*checkpoint=False"),
        ({"monitor": "m", "keep_last": 0, "save_top_k": 0}, r"would keep no checkpoint at all"),
        ({"save_top_k": True}, r"save_top_k is a whole number"),
        ({"monitor": ""}, r"monitor is the name of a logged metric"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointPolicy(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"save_top_k": -1}, {"save_top_k": 0}, {"monitor": "m", "keep_last": 0}, {"save_top_k": -1, "keep_last": 0}],
)
def test_settings_at_the_edge_are_accepted(settings):
    assert CheckpointPolicy(**settings).keeps_everything == (settings.get("save_top_k") == -1)
