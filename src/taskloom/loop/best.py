"""Ending a fit with the weights of its best checkpoint, as the Transformers Trainer's `load_best_model_at_end` does."""

from __future__ import annotations

from collections.abc import Sequence
from warnings import warn

from taskloom.checkpoint import CheckpointKeeper, open_checkpoint
from taskloom.checkpoint.restore import RestorePolicy
from taskloom.core.errors import TaskloomWarning, explain
from taskloom.loop.restoring import Restoration, restore_weights
from taskloom.loop.run import Run
from taskloom.loop.saving import Saver


def load_best(run: Run, saver: Saver, keepers: Sequence[CheckpointKeeper]) -> None:
    """Load the best weights into the task where a policy asks for it; the checkpoint is verified first.

    Raises:
        CheckpointError: the best checkpoint is damaged or gone.
    """
    keeper = next((keeper for keeper in keepers if keeper.policy.load_best_at_end), None)
    if keeper is None:
        return
    monitor, path = keeper.policy.monitor, keeper.best_path
    if path is None:
        warn(
            explain(
                f"No checkpoint is best by {monitor!r}, so the task keeps the weights of the last step",
                why="no checkpoint was saved at a step at which it was measured and finite",
                fix="save at the interval of the validation: CheckpointPolicy(every=...) equal to val_check_interval",
            ),
            TaskloomWarning,
            stacklevel=2,
        )
        return
    with open_checkpoint(path, verify=True) as reader:
        restore_weights(run, Restoration(reader, RestorePolicy()))
        saver.weights_from(reader.manifest)
    if run.trainer.is_global_zero:
        run.reporter.message(
            f"The task has the weights of the best checkpoint, {path.name} ({monitor} {keeper.best_score:.4g})."
        )
