"""The subcommands of `task`, in one small table that their help and their dispatch share.

Nothing here imports anything heavy: `task --help` answers from this table alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Command:
    """One subcommand.

    Args:
        name: what is typed.
        module: where its code lives.
        summary: its line in `task --help`.
        stage: whether it reads a configuration of trainer, task and data, so that a project's own `TaskCLI` offers it
            too.
    """

    name: str
    module: str
    summary: str
    stage: bool = False


COMMANDS: Final = {
    command.name: command
    for command in (
        Command("fit", "taskloom.cli.fit", "train a task", stage=True),
        Command("validate", "taskloom.cli.validate", "run the validation loop once, without training", stage=True),
        Command("test", "taskloom.cli.test", "run the test loop once", stage=True),
        Command("predict", "taskloom.cli.predict", "predict and, with --output, write the predictions", stage=True),
        Command("check", "taskloom.cli.check", "check a configuration without loading data", stage=True),
        Command("ckpt", "taskloom.cli.ckpt", "list, check, compare, export, import and prune checkpoints"),
        Command("new", "taskloom.cli.new", "start a project from a template, or update one"),
        Command("env", "taskloom.cli.env", "report versions, devices and optional packages"),
    )
}


def overview(prog: str, commands: dict[str, Command], version: str = "") -> str:
    """Return the help that lists the subcommands."""
    width = max(len(name) for name in commands) + 2
    lines = [
        f"usage: {prog} COMMAND [options]",
        "",
        "Train PyTorch models from a configuration file, the command line, or both.",
        "",
        "commands:",
        *(f"  {name:<{width}}{command.summary}" for name, command in commands.items()),
        "",
        "options:",
        f"  {'-h, --help':<{width + 12}}show this and exit; `{prog} COMMAND --help` describes a command",
    ]
    if version:
        lines.append(f"  {'--version':<{width + 12}}print the version and exit")
    lines += [
        "",
        "examples:",
        f"  {prog} fit --config cfg.yaml",
        f"  {prog} fit --config cfg.yaml --precision bf16-mixed --task.lr 3e-4",
        f"  {prog} check --config cfg.yaml",
    ]
    if "new" in commands:
        lines.append(f"  {prog} new minimal my-project")
    return "\n".join(lines)
