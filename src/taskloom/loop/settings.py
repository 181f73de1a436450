"""The arguments of a `Trainer`, read into typed objects, with everything that is wrong with them told at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from taskloom.callbacks import Callback
from taskloom.callbacks.base import check_hook_names
from taskloom.checkpoint import CheckpointPolicy
from taskloom.core.errors import ConfigError, explain
from taskloom.core.policies import (
    Accumulation,
    Between,
    GradientClipping,
    LimitBatches,
    LogPolicy,
    RunFolder,
    ValidationPolicy,
)
from taskloom.loop.evaluating import evaluation_precision
from taskloom.precision import Precision
from taskloom.resolve import Graph

Read = TypeVar("Read")


@dataclass(frozen=True)
class Settings:
    """The constructor's arguments, read.

    Attributes:
        sanity_batches: of each validation loader before training; `inf` for all.
        dry: nothing is written.
        evaluation_precision: of evaluation; None for that of training.
    """

    epochs: Between
    steps: Between
    seconds: float
    accumulation: Accumulation
    clipping: GradientClipping
    validation: ValidationPolicy
    limits: LimitBatches
    logs: LogPolicy
    folder: RunFolder
    policies: tuple[CheckpointPolicy, ...]
    compile: bool | dict[str, Any]
    sanity_batches: float = 2
    dry: bool = False
    seed: int | None = None
    evaluation_precision: Precision | None = None


@dataclass
class ArgumentReader:
    """Reads arguments and gathers what is wrong with them, so that all problems are told at once."""

    problems: list[str] = field(default_factory=list)

    def value(self, name: str, convert: Callable[[Any], Read], value: Any) -> Read | None:
        """Return `convert(value)`; a mistake is noted under the argument's name, and gives None."""
        prefix = f"{name}: " if name else ""
        try:
            return convert(value)
        except ConfigError as error:
            self.problems.extend(f"{prefix}{problem}" for problem in error.problems)
        except (TypeError, ValueError, ImportError) as error:
            self.problems.append(f"{prefix}{error}")
        return None

    def policy(self, name: str, kind: type[Read], value: Any) -> Read:
        """Return `kind.of(value)`; a mistake is noted, and gives the policy's defaults."""
        reader: Any = kind
        read: Read | None = self.value(name, reader.of, value)
        return kind() if read is None else read

    def evaluation_precision(self, settings: Settings, graph: Graph) -> Settings:
        """Return the settings with the precision that their `ValidationPolicy` names."""
        own = self.value("val_check_interval", lambda policy: evaluation_precision(policy, graph), settings.validation)
        return replace(settings, evaluation_precision=own)


def sanity_batches_of(batches: Any) -> float:
    """Read the `num_sanity_val_steps` of a `Trainer`; -1 is all batches."""
    if isinstance(batches, bool) or not isinstance(batches, int) or batches < -1:
        raise ValueError(
            explain("num_sanity_val_steps is a whole number of batches", got=batches, fix="2, 0 for none, -1 for all")
        )
    return math.inf if batches == -1 else batches


def callbacks_of(callbacks: Any) -> list[Callback]:
    """Read the `callbacks` of a `Trainer`: any number of instances, or a single one."""
    if isinstance(callbacks, (Callback, type)):
        callbacks = [callbacks]
    given = list(callbacks or ())
    problems = []
    for callback in given:
        try:
            check_hook_names(callback)
        except TypeError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)
    return given


def policies_of(checkpoint: Any) -> tuple[CheckpointPolicy, ...]:
    """Read the `checkpoint` of a `Trainer`."""
    if checkpoint is True:
        return (CheckpointPolicy(),)
    if checkpoint is False or checkpoint is None:
        return ()
    given = [checkpoint] if isinstance(checkpoint, CheckpointPolicy) else list(checkpoint)
    for policy in given:
        if not isinstance(policy, CheckpointPolicy):
            raise TypeError(explain("checkpoint takes True, False, a CheckpointPolicy or a list of them", got=policy))
    if sum(policy.load_best_at_end for policy in given) > 1:
        raise ValueError(
            explain(
                "Several policies ask for load_best_at_end, and a task can end with one checkpoint's weights only",
                fix="leave it to the policy whose metric decides",
            )
        )
    return tuple(given)
