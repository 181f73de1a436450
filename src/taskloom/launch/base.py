"""Starting the processes of a run, and bringing results, exceptions and exit codes back; one file per way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar


class Launcher(ABC):
    """Starts processes. Knows nothing of the model. Third parties register one through `taskloom.launchers`.

    Attributes:
        name: what a user types.
        starts_processes: False when the caller's own process is all there is, or others have been started already.
    """

    name: ClassVar[str]
    starts_processes: ClassVar[bool]

    @abstractmethod
    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run `function` in every process and return rank 0's result; raise the exception of the first failing rank."""


class InProcess(Launcher):
    """The caller's process is the one that works."""

    name = "in_process"
    starts_processes = False

    def launch(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return function(*args, **kwargs)
