"""What goes into a checkpoint of a run, and when one is written."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch.optim import Optimizer

from taskloom.callbacks import Callback
from taskloom.checkpoint import CheckpointContent, CheckpointKeeper, find_aliases, write_checkpoint
from taskloom.checkpoint.background import BackgroundWriter
from taskloom.checkpoint.folder import checkpoint_name, write_last
from taskloom.checkpoint.left_out import STATE, TensorHashes, without_frozen
from taskloom.checkpoint.manifest import Manifest
from taskloom.checkpoint.place import Place
from taskloom.checkpoint.snapshot import SnapshotBuffers
from taskloom.core.errors import CheckpointError, explain
from taskloom.core.interval import Interval
from taskloom.data import NamedLoader
from taskloom.loop.agenda import Agenda
from taskloom.loop.further import tensor_sets
from taskloom.loop.optimization import Optimization
from taskloom.loop.position import Position, generator_states
from taskloom.loop.run import Run
from taskloom.loop.setup import setup_of
from taskloom.loop.trigger import Trigger
from taskloom.metrics import metric_states


def keyed(callbacks: Sequence[Callback]) -> dict[str, Callback]:
    """Return callbacks by the key their state is saved under; equal ones are told apart by their number."""
    found: dict[str, Callback] = {}
    for callback in callbacks:
        key, number = callback.state_key, 1
        while key in found:
            key, number = f"{callback.state_key} {number}", number + 1
        found[key] = callback
    return found


@runtime_checkable
class Scheduling(Protocol):
    """A scheduler that says whose rates it changes, as those of torch do."""

    optimizer: Any


def owner_of(scheduler: Any, optimization: Optimization) -> str | None:
    """Return the name of the optimizer that a scheduler belongs to; None where it does not say."""
    owner = scheduler.optimizer if isinstance(scheduler, Scheduling) else None
    owned = zip(optimization.names, optimization.optimizers, strict=True)
    return next((name for name, optimizer in owned if optimizer is owner), None)


class Saver:
    """Writes checkpoints when its policies say so.

    Those of asynchronous policies are copied in host memory and written while training goes on. One such save is in
    hand at a time: whatever else saves, or looks at what is kept, waits for it.

    Args:
        run: the parts of the stage.
        optimization: whose optimizers and schedulers are saved.
        loader: training batches, whose position is saved.
        keepers: one per policy, holding what it keeps; none for a run that saves nothing.

    Attributes:
        triggers: of the policies, once `plan` was called.
        position: where in its data the run is.
        agenda: what of the things that are due has happened.
    """

    def __init__(
        self, run: Run, optimization: Optimization, loader: NamedLoader, keepers: Sequence[CheckpointKeeper]
    ) -> None:
        self._run, self._optimization, self._loader = run, optimization, loader
        self._keepers = list(keepers)
        self.position = Position(run, loader)
        self.agenda, self._hashes = Agenda(), TensorHashes()
        self.triggers: list[Trigger] = []
        self._saved_step = self._complete_step = -1
        self._weights_from: Manifest | None = None
        self._buffers, self._background = SnapshotBuffers(), BackgroundWriter(run.trainer.look_between_windows)

    @property
    def keeps(self) -> bool:
        """Whether the run saves anything."""
        return bool(self._keepers)

    @contextmanager
    def attached(self) -> Generator[None, None, None]:
        """Let the task reach its Trainer after the fit, for hooks that add to a checkpoint."""
        task = self._run.task
        task.attach(self._run.trainer, None)
        try:
            yield
        finally:
            task.attach(None, None)

    def plan(self, trigger: Callable[[Interval], Trigger]) -> None:
        """Prepare the policies' triggers; `trigger` makes one that knows the length of the run."""
        self.triggers = [trigger(keeper.policy.interval) for keeper in self._keepers]

    def due(self, *, requested: bool = False) -> list[tuple[CheckpointKeeper, bool]]:
        """Return whose policies ask for a checkpoint now, each with whether that is by its interval."""
        progress = self._run.trainer.progress
        due = [(keeper, trigger.due(progress)) for keeper, trigger in zip(self._keepers, self.triggers, strict=True)]
        return [(keeper, scheduled) for keeper, scheduled in due if scheduled or requested]

    def at_end(self, *, requested: bool = False) -> None:
        """Save once more if that was asked for or the last step is in no checkpoint yet; also after an interrupt."""
        steps = self._run.trainer.progress.steps
        if steps and (requested or steps != self._saved_step):
            self.save([(keeper, False) for keeper in self._keepers])

    @property
    def has_failed(self) -> bool:
        """Whether a save in the background has failed that nobody has been told of."""
        return self._background.has_failed

    def check(self) -> None:
        """Raise the failure of a save in the background, if there was one; does not wait.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        self._background.check()

    def settle(self) -> None:
        """Wait until what was saved is written, and give back the memory of copies.

        Raises:
            CheckpointError: a checkpoint could not be written.
        """
        try:
            self._background.wait()
        finally:
            self._buffers.release()

    def save(self, due: Sequence[tuple[CheckpointKeeper, bool]], earlier: dict[str, Any] | None = None) -> None:
        """Save for some of the policies: one content for all, so that they share one checkpoint.

        Raises:
            ConfigError: a monitored metric is missing, or was measured at an earlier step.
            CheckpointError: this save, or the one before in the background, has failed.
        """
        if not due:
            return
        trainable_only = all(keeper.policy.trainable_only for keeper, _ in due)
        content = self.content(trainable_only=trainable_only, earlier=earlier)
        planned = [(keeper, keeper.plan(content, on_schedule=scheduled)) for keeper, scheduled in due]
        wanted = [(keeper, entry) for keeper, entry in planned if entry is not None]
        later = [each for each in wanted if each[0].policy.asynchronous]
        for keeper, entry in wanted:
            if not keeper.policy.asynchronous:
                keeper.write(content, entry)
        if later:
            taken = self._buffers.take(content)

            def write() -> None:
                for keeper, entry in later:
                    keeper.write(taken, entry)

            self._background.submit(write, later[0][1].name)
        if any(not keeper.policy.weights_only for keeper, _ in wanted):
            self._complete_step = content.step
        self._saved_step = content.step

    def save_to_continue(self, earlier: dict[str, Any] | None = None) -> Path | None:
        """Save what a resume from this very moment needs, though the policies may not keep it.

        Args:
            earlier: what `state` returned at another moment of the same step, to save that.

        Returns:
            The newest checkpoint that training can go on from, whether it was written now or before; None in a run
            that has none, or keeps none.
        """
        trainer, steps = self._run.trainer, self._run.trainer.progress.steps
        try:
            self._background.wait()
        except CheckpointError as error:  # no reason not to try what the process is about to leave
            trainer.record.reporter.message(f"A checkpoint in the background failed: {error}")
            self._saved_step = self._complete_step = -1
        if not self._keepers or not steps or not self.agenda.begun:
            return trainer.last_checkpoint
        path = self._keepers[0].folder / checkpoint_name(steps)
        if steps != self._saved_step:
            self.save([(keeper, False) for keeper in self._keepers], earlier)
            self._background.wait()
        if steps != self._complete_step:
            content = self.content(earlier=earlier)
            write_last(path.parent, write_checkpoint(path, content), path.name, fsync=True)
            self._complete_step = steps
        return path

    def weights_from(self, best: Manifest) -> None:
        """Note that training has ended and its last weights have given way to those of an earlier checkpoint."""
        if best.step != self._run.trainer.progress.steps:
            self._weights_from = best

    def save_elsewhere(self, path: Place, *, weights_only: bool) -> None:
        """Save what is in hand to a place that no policy looks after; return once it is verified.

        Raises:
            CheckpointError: it could not be written, or weights and moments are of different steps.
        """
        best = self._weights_from
        if best is not None and not weights_only:
            raise CheckpointError(
                explain(
                    f"{path} was not saved: the task has the weights of step {best.step}, the optimizer the moments of "
                    f"step {self._run.trainer.progress.steps}",
                    why="CheckpointPolicy(load_best_at_end=True) has loaded the best weights",
                    fix="pass weights_only=True, or copy trainer.last_checkpoint, which training can be resumed from",
                )
            )
        fsync = all(keeper.policy.fsync for keeper in self._keepers)
        write_checkpoint(path, self.content(), fsync=fsync, weights_only=weights_only)

    def _is_complete(self, path: Path) -> bool:
        """Return whether a checkpoint of this run is there that holds more than weights."""
        try:
            manifest = Manifest.read(path)
        except CheckpointError:
            return False
        return manifest.run_id == self._run.trainer.run_id and not manifest.weights_only

    def state(self) -> dict[str, Any]:
        """Gather the state beside tensors that changes in training, and where the run is."""
        run, trainer = self._run, self._run.trainer
        progress, optimization = trainer.progress, self._optimization
        return {
            "progress": progress.state_dict(),
            "optimizers": run.strategy.optimizer_state(run.module, self._optimizers),
            "schedulers": [
                {
                    "class": type(config.scheduler).__name__,
                    "optimizer": owner_of(config.scheduler, optimization),
                    "state": config.scheduler.state_dict(),
                    "seen": optimization.schedulers.seen(number),
                }
                for number, config in enumerate(optimization.schedulers.configs)
            ],
            "precision": run.strategy.precision.state_dict(),
            "callbacks": {key: callback.state_dict() for key, callback in keyed(trainer.active_callbacks).items()},
            "loggers": trainer.record.loggers.state_dict(),
            "keepers": [keeper.state_dict() for keeper in self._keepers],
            "datamodule": run.datamodule.state_dict() if run.datamodule is not None else {},
            "generators": generator_states(run),
            "position": self.position.state_dict(),
            "agenda": self.agenda.state_dict(progress, trainer.requests),
            "metrics": run.metrics.state_dict(),
            "metric_objects": metric_states(run.task),
        }

    @property
    def _optimizers(self) -> dict[str, Optimizer]:
        return dict(zip(self._optimization.names, self._optimization.optimizers, strict=True))

    def content(self, *, trainable_only: bool = False, earlier: dict[str, Any] | None = None) -> CheckpointContent:
        """Gather what a checkpoint holds now.

        Args:
            trainable_only: leave out parameters that are not trained.
            earlier: what `state` returned at the moment that the checkpoint is of, where that is not now.

        Raises:
            CheckpointError: the save in the background, of which this must know the outcome, has failed.
        """
        self._background.wait()
        run, trainer = self._run, self._run.trainer
        further = tensor_sets(run)
        shards, left_out = further.pop("model"), None
        if trainable_only:
            shards, left_out = without_frozen(shards, run.strategy.unwrap(run.module), self._hashes)
        state: dict[str, Any] = {
            **(self.state() if earlier is None else earlier),
            "hyper_parameters": dict(run.task.hparams),
            "data_hyper_parameters": dict(run.datamodule.hparams) if run.datamodule is not None else {},
            "task_class": f"{type(run.task).__module__}.{type(run.task).__qualname__}",
            "setup": setup_of(run, self._loader),
        }
        if left_out is not None:
            state[STATE] = left_out
        progress = state["progress"]
        steps, epochs = progress["steps"], progress["epochs"]
        metrics = {name: (value, run.metrics.measured_at[name]) for name, value in run.metrics.callback_metrics.items()}
        if self._weights_from is not None:
            best = self._weights_from
            steps, epochs, metrics = best.step, best.epoch, dict(best.metrics)
        custom: dict[str, Any] = {"epoch": epochs, "global_step": steps}
        for hook in run.hooks.of("on_save_checkpoint"):
            hook(custom)
        state["custom"] = custom
        return CheckpointContent(
            model=shards,
            optimizer=list(run.strategy.optimizer_shards(run.module, self._optimizers)),
            state=state,
            config=trainer.config_text,
            metrics=metrics,
            step=steps,
            epoch=epochs,
            run_id=trainer.run_id,
            aliases=find_aliases((shard.name, shard.tensor) for shard in shards),
            before=trainer.record.copy_logs,
            further=further,
        )

    def resume(self, state: dict[str, Any], *, restart: bool = False) -> None:
        """Continue from a restored state, which is saved already; with `restart` its epoch's data begin anew."""
        steps, agenda = self._run.trainer.progress.steps, state.get("agenda")
        # one that was written before all was done at its step is not the last word on it
        self._saved_step = steps if agenda is None or agenda["settled"] else -1
        if self._keepers and self._is_complete(self._keepers[0].folder / checkpoint_name(steps)):
            self._complete_step = steps
        self.position.restart = restart
        self.position.load_state_dict(state["position"])
        self.agenda.load_state_dict(agenda)
