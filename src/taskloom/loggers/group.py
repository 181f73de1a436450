"""`LoggerGroup`: all loggers of a run behind one, and what happens when one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

from taskloom.core.errors import TaskloomWarning, explain
from taskloom.loggers.base import Logger
from taskloom.loggers.hyperparameters import sanitize_hyperparameters


@dataclass
class LoggerFailure:
    """What went wrong with one logger.

    Attributes:
        calls: how many calls failed.
        error: the last of them.
    """

    calls: int
    error: str


class LoggerGroup:
    """Hands every call to every logger.

    A logger that cannot start is an error: somebody is watching then, and nothing is lost yet. One that fails later
    costs points of a curve, and that is never worth a training run: the first failure is a warning that names the
    logger, the calls after it are still tried (a server may come back), and `failures` says how many failed, for the
    end of the run.

    Args:
        loggers: their names must differ, because state is saved by name.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)
        self.failures: dict[str, LoggerFailure] = {}
        self._started = False

    def __iter__(self) -> Iterator[Logger]:
        return iter(self.loggers)

    def __len__(self) -> int:
        return len(self.loggers)

    def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
        """Start every logger.

        Raises:
            RuntimeError: one could not start; names it.
        """
        for logger in self.loggers:
            try:
                logger.start(folder, run_name=run_name, project=project, resumed=resumed)
            except Exception as error:
                raise RuntimeError(
                    explain(
                        f"The logger {logger.name!r} could not start",
                        got=f"{type(error).__name__}: {error}",
                        fix="correct it, or leave the logger out",
                    )
                ) from error
        self._started = True

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
        """Record values; see `Logger.log_metrics`."""
        if metrics:
            self._each(lambda logger: logger.log_metrics(metrics, step=step, epoch=epoch))

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Record hyper-parameters, made plain and without secrets."""
        plain = sanitize_hyperparameters(parameters)
        self._each(lambda logger: logger.log_hyperparameters(plain))

    def log_artifact(self, path: Path, *, name: str | None = None) -> None:
        """Keep a file or folder with the run."""
        self._each(lambda logger: logger.log_artifact(path, name=name))

    def flush(self) -> None:
        """Let every logger write what it holds."""
        self._each(lambda logger: logger.flush())

    def finish(self, status: str) -> None:
        """Close every logger."""
        self._each(lambda logger: logger.finish(status))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every logger, by its name."""
        states: dict[str, Any] = {}

        def save(logger: Logger) -> None:
            states[logger.name] = logger.state_dict()

        self._each(save)
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the loggers that are named in `state`; one that was added since begins anew."""
        for logger in self.loggers:
            if logger.name in state:
                logger.load_state_dict(state[logger.name])

    def locations(self) -> list[str]:
        """Return where each logger writes, and which of them failed, for the closing lines."""
        lines = []
        for logger in self.loggers:
            failure = self.failures.get(logger.name)
            missing = f" (incomplete: {failure.calls} calls failed, the last with {failure.error})" if failure else ""
            lines.append(f"{logger.location or logger.name}{missing}" if logger.location or missing else "")
        return [line for line in lines if line]

    def _each(self, call: Callable[[Logger], None]) -> None:
        if not self._started:  # an evaluation without a run folder has nowhere to log to
            return
        for logger in self.loggers:
            try:
                call(logger)
            except Exception as error:  # whatever a service's library raises, training goes on
                self._failed(logger, error)

    def _failed(self, logger: Logger, error: Exception) -> None:
        text = f"{type(error).__name__}: {error}"
        failure = self.failures.get(logger.name)
        if failure is not None:
            failure.calls, failure.error = failure.calls + 1, text
            return
        self.failures[logger.name] = LoggerFailure(1, text)
        warn(
            explain(
                f"The logger {logger.name!r} failed; training goes on and what it was given is lost",
                got=text,
                fix="see the end of the run for how often it failed",
            ),
            TaskloomWarning,
            stacklevel=4,
        )
