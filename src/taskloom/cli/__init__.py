"""The command line: `task fit|validate|test|predict|check|ckpt|new|env`, and `TaskCLI` for a project's own command.

This module imports nothing heavy, so that `task --help` answers at once; each command is imported when it is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from taskloom.cli.commands import COMMANDS, overview

if TYPE_CHECKING:
    from taskloom.cli.task_cli import TaskCLI as TaskCLI

__all__ = ["TaskCLI", "main"]


def __getattr__(name: str) -> Any:
    if name != "TaskCLI":
        raise AttributeError(f"module 'taskloom.cli' has no attribute {name!r}")
    from taskloom.cli.task_cli import TaskCLI

    return TaskCLI


def main(args: Sequence[str] | None = None) -> None:
    """Run the program `task`.

    Args:
        args: the command line without the program's name; by default that of the process.

    Raises:
        SystemExit: with 2 for mistakes in arguments or configuration, 130 after Ctrl-C.
    """
    from taskloom import __version__

    words = list(sys.argv[1:] if args is None else args)
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        print(overview("task", COMMANDS, __version__))
    elif first == "--version":
        print(f"taskloom {__version__}")
    elif first == "--print_completion":
        from taskloom.cli.completion import print_completion
        from taskloom.cli.exits import exit_cleanly

        exit_cleanly(lambda: print_completion(words[1:]))
    elif first not in COMMANDS:
        from taskloom.core.errors import explain, nearest

        print(
            "error: "
            + explain("There is no such command", got=first, fix=f"use one of {', '.join(COMMANDS)}")
            + nearest(first, COMMANDS),
            file=sys.stderr,
        )
        raise SystemExit(2)
    elif COMMANDS[first].stage:
        from taskloom.cli.exits import exit_cleanly
        from taskloom.cli.task_cli import TaskCLI

        exit_cleanly(lambda: TaskCLI(args=words, subclass_mode_task=True, subclass_mode_data=True, prog="task"))
    else:
        from taskloom.cli.exits import exit_cleanly

        exit_cleanly(lambda: import_module(COMMANDS[first].module).run(words[1:]))
