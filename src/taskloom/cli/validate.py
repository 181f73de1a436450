"""`task validate`: one pass over the validation data."""

from __future__ import annotations

from taskloom.cli.metrics_table import print_metrics
from taskloom.cli.stage import Stage
from taskloom.cli.task_cli import TaskCLI


def execute(cli: TaskCLI) -> None:
    """Validate and print the metrics."""
    cli.result = cli.trainer.validate(cli.task, datamodule=cli.data, ckpt_path=cli.ckpt_path, verbose=False)
    if cli.trainer.is_global_zero:
        print_metrics("validation", cli.result)


STAGE = Stage("validate", "Run the validation loop once, without training.", execute=execute)
