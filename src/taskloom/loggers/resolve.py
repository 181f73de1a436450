"""From what a user typed to loggers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from taskloom.core.errors import MissingPackageError, explain, nearest
from taskloom.loggers.base import Logger
from taskloom.loggers.csv import CSVLogger
from taskloom.loggers.jsonl import JSONLLogger
from taskloom.loggers.tensorboard import TensorBoardLogger

ENTRY_POINTS = "taskloom.loggers"
_OWN: dict[str, Callable[[], Logger]] = {logger.name: logger for logger in (CSVLogger, JSONLLogger, TensorBoardLogger)}


def resolve_loggers(value: bool | str | Logger | Iterable[str | Logger] | None = True) -> list[Logger]:
    """Return the loggers that a `Trainer`'s `logger` asks for.

    Args:
        value: True for CSV; False, None or `"none"` for none; `"csv"`, `"jsonl"`, `"tensorboard"`, or a name that a
            package registered as an entry point of the group `taskloom.loggers`; `"all"` for every one whose package is
            installed; a logger; or a list of names and loggers.

    Raises:
        ValueError: a name is unknown, or two loggers have the same name.
        TypeError: it is something else.
        MissingPackageError: a logger was named whose package is not installed.
    """
    if value is None or value is False or value == "none":
        return []
    if value is True:
        return [CSVLogger()]
    if value == "all":
        return _all()
    if isinstance(value, (str, Logger)):
        return [_one(value)]
    if isinstance(value, type) or not isinstance(value, Iterable):
        raise TypeError(
            explain(
                "logger takes True, False, a name, a Logger or a list of them",
                got=value,
                fix="pass an instance, such as CSVLogger()",
            )
        )
    loggers = [_one(each) for each in value]
    names = [logger.name for logger in loggers]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                explain(
                    f"Two loggers are called {name!r}",
                    why="they would write into the same place, and their state is saved by name",
                    fix="leave one out, or derive a class with another `name`",
                )
            )
    return loggers


def logger_names() -> list[str]:
    """Return every name a user can type for a logger."""
    return sorted({*_OWN, *_registered()})


def _registered() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _one(value: str | Logger) -> Logger:
    if isinstance(value, Logger):
        return value
    if not isinstance(value, str):
        raise TypeError(
            explain(
                "A logger is a name or an instance of taskloom.Logger",
                got=value,
                fix="pass an instance, such as CSVLogger()",
            )
        )
    if value in _OWN:
        return _OWN[value]()
    registered = _registered()
    if value in registered:
        return _load(registered[value])
    names = logger_names()
    raise ValueError(
        explain(
            f"There is no logger {value!r}",
            fix=f"use one of {', '.join(map(repr, names))}, 'all' or 'none'.{nearest(value, [*names, 'all', 'none'])}",
        )
    )


def _load(entry: EntryPoint) -> Logger:
    logger = entry.load()()
    if not isinstance(logger, Logger):
        raise TypeError(
            explain(
                f"The entry point {entry.name!r} of {ENTRY_POINTS} did not make a taskloom.Logger",
                got=logger,
                fix=f"let {entry.value} be a class derived from taskloom.Logger",
            )
        )
    return logger


def _all() -> list[Logger]:
    loggers = []
    for name in logger_names():
        try:
            loggers.append(_one(name))
        except MissingPackageError:
            continue
    return loggers
