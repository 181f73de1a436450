"""`Callback`: code that takes part in a run without being part of the task, with Lightning's hook names.

A hook that is not overridden is never called. A method that looks like a hook but is none (`on_train_batch_ends`) is an
error when the callback reaches a Trainer, because it would be silently ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from taskloom.core.errors import explain, nearest

if TYPE_CHECKING:
    from taskloom.checkpoint import CheckpointPolicy, CheckpointReader, Shard
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer


class Callback:
    """Override any of the hooks; the order in which they run is the docstring of `taskloom.loop.fit`.

    Attributes:
        monitor: the metric it decides by. A monitoring callback runs after the task in `on_train_epoch_end`, when the
            epoch's metrics are known.
        saves_on_exception: the run saves a checkpoint when it fails.
        before: callback classes that this one must run before.
        after: callback classes that this one must run after.
    """

    monitor: str | None = None
    saves_on_exception: bool = False
    before: ClassVar[Sequence[type[Callback]]] = ()
    after: ClassVar[Sequence[type[Callback]]] = ()

    @property
    def state_key(self) -> str:
        """Under which its state is saved; override where two callbacks of one class differ in their settings."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Return data (JSON or tensors) to save in checkpoints."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def checkpoint_shards(self, trainer: Trainer, task: TaskModule) -> Mapping[str, Iterable[Shard]]:
        """Return tensors that are too large for `state_dict`, this process's pieces by the kind they are stored under.

        A kind is a folder of the checkpoint beside `model` and `optimizer`, so its name must be free. Only a callback
        that holds the true weights itself for a while, as during an evaluation of other ones, returns `model`: its
        pieces take the place of those of the task.
        """
        return {}

    def load_checkpoint_shards(self, trainer: Trainer, task: TaskModule, reader: CheckpointReader) -> None:
        """Take what `checkpoint_shards` gave, if the checkpoint has it; the task's own weights are loaded already.

        Called in every stage that is given a checkpoint; in `fit` before `load_state_dict`.
        """

    def evaluation_context(self, trainer: Trainer, task: TaskModule) -> AbstractContextManager[Any]:
        """Return what each evaluation or prediction happens within, from before its first hook to after its last.

        It is left however the evaluation ends, so what it changes about the task it can change back.
        """
        return nullcontext()

    def checkpoint_policies(self) -> Sequence[CheckpointPolicy]:
        """Return policies to add to the Trainer's own; for callbacks that decide about checkpoints."""
        return ()

    def setup(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        """The stage (fit, validate, test, predict) begins."""

    def teardown(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        """The stage ends, also after a failure."""

    def on_fit_start(self, trainer: Trainer, task: TaskModule) -> None:
        """`fit` begins; the state of a checkpoint is restored."""

    def on_fit_end(self, trainer: Trainer, task: TaskModule) -> None:
        """`fit` ends."""

    def on_sanity_check_start(self, trainer: Trainer, task: TaskModule) -> None:
        """The few validation batches before training begin."""

    def on_sanity_check_end(self, trainer: Trainer, task: TaskModule) -> None:
        """They end."""

    def on_train_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Training begins."""

    def on_train_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Training ends."""

    def on_train_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """An epoch begins."""

    def on_train_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """An epoch ends."""

    def on_train_batch_start(self, trainer: Trainer, task: TaskModule, batch: Any, batch_idx: int) -> int | None:
        """A batch begins; returning -1 ends the epoch."""

    def on_train_batch_end(self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A batch ends, after the optimizer step where it completed a window."""

    def on_before_zero_grad(self, trainer: Trainer, task: TaskModule, optimizer: Optimizer) -> None:
        """Gradients can be read for the last time."""

    def on_before_backward(self, trainer: Trainer, task: TaskModule, loss: Tensor) -> None:
        """The backward pass begins."""

    def on_after_backward(self, trainer: Trainer, task: TaskModule) -> None:
        """The backward pass ends."""

    def on_before_optimizer_step(self, trainer: Trainer, task: TaskModule, optimizer: Optimizer) -> None:
        """Gradients are complete and unscaled, not yet clipped."""

    def on_validation_start(self, trainer: Trainer, task: TaskModule) -> None:
        """A validation begins."""

    def on_validation_end(self, trainer: Trainer, task: TaskModule) -> None:
        """A validation ends; its metrics are known."""

    def on_validation_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Before its first batch."""

    def on_validation_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """After its last batch."""

    def on_validation_batch_start(
        self, trainer: Trainer, task: TaskModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A validation batch begins."""

    def on_validation_batch_end(
        self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A validation batch ends."""

    def on_test_start(self, trainer: Trainer, task: TaskModule) -> None:
        """A test begins."""

    def on_test_end(self, trainer: Trainer, task: TaskModule) -> None:
        """A test ends; its metrics are known."""

    def on_test_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Before its first batch."""

    def on_test_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """After its last batch."""

    def on_test_batch_start(
        self, trainer: Trainer, task: TaskModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A test batch begins."""

    def on_test_batch_end(
        self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A test batch ends."""

    def on_predict_start(self, trainer: Trainer, task: TaskModule) -> None:
        """A prediction begins."""

    def on_predict_end(self, trainer: Trainer, task: TaskModule) -> None:
        """A prediction ends."""

    def on_predict_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Before its first batch."""

    def on_predict_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """After its last batch."""

    def on_predict_batch_start(
        self, trainer: Trainer, task: TaskModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A prediction batch begins."""

    def on_predict_batch_end(
        self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """A prediction batch ends."""

    def on_log(self, trainer: Trainer, task: TaskModule, metrics: Mapping[str, float], step: int) -> None:
        """Metrics were flushed: in training at the logging interval, after evaluations, and at the end of an epoch."""

    def on_push_begin(self, trainer: Trainer, task: TaskModule, path: Path) -> None:
        """A file or folder is about to be handed to the loggers (`Trainer.log_artifact`)."""

    def on_exception(self, trainer: Trainer, task: TaskModule, exception: BaseException) -> None:
        """The stage fails, or is interrupted."""

    def on_save_checkpoint(self, trainer: Trainer, task: TaskModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is about to be written; add data (JSON or tensors) to it."""

    def on_load_checkpoint(self, trainer: Trainer, task: TaskModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read."""


HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))


def check_hook_names(callback: Callback) -> None:
    """Hold a callback's methods against the hooks there are.

    Raises:
        TypeError: it is no `Callback`, or has a method `on_...` that no loop will call.
    """
    if not isinstance(callback, Callback):
        raise TypeError(
            explain(
                "A callback must be an instance of taskloom.Callback",
                got=callback,
                fix="derive its class from Callback, and pass an instance rather than the class",
            )
        )
    for name in dir(type(callback)):
        if name.startswith("on_") and name not in HOOKS and callable(getattr(type(callback), name)):
            raise TypeError(
                explain(
                    f"{type(callback).__name__}.{name} is not a hook, so nothing would ever call it",
                    fix=f"correct the name, or let it begin with an underscore.{nearest(name, HOOKS)}",
                )
            )


def ordered(callbacks: Sequence[Callback]) -> list[Callback]:
    """Return callbacks in the order they were given, changed only where `before` and `after` ask for it.

    Raises:
        ValueError: the wishes contradict each other.
    """
    waiting, done = list(callbacks), []
    while waiting:
        for candidate in waiting:
            others = [other for other in waiting if other is not candidate]
            if not any(
                isinstance(candidate, tuple(other.before)) or isinstance(other, tuple(candidate.after))
                for other in others
            ):
                break
        else:
            names = ", ".join(type(callback).__name__ for callback in waiting)
            raise ValueError(
                explain(
                    f"The order of these callbacks cannot be satisfied: {names}",
                    why="their `before` and `after` form a circle",
                    fix="remove one of the wishes",
                )
            )
        waiting.remove(candidate)
        done.append(candidate)
    return done
