"""`task test`: one pass over the test data."""

from __future__ import annotations

from taskloom.cli.metrics_table import print_metrics
from taskloom.cli.stage import Stage
from taskloom.cli.task_cli import TaskCLI


def execute(cli: TaskCLI) -> None:
    """Test and print the metrics."""
    cli.result = cli.trainer.test(cli.task, datamodule=cli.data, ckpt_path=cli.ckpt_path, verbose=False)
    if cli.trainer.is_global_zero:
        print_metrics("test", cli.result)


STAGE = Stage("test", "Run the test loop once.", execute=execute)
