"""`task validate`: one pass over the validation data."""

from __future__ import annotations

from taskloom.cli.stage import Stage
from taskloom.cli.task_cli import TaskCLI


def execute(cli: TaskCLI) -> None:
    """Validate; the Trainer prints the table of metrics."""
    cli.result = cli.trainer.validate(cli.task, datamodule=cli.data, ckpt_path=cli.ckpt_path, restore=cli.restore)


STAGE = Stage("validate", "Run the validation loop once, without training.", execute=execute)
