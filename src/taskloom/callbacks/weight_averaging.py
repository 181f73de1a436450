"""`WeightAveraging`: keep an average of the weights beside them, evaluate it, and have it when training ends.

Names and arguments are those of Lightning's callback of this name. What is different: averages are cut like the
parameters, a failing evaluation leaves the training weights in place, nothing is evaluated before averaging has begun,
a checkpoint holds the training weights as `model` and the averages as a set of their own, and what is decided by epoch
is done before the validation at the epoch's end rather than after it, so that metrics belong to what is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from taskloom.callbacks.averages import Average, Averages, as_average, check_dtype, equally
from taskloom.callbacks.base import Callback
from taskloom.core.errors import CheckpointError, explain

if TYPE_CHECKING:
    from taskloom.checkpoint import CheckpointReader, Shard
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

KIND = "average"


class WeightAveraging(Callback):
    """Averages the weights after optimizer steps, all values equally or by a function of one's own.

    Derive from it and override `should_update` to choose the moments. A step that was skipped (a gradient overflowed in
    fp16, a batch was left out) is no moment.

    Args:
        device: where averages are held, such as `"cpu"` to save memory of an accelerator, at the price of a transfer
            per update; by default that of the weights (also spelt `"same"`).
        use_buffers: average floating-point buffers too, such as the statistics of batch normalisation; without it the
            task's own are used.
        avg_fn: (average, value, updates so far) to the new average, for one tensor, as torch's `AveragedModel` takes
            it.
        multi_avg_fn: the same for lists of tensors, in place.
        dtype: of the averages; by default that of the weights, but at least float32.
        evaluate: use the averages in validations within `fit`, and in `validate`, `test` and `predict` where they are
            given a checkpoint that has them.
        keep_at_end: leave the averages in the task when `fit` ends.
        kind: name of the averages in checkpoints; two callbacks need two names.

    Raises:
        ValueError: both functions are given, or the dtype is none of floating point.
    """

    def __init__(
        self,
        device: str | torch.device | int | None = None,
        use_buffers: bool = True,
        *,
        avg_fn: Callable[[Tensor, Tensor, int], Tensor] | None = None,
        multi_avg_fn: Average | None = None,
        dtype: str | torch.dtype | None = None,
        evaluate: bool = True,
        keep_at_end: bool = True,
        kind: str = KIND,
    ) -> None:
        if avg_fn is not None and multi_avg_fn is not None:
            raise ValueError(
                explain("avg_fn and multi_avg_fn were both given", why="one would be ignored", fix="pass one of them")
            )
        average = multi_avg_fn or (as_average(avg_fn) if avg_fn is not None else equally)
        self.evaluate, self.keep_at_end, self.kind = evaluate, keep_at_end, kind
        self._settings: dict[str, Any] = {
            "average": average,
            "kind": kind,
            "device": None if device in (None, "same") else torch.device(device),
            "dtype": check_dtype(dtype),
            "use_buffers": use_buffers,
        }
        self._averages = Averages(**self._settings)
        self._fitting = False
        self._step, self._joins = 0, False
        self.epoch = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether the weights are averaged now; override to choose. `self.epoch` is the number of the epoch.

        Args:
            step_idx: number of the optimizer step that was just taken, from 0; None at the end of an epoch.
            epoch_idx: number of the epoch whose last batch is done, from 0; None after a step.
        """
        return step_idx is not None

    @property
    def updates(self) -> int:
        """How often the weights were averaged."""
        return self._averages.updates

    @property
    def state_key(self) -> str:
        """The class, and the kind where it is another than usual."""
        name = type(self).__qualname__
        return name if self.kind == KIND else f"{name} {self.kind}"

    def state_dict(self) -> dict[str, Any]:
        """Return the counters; the averages are a set of tensors of the checkpoint."""
        evaluated = self.evaluates_now
        return {"updates": self.updates, "step": self._step, "joins": self._joins, "evaluated": evaluated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them.

        Raises:
            CheckpointError: the checkpoint counts averages and has none.
        """
        if state["updates"] and self._averages.is_empty:
            raise CheckpointError(
                explain(
                    f"The checkpoint counts {state['updates']} updates of the averages {self.kind!r} and has none",
                    fix=f"leave the state of {self.state_key} out, so that averaging begins anew",
                )
            )
        self._averages.updates, self._step, self._joins = state["updates"], state["step"], state["joins"]

    # Averaging --------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        """Begin anew in a fit; in other stages the averages of the last fit are left alone."""
        self._fitting = stage == "fit"
        if self._fitting:
            self._averages = Averages(**self._settings)
            self._step, self._joins, self.epoch = 0, False, 0

    def on_fit_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Find the weights."""
        if not self.updates:
            self._averages = Averages(**self._settings)  # averages whose count was not restored begin anew
        self._averages.bind(trainer.strategy, trainer.model)

    def on_train_epoch_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Look where the weights lie; what was frozen and is trained now is averaged from the next update on."""
        self.epoch = trainer.progress.epochs
        self._averages.refresh()
        if not trainer.progress.batches_in_epoch:
            self._joins = True

    def on_train_batch_end(self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average after a step, and at the end of an epoch."""
        if trainer.progress.steps != self._step:
            self._after_step(trainer.progress.steps)
        if trainer.is_last_batch and self.should_update(epoch_idx=self.epoch):
            self._update()

    def on_train_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Average after a step that the end of an epoch brought about."""
        self._catch_up(trainer)

    def _catch_up(self, trainer: Trainer) -> None:
        if self._fitting and trainer.progress.steps != self._step and not self._averages.held:
            self._after_step(trainer.progress.steps)

    def _after_step(self, steps: int) -> None:
        self._step = steps
        if self.should_update(step_idx=steps - 1):
            self._update()

    def _update(self) -> None:
        if self._joins:
            self._joins = False
            if self.updates:
                self._averages.join()
        self._averages.update()

    # Evaluation -------------------------------------------------------------------------------------------------------

    @property
    def evaluates_now(self) -> bool:
        """Whether a validation now would use the averages."""
        return self.evaluate and self.updates > 0

    def evaluation_context(self, trainer: Trainer, task: TaskModule) -> AbstractContextManager[Any]:
        """Return what evaluates the averages within a fit; other stages have them as the task's weights already."""
        self._catch_up(trainer)
        inside = self._fitting and self.evaluates_now and not self._averages.held
        return self._averages.in_place() if inside else nullcontext()

    def on_exception(self, trainer: Trainer, task: TaskModule, exception: BaseException) -> None:
        """Give back the training weights if the failure came while averages were in place."""
        if self._fitting:
            self._averages.take_back()

    def on_fit_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Leave the averages in the task; `Trainer.save_checkpoint` still saves the training weights as such."""
        if self.keep_at_end and self.updates:
            self._averages.put()

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def checkpoint_shards(self, trainer: Trainer, task: TaskModule) -> Mapping[str, Iterable[Shard]]:
        """Return the averages."""
        self._catch_up(trainer)
        return self._averages.shards() if self.updates else {}

    def load_checkpoint_shards(self, trainer: Trainer, task: TaskModule, reader: CheckpointReader) -> None:
        """Take the averages of a checkpoint: to go on with in a fit, and as the weights of the task elsewhere."""
        if self.kind not in reader.kinds:
            return
        if self._fitting:
            self._averages.bind(trainer.strategy, trainer.model)
            self._averages.load(reader)
            return
        saved = reader.state.get("callbacks", {}).get(self.state_key, {})
        if self.evaluate_loaded(saved):
            averages = Averages(**self._settings)
            averages.bind(trainer.strategy, trainer.model)
            averages.load_in_place(reader)

    def evaluate_loaded(self, saved: Mapping[str, Any]) -> bool:
        """Return whether the averages of a checkpoint are evaluated.

        Args:
            saved: this callback's state in it; empty where it holds weights only.
        """
        return self.evaluate
