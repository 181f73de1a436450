"""`task test`: one pass over the test data."""

from __future__ import annotations

from taskloom.cli.stage import Stage
from taskloom.cli.task_cli import TaskCLI


def execute(cli: TaskCLI) -> None:
    """Test; the Trainer prints the table of metrics."""
    cli.result = cli.trainer.test(cli.task, datamodule=cli.data, ckpt_path=cli.ckpt_path, restore=cli.restore)


STAGE = Stage("test", "Run the test loop once.", execute=execute)
