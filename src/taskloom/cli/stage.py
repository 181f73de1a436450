"""A stage command: one method of the `Trainer`, the options it adds, and what is done with its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from taskloom.cli.schema import Parameter

if TYPE_CHECKING:
    from taskloom.cli.task_cli import TaskCLI


@dataclass(frozen=True)
class Stage:
    """One stage command.

    Args:
        name: the subcommand.
        description: first line of its help.
        execute: runs the stage on built objects and reports; `None` for a command that builds nothing.
        inspect: what a command that builds nothing does with the checked configuration.
        options: parameters beside those of every stage, with their help.
        needs: what the configuration must be complete for.
    """

    name: str
    description: str
    execute: Callable[[TaskCLI], None] | None = None
    inspect: Callable[[TaskCLI], None] | None = None
    options: Mapping[str, tuple[Parameter, str]] = field(default_factory=dict)
    needs: str = ""
