"""The arguments of a `Trainer`, read into typed objects, with everything that is wrong with them told at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

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

Read = TypeVar("Read")


@dataclass(frozen=True)
class Settings:
    """The constructor's arguments, read."""

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
    return tuple(given)
