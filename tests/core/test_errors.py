from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom import ConfigError
from taskloom.core.errors import MissingPackageError, explain, missing_package, nearest


def test_an_explanation_says_what_got_why_and_fix():
    text = explain("It broke.", got=None, why="it is old.", fix="buy a new one")
    assert text == "It broke. Got: None. Why: it is old. Fix: buy a new one."
    assert explain("It broke") == "It broke."


@given(st.text(min_size=1, alphabet="abcdef_"))
def test_a_known_name_is_nearest_to_itself(name):
    assert nearest(name, [name, "zzzzzzzz"]) == f" Did you mean {name!r}?"


def test_nothing_near_is_nothing_said():
    assert nearest("precision", ["max_epochs"]) == ""


def test_a_configuration_tells_all_its_problems():
    assert str(ConfigError(["alone"])) == "alone"
    error = ConfigError(["one", "two"])
    assert error.problems == ("one", "two")
    assert str(error) == "2 problems in the configuration:\n  1. one\n  2. two"


@pytest.mark.parametrize(
    ("extra", "command"), [("wandb", "pip install 'taskloom[wandb]'"), (None, "pip install wandb")]
)
def test_a_missing_package_names_the_command(extra, command):
    error = missing_package("WandbLogger", "wandb", extra)
    assert isinstance(error, MissingPackageError)
    assert str(error) == f"WandbLogger needs 'wandb', which is not installed. Fix: {command}."
