"""`task ckpt`: look at checkpoints, compare them, export them, bring weights in, and free space.

Each subcommand is a module with a function `run(args)` that returns an exit code. Nothing heavy is imported before one
of them needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Final

from taskloom.core.errors import CheckpointError, ConfigError, explain, nearest


@dataclass(frozen=True)
class Subcommand:
    """What is typed after `task ckpt`, and its line in the help."""

    name: str
    summary: str

    @property
    def module(self) -> str:
        """Where its code lives."""
        return f"taskloom.cli.ckpt.{self.name.replace('import', 'import_weights')}"


SUBCOMMANDS: Final = {
    each.name: each
    for each in (
        Subcommand("ls", "list the checkpoints of a run, or of all runs"),
        Subcommand("show", "tell what a checkpoint holds"),
        Subcommand("verify", "compare every file of checkpoints with its hash"),
        Subcommand("diff", "tell what differs between two checkpoints"),
        Subcommand("export", "write the weights as plain safetensors files"),
        Subcommand("import", "make a checkpoint of the weights of another framework"),
        Subcommand("merge", "copy a checkpoint with every tensor in one piece"),
        Subcommand("upgrade", "rewrite checkpoints of an older format"),
        Subcommand("prune", "delete checkpoints, and what killed saves have left"),
        Subcommand("pin", "keep checkpoints whatever the policies say"),
        Subcommand("unpin", "undo pin"),
    )
}


def run(args: Sequence[str]) -> None:
    """Run a subcommand.

    Raises:
        ConfigError: there is no such subcommand, or an argument cannot be used.
        CheckpointError: a checkpoint or a place cannot be read or written.
        SystemExit: with the exit code, where that is not 0.
    """
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return
    if name not in SUBCOMMANDS:
        what = explain("There is no such command", got=name, fix=f"use one of {', '.join(SUBCOMMANDS)}")
        raise ConfigError([f"command ckpt {name}: {what}{nearest(name, SUBCOMMANDS)}"])
    try:
        code: int = import_module(SUBCOMMANDS[name].module).run(list(args[1:]))
        sys.stdout.flush()  # where the reader of a pipe is gone, this tells
    except BrokenPipeError:  # `task ckpt ls | head`
        sys.stderr.close()
        raise SystemExit(0) from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)]) from None
    except OSError as error:
        raise CheckpointError(str(error)) from None
    if code:
        raise SystemExit(code)


def _overview() -> str:
    width = max(map(len, SUBCOMMANDS)) + 2
    return "\n".join(
        [
            "usage: task ckpt COMMAND [options]",
            "",
            "Look at checkpoints, compare them, export them, bring weights in, and free space.",
            "",
            "commands:",
            *(f"  {name:<{width}}{each.summary}" for name, each in SUBCOMMANDS.items()),
            "",
            "A PATH is a checkpoint, a run (its newest good checkpoint), `last`, `best`, or a URL such as s3://bucket/runs/a.",
            "`task ckpt COMMAND --help` describes a command.",
            "",
            "examples:",
            "  task ckpt ls",
            "  task ckpt export last weights --dtype bf16 --strip_prefix net.",
            "  task ckpt diff step-00001000 step-00002000",
            "  task ckpt prune runs/digits --keep_last 2 --keep_best 1 --dry_run",
        ]
    )
