"""From what a user typed to loggers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from taskloom.core.errors import MissingPackageError
from taskloom.loggers import CSVLogger, JSONLLogger, Logger, TensorBoardLogger, resolve_loggers


class Remote(Logger):
    """What a third party would write."""

    name = "remote"

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None: ...


@pytest.fixture
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three packages that registered loggers: one works, one is no logger, one lacks its package."""
    targets = {"remote": Remote, "wrong": dict, "absent": _needs_a_package}
    entries = [EntryPoint(name, f"package:{name}", "taskloom.loggers") for name in targets]
    monkeypatch.setattr("taskloom.loggers.resolve.entry_points", lambda group: entries)
    monkeypatch.setattr(EntryPoint, "load", lambda self: targets[self.name])


def _needs_a_package() -> Logger:
    raise MissingPackageError("it is not installed")


@pytest.mark.holds("LG-04")
@pytest.mark.parametrize(
    ("value", "kinds"),
    [
        (True, [CSVLogger]),
        (False, []),
        (None, []),
        ("none", []),
        ([], []),
        ("csv", [CSVLogger]),
        ("jsonl", [JSONLLogger]),
        ("tensorboard", [TensorBoardLogger]),
        ("all", [CSVLogger, JSONLLogger, TensorBoardLogger]),
        (["jsonl", CSVLogger()], [JSONLLogger, CSVLogger]),
        (CSVLogger(), [CSVLogger]),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_values(value: Any, kinds: list[type[Logger]]) -> None:
    assert [type(logger) for logger in resolve_loggers(value)] == kinds


@pytest.mark.holds("LG-13")
@pytest.mark.usefixtures("_registered")
def test_loggers_of_other_packages() -> None:
    assert isinstance(resolve_loggers("remote")[0], Remote)
    with pytest.raises(TypeError, match=r"'wrong' of taskloom\.loggers did not make a taskloom\.Logger"):
        resolve_loggers("wrong")


def test_all_leaves_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda requirement: False)
    assert [logger.name for logger in resolve_loggers("all")] == ["csv", "jsonl"]


@pytest.mark.holds("LG-04")
@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("tensorbord", ValueError, "no logger 'tensorbord'.* Did you mean 'tensorboard'"),
        (["csv", "csv"], ValueError, "Two loggers are called 'csv'"),
        (CSVLogger, TypeError, r"pass an instance, such as CSVLogger\(\)"),
        ([CSVLogger], TypeError, r"pass an instance, such as CSVLogger\(\)"),
        (3, TypeError, "logger takes True, False, a name"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_mistakes(value: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        resolve_loggers(value)
