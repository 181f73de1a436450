"""Every error says what happened, what was got, why it cannot work and what to do instead.

`explain` is the one shape of those texts, so that a reader learns to scan them. User mistakes raise `ValueError` or
`TypeError`, a call at the wrong moment `RuntimeError`, a configuration `ConfigError` with all of its problems at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Final


class _Absent:
    def __repr__(self) -> str:
        return "<absent>"


ABSENT: Final = _Absent()


class TaskloomWarning(UserWarning):
    """A thing that works but is probably not what was meant."""


class ConfigError(ValueError):
    """A configuration that cannot run, with every problem that was found in it.

    Args:
        problems: one text per problem, each complete by itself.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(self.problems, 1))
            super().__init__(f"{len(self.problems)} problems in the configuration:\n{listed}")


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; names the file and the remedy."""


class Preempted(SystemExit):
    """The process was asked to leave, by a signal, and has left its work in a state that can be continued.

    Not caught, it ends the process with the exit code 75 and without a traceback: 75 is `EX_TEMPFAIL` of sysexits.h,
    "a temporary failure, try again later". What follows a `fit` in a script does not run, because the fit is not over.

    Args:
        signal: name of the signal that arrived.

    Attributes:
        checkpoint: to continue from; None where nothing was saved yet.
        requeued: the job was handed back to its scheduler, which will start it again.
    """

    exit_code: Final = 75

    def __init__(self, signal: str) -> None:
        super().__init__(self.exit_code)
        self.signal = signal
        self.checkpoint: Path | None = None
        self.requeued = False


class NonFiniteError(RuntimeError):
    """A loss or a gradient became NaN or infinite and the policy says to stop."""


class MissingPackageError(ImportError):
    """An optional package is needed by what was asked for."""


def explain(what: str, *, got: object = ABSENT, why: str = "", fix: str = "") -> str:
    """Compose an error text: what happened, what was got, why it cannot work, what to do.

    Args:
        what: the mistake, as a sentence without its full stop.
        got: the offending value; shown with `repr`.
        why: the reason, as a sentence.
        fix: the remedy, as text to paste or follow.
    """
    parts = [what.rstrip(".") + "."]
    if got is not ABSENT:
        parts.append(f"Got: {got!r}.")
    if why:
        parts.append(f"Why: {why.rstrip('.')}.")
    if fix:
        parts.append(f"Fix: {fix.rstrip('.')}{'' if fix.endswith('?') else '.'}")
    return " ".join(parts)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known name closest to `name`, or an empty text."""
    close = get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def missing_package(feature: str, package: str, extra: str | None = None) -> MissingPackageError:
    """Build the error for an optional package that is not installed."""
    command = f"pip install 'taskloom[{extra}]'" if extra else f"pip install {package}"
    return MissingPackageError(explain(f"{feature} needs {package!r}, which is not installed", fix=command))


def require_package(feature: str, requirement: str, extra: str | None = None) -> None:
    """Hold that an optional package is installed, in a version that will do.

    Args:
        feature: what needs it.
        requirement: as pip reads it, such as `"tensorboard>=2.16"`.
        extra: of taskloom that brings it.

    Raises:
        MissingPackageError: it is not there, or too old; names what to install.
    """
    from lightning_utilities.core.imports import RequirementCache

    if not RequirementCache(requirement):
        raise missing_package(feature, requirement, extra)
