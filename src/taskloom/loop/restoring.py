"""Bringing a run back to where a checkpoint was written."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskloom.checkpoint import CheckpointKeeper, CheckpointReader, open_checkpoint
from taskloom.core.errors import CheckpointError, explain
from taskloom.loop.further import load_further
from taskloom.loop.optimization import Optimization
from taskloom.loop.position import restore_generators
from taskloom.loop.run import Run
from taskloom.loop.saving import Saver, keyed
from taskloom.metrics import restore_metric_states


@contextmanager
def opened(path: Path | None) -> Generator[CheckpointReader | None, None, None]:
    """Open a checkpoint, verified, for the length of a `with` block; None for None."""
    if path is None:
        yield None
        return
    reader = open_checkpoint(path, verify=True)
    try:
        yield reader
    finally:
        reader.close()


def restore_weights(run: Run, reader: CheckpointReader) -> None:
    """Hand back what the task and the callbacks had added, then load parameters and buffers.

    The hook comes first, as in Lightning: a task may build from what it saved the very layers that are to be loaded.
    """
    custom = reader.state.get("custom", {})
    for hook in run.hooks.of("on_load_checkpoint"):
        hook(custom)
    run.strategy.load_model(run.module, reader.model_tensors(), strict=run.task.strict_loading)
    load_further(run, reader)


def restore_training(
    run: Run, reader: CheckpointReader, optimization: Optimization, saver: Saver, keepers: Sequence[CheckpointKeeper]
) -> None:
    """Load everything else: moments, schedules, counters, callbacks, random generators.

    Raises:
        CheckpointError: the checkpoint holds weights only, or was written by a run of another shape.
    """
    state, trainer = reader.state, run.trainer
    if "optimizers" not in state:
        raise CheckpointError(
            explain(
                f"{reader.path} holds weights only, so training cannot continue from it",
                fix="start a new training from it with TaskModule.load_from_checkpoint",
            )
        )
    optimizers = dict(zip(optimization.names, optimization.optimizers, strict=True))
    run.strategy.load_optimizers(run.module, optimizers, state["optimizers"], reader.optimizer_tensors())
    _restore_schedulers(optimization, state, reader)
    run.strategy.precision.load_state_dict(state["precision"])
    trainer.progress.load_state_dict(state["progress"])
    optimization.window.skipped = trainer.progress.skipped_batches
    for key, callback in keyed(trainer.active_callbacks).items():
        if key in state["callbacks"]:
            callback.load_state_dict(state["callbacks"][key])
    for keeper, kept in zip(keepers, state["keepers"], strict=False):
        keeper.load_state_dict(kept, resumed_from=reader.path)
    if run.datamodule is not None:
        run.datamodule.load_state_dict(state["datamodule"])
    metrics = reader.manifest.metrics
    run.metrics.callback_metrics.update({name: value for name, (value, _) in metrics.items()})
    run.metrics.measured_at.update({name: step for name, (_, step) in metrics.items()})
    run.metrics.load_state_dict(state["metrics"])
    restore_metric_states(run.task, state["metric_objects"])
    saver.resume(state)
    restore_generators(run, state["generators"])


def _restore_schedulers(optimization: Optimization, state: dict[str, Any], reader: CheckpointReader) -> None:
    configs, saved = optimization.schedulers.configs, state["schedulers"]
    if len(configs) != len(saved):
        raise CheckpointError(
            explain(
                f"{reader.path} has {len(saved)} schedulers and configure_optimizers returned {len(configs)}",
                fix="return the same schedulers as the run that wrote it",
            )
        )
    for config, each in zip(configs, saved, strict=True):
        config.scheduler.load_state_dict(each)
