"""Hyper-parameters: what a class was constructed with, remembered so that it can be logged, saved and rebuilt.

The arguments are read from the frame of `__init__`, as users of Lightning expect of `save_hyperparameters`.
"""

from __future__ import annotations

import copy
import inspect
from argparse import Namespace
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from types import FrameType
from typing import Any
from warnings import warn

from torch import nn

from taskloom.core.errors import TaskloomWarning, explain, nearest


class Hyperparameters(dict[str, Any]):
    """A dict whose keys can be read and written as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                explain(
                    f"There is no hyper-parameter {name!r}",
                    got=sorted(self),
                    fix=f"call save_hyperparameters() in __init__, or correct the name.{nearest(name, self)}",
                )
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        del self[name]


def _arguments(frame: FrameType) -> dict[str, Any]:
    names, _, keywords, values = inspect.getargvalues(frame)
    given = {name: values[name] for name in names[1:] if name in values}
    if keywords and keywords in values:
        given.update(values[keywords])
    return given


def _constructor_arguments(owner: object, frame: FrameType | None) -> dict[str, Any]:
    """Collect the arguments of every `__init__` of `owner` on the stack; those of a subclass win over its base's."""
    found: dict[str, Any] = {}
    seen = False
    while frame is not None:
        names = frame.f_code.co_varnames
        is_constructor = frame.f_code.co_name == "__init__" and names and frame.f_locals.get(names[0]) is owner
        if is_constructor:
            found.update(_arguments(frame))
            seen = True
        elif seen:
            break
        frame = frame.f_back
    return found


class HyperparametersMixin:
    """`save_hyperparameters` and `hparams` of `TaskModule` and `DataModule`."""

    _hparams: Hyperparameters | None = None
    _hparams_initial: Hyperparameters | None = None
    _log_hparams: bool = True

    def save_hyperparameters(
        self, *names: Any, ignore: str | Iterable[str] = (), frame: FrameType | None = None, logger: bool = True
    ) -> None:
        """Remember the arguments of `__init__` as `self.hparams`.

        Args:
            *names: keep only these arguments; or one mapping, namespace or dataclass that holds the hyper-parameters.
            ignore: arguments to leave out.
            frame: of `__init__`, when called from a helper.
            logger: send them to the loggers at the start of a run.

        Raises:
            ValueError: a name is not an argument of `__init__`.
        """
        if len(names) == 1 and not isinstance(names[0], str):
            kept = _as_mapping(names[0])
        else:
            current = frame or inspect.currentframe()
            kept = _constructor_arguments(self, current if frame else current.f_back if current else None)
            if names:
                for name in names:
                    if name not in kept:
                        raise ValueError(
                            explain(
                                f"{type(self).__name__}.__init__ has no argument {name!r} to save",
                                got=sorted(kept),
                                fix=f"name one of its arguments.{nearest(str(name), kept)}",
                            )
                        )
                kept = {name: kept[name] for name in names}
        ignored = {ignore} if isinstance(ignore, str) else set(ignore)
        kept = {name: value for name, value in kept.items() if name not in ignored}
        for name, value in kept.items():
            if isinstance(value, nn.Module):
                warn(
                    explain(
                        f"The hyper-parameter {name!r} of {type(self).__name__} is a module",
                        why="its weights are saved with the task's, and a checkpoint refuses hyper-parameters that are "
                        "not data",
                        fix=f"self.save_hyperparameters(ignore=[{name!r}])",
                    ),
                    TaskloomWarning,
                    stacklevel=2,
                )
        merged = Hyperparameters({**(self._hparams or {}), **kept})
        self._hparams = merged
        self._hparams_initial = Hyperparameters({name: _copied(value) for name, value in merged.items()})
        self._log_hparams = logger

    @property
    def hparams(self) -> Hyperparameters:
        """The hyper-parameters, writable; `hparams.lr` and `hparams["lr"]` are the same."""
        if self._hparams is None:
            self._hparams = Hyperparameters()
        return self._hparams

    @property
    def hparams_initial(self) -> Hyperparameters:
        """The hyper-parameters as they were when they were saved."""
        return Hyperparameters(self._hparams_initial or {})

    @property
    def logs_hparams(self) -> bool:
        """Whether `hparams` go to the loggers."""
        return self._log_hparams


def _as_mapping(value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Namespace):
        return dict(vars(value))
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(
        explain("Hyper-parameters are given by argument names or as one mapping, namespace or dataclass", got=value)
    )


def _copied(value: Any) -> Any:
    if isinstance(value, nn.Module):  # possibly too large for a second one
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # an argument may refuse to be copied (a lock, an open file); the record then shares it
        return value
