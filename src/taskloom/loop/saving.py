"""What goes into a checkpoint of a run, and when one is written."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader

from taskloom.checkpoint import CheckpointContent, CheckpointKeeper, CheckpointPolicy, find_aliases
from taskloom.core.interval import Interval
from taskloom.data import NamedLoader, feed
from taskloom.loop.optimization import Optimization
from taskloom.loop.run import Run
from taskloom.loop.trigger import Trigger


def generator_states(run: Run) -> dict[str, Any]:
    """Return the state of every random generator of this process, as data."""
    return {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
        "device": run.strategy.accelerator.rng_state(run.strategy.device),
    }


def restore_generators(run: Run, states: dict[str, Any]) -> None:
    """Restore what `generator_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if states["device"] is not None:
        run.strategy.accelerator.set_rng_state(states["device"], run.strategy.device)


class Saver:
    """Writes checkpoints when its policies say so.

    Args:
        run: the parts of the stage.
        optimization: whose optimizers and schedulers are saved.
        policies: none for a run that saves nothing.
        keepers: one per policy, holding what it keeps.

    Attributes:
        triggers: of the policies, once `plan` was called.
    """

    def __init__(
        self,
        run: Run,
        optimization: Optimization,
        policies: Sequence[CheckpointPolicy],
        keepers: Sequence[CheckpointKeeper],
    ) -> None:
        self._run, self._optimization = run, optimization
        self._policies, self._keepers = list(policies), list(keepers)
        self.triggers: list[Trigger] = []
        self._saved_step = -1
        self._epoch_generators: dict[str, Any] | None = None

    def plan(self, trigger: Callable[[Interval], Trigger]) -> None:
        """Prepare the policies' triggers; `trigger` makes one that knows the length of the run."""
        self.triggers = [trigger(policy.interval) for policy in self._policies]

    def epoch_begins(self) -> None:
        """Remember the generators from which the order of this epoch's data follows."""
        if self._keepers and not self._run.trainer.progress.batches_in_epoch:
            self._epoch_generators = generator_states(self._run)

    def if_due(self, *, at_epoch_end: bool, requested: bool = False) -> None:
        """Save under every policy that is due; those by epoch are due only after it, the others only before its end."""
        progress = self._run.trainer.progress
        saving = []
        for keeper, trigger in zip(self._keepers, self.triggers, strict=True):
            due = (trigger.interval.unit == "epochs") == at_epoch_end and trigger.due(progress)
            if due or requested:
                saving.append((keeper, due))
        self._save(saving)

    def at_end(self) -> None:
        """Save once more if the last step is in no checkpoint yet; also after an interrupt."""
        steps = self._run.trainer.progress.steps
        if steps and steps != self._saved_step:
            self._save([(keeper, False) for keeper in self._keepers])

    def _save(self, keepers: Sequence[tuple[CheckpointKeeper, bool]]) -> None:
        if not keepers:
            return
        # One content for all, so that policies that save at the same step share one checkpoint.
        content = self.content()
        for keeper, on_schedule in keepers:
            keeper.save(content, on_schedule=on_schedule)
        self._saved_step = content.step

    def content(self, *, weights_only: bool = False) -> CheckpointContent:
        """Gather what a checkpoint holds now."""
        run, trainer = self._run, self._run.trainer
        progress, optimization = trainer.progress, self._optimization
        optimizers = dict(zip(optimization.names, optimization.optimizers, strict=True))
        state: dict[str, Any] = {
            "progress": progress.state_dict(),
            "optimizers": run.strategy.optimizer_state(run.module, optimizers),
            "schedulers": [config.scheduler.state_dict() for config in optimization.schedulers.configs],
            "precision": run.strategy.precision.state_dict(),
            "callbacks": {callback.state_key: callback.state_dict() for callback in trainer.callbacks},
            "loggers": trainer.record.loggers.state_dict(),
            "keepers": [keeper.state_dict() for keeper in self._keepers],
            "datamodule": run.datamodule.state_dict() if run.datamodule is not None else {},
            "generators": generator_states(run),
            "epoch_generators": self._epoch_generators,
            "hyper_parameters": dict(run.task.hparams),
            "data_hyper_parameters": dict(run.datamodule.hparams) if run.datamodule is not None else {},
            "task_class": f"{type(run.task).__module__}.{type(run.task).__qualname__}",
        }
        custom: dict[str, Any] = {"epoch": progress.epochs, "global_step": progress.steps}
        for hook in run.hooks.of("on_save_checkpoint"):
            hook(custom)
        state["custom"] = custom
        shards = list(run.strategy.model_shards(run.module))
        return CheckpointContent(
            model=shards,
            optimizer=() if weights_only else list(run.strategy.optimizer_shards(run.module, optimizers)),
            state=state,
            config=trainer.config_text,
            metrics={
                name: (value, run.metrics.measured_at[name]) for name, value in run.metrics.callback_metrics.items()
            },
            step=progress.steps,
            epoch=progress.epochs,
            run_id=trainer.run_id,
            aliases=find_aliases((shard.name, shard.tensor) for shard in shards),
        )

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from a restored state: it is saved already, and its epoch began with these generators."""
        self._saved_step = self._run.trainer.progress.steps
        self._epoch_generators = state["epoch_generators"]

    def resumed_feed(self, loader: NamedLoader, transfer: Callable[[Any], Any] | None) -> Iterator[Any]:
        """Iterate over the rest of an epoch, in the order it began with, reading nothing that was trained on."""
        run, done = self._run, self._run.trainer.progress.batches_in_epoch
        now = generator_states(run)
        if self._epoch_generators is not None:
            restore_generators(run, self._epoch_generators)
        batches = feed(without_first(loader.loader, done), loader.length - done, transfer)
        first = list(islice(batches, 1))
        restore_generators(run, now)
        return chain(first, batches)


class _Skipping:
    """A batch sampler whose first batches of indices are left out, so that their samples are never read."""

    def __init__(self, batch_sampler: Iterable[Any], skipped: int) -> None:
        self._batch_sampler, self._skipped = batch_sampler, skipped

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self._batch_sampler), self._skipped, None)

    def __len__(self) -> int:
        return max(0, len(self._batch_sampler) - self._skipped)  # type: ignore[arg-type]  # every batch sampler torch accepts has a length


def without_first(loader: Iterable[Any], skipped: int) -> Iterable[Any]:
    """Return a view of a loader without its first batches; with a batch sampler their samples are not read.

    The user's loader is not rebuilt: a shallow copy keeps its class, attributes, workers and collate function.
    """
    if isinstance(loader, DataLoader) and loader.batch_sampler is not None:
        clone = copy.copy(loader)
        clone.__dict__["batch_sampler"] = _Skipping(loader.batch_sampler, skipped)
        return clone
    return islice(iter(loader), skipped, None)
