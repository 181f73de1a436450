"""`Logger`: where metrics, hyper-parameters and artefacts of a run go; one file beside this one per destination.

Only rank 0 calls a logger. Every logger is given the same x, the optimizer steps of `Progress`, so that curves of
different loggers can be laid over each other (Lightning issue 20368).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from warnings import warn

from taskloom.core.errors import TaskloomWarning, explain


class Logger(ABC):
    """Derive, name it, and write `log_metrics`. Third parties register one as an entry point of `taskloom.loggers`.

    A logger is constructed without side effects; `start` is the first call, on rank 0 only, and `finish` the last.

    Attributes:
        name: what a user types.
    """

    name: ClassVar[str]

    def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
        """Open the destination.

        Args:
            folder: of the run; exists.
            run_name: its name for people.
            project: that services group runs by.
            resumed: the run continues from a checkpoint, so what exists is continued.
        """

    @property
    def experiment(self) -> Any:
        """The raw object of the library behind it, for whatever has no method here; None where there is none."""
        return None

    @property
    def location(self) -> str:
        """Where to look, for the closing line: a path or an address."""
        return ""

    @property
    def viewer(self) -> str:
        """What to type to look at what was recorded, for the closing line; empty where `location` says enough."""
        return ""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int, epoch: int | None = None) -> None:
        """Record values.

        Args:
            metrics: finite or not, by name.
            step: optimizer steps so far; the x. Never decreases.
            epoch: completed epochs; None where the caller has none, as a user's own call in a hook.
        """

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        """Record what the run was made with: plain data, nested."""

    def log_text(self, name: str, text: str, *, step: int) -> None:
        """Record a text."""
        self._cannot("text")

    def log_image(self, name: str, image: Any, *, step: int) -> None:
        """Record an image: height × width × channels, uint8, or float from 0 to 1."""
        self._cannot("images")

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, step: int) -> None:
        """Record a table."""
        self._cannot("tables")

    def log_artifact(self, path: Path, *, name: str | None = None) -> None:
        """Keep a file or folder with the run."""
        self._cannot("artifacts")

    def log_graph(self, module: Any, example_input: Any) -> None:
        """Record the graph of a module."""
        self._cannot("graphs")

    def flush(self) -> None:
        """Write what is buffered."""

    def finish(self, status: str) -> None:
        """Close the destination; `status` is finished, stopped, interrupted or failed."""

    def state_dict(self) -> dict[str, Any]:
        """Return what continues the series after a restart, such as the id of the run."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; called before `start`."""

    def _cannot(self, kind: str) -> None:
        warn(
            explain(
                f"The logger {self.name!r} does not record {kind}; they are dropped",
                fix="add a logger that does, such as TensorBoardLogger",
            ),
            TaskloomWarning,
            stacklevel=3,
        )
