"""`task fit`: train."""

from __future__ import annotations

from taskloom.cli.stage import Stage
from taskloom.cli.task_cli import TaskCLI


def execute(cli: TaskCLI) -> None:
    """Train; the Trainer prints its own closing line."""
    cli.result = cli.trainer.fit(cli.task, datamodule=cli.data, ckpt_path=cli.ckpt_path, restore=cli.restore)


STAGE = Stage("fit", "Train a task.", execute=execute, needs="fit")
