"""The fit loop. What follows is a contract, held by tests that trace every hook (tests/loop/traces).

```
configure_callbacks → prepare_data → setup("fit") → configure_model → train_dataloader → val_dataloader → wrap
→ configure_optimizers → restore (on_load_checkpoint) → on_fit_start
→ on_sanity_check_start → a few validation batches → on_sanity_check_end
on_train_start
  on_train_epoch_start
    transfer hooks → on_train_batch_start
      [window opens] on_before_zero_grad → zero_grad
        (gradients can be read until here, and are gone before the forward pass)
      training_step → on_before_backward → backward → on_after_backward
      [window complete] on_before_optimizer_step (gradients unscaled, not yet clipped)
        → configure_gradient_clipping → optimizer.step → schedulers by step
    on_train_batch_end
    [due at this step] metrics flushed → on_log
      → on_validation_model_zero_grad → validation → its metrics committed → early stopping → on_log
      → schedulers by step that watch a metric → checkpoint (on_save_checkpoint)
  [the epoch's last batch] schedulers by epoch → what is due at this step, but the checkpoint → metrics flushed → on_log
  on_train_epoch_end → the epoch's metrics committed → on_log → on_train_epoch_end of callbacks that monitor
  → schedulers by epoch that watch a metric → [due at this step or epoch] checkpoint
on_train_end → [asked for in it] validation → [asked for, or the last step is in no checkpoint] checkpoint
→ on_fit_end → teardown
(on_exception on the way out of any failure, then teardown)
```

Within one moment callbacks run before the task, in `setup` and `teardown` the data module before both. A training step
that runs inside a closure (`optimizer_step` is overridden, or the optimizer is LBFGS) has the same hooks in the same
order. What is due is looked for between windows only, so a checkpoint never splits one. A training that is ended by
`max_steps`, `max_time`, a fraction of `max_epochs` or `should_stop` in the middle of an epoch still ends that epoch's
hooks, but does not count the epoch, and its schedulers by epoch do not step. A run that is resumed in the middle of an
epoch calls on_train_epoch_start again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from torch import Tensor

from taskloom.core.errors import explain
from taskloom.core.hooks import overridden
from taskloom.core.interval import Interval
from taskloom.core.loss import Loss
from taskloom.core.policies import Accumulation, LogPolicy, ValidationPolicy
from taskloom.core.progress import Progress
from taskloom.core.task import TaskModule
from taskloom.core.transfer import count_samples
from taskloom.data import NamedLoader
from taskloom.data.loaders import declared_batch_size, with_last
from taskloom.loop.best import load_best
from taskloom.loop.boundary import Boundary
from taskloom.loop.evaluate import EvaluateLoop
from taskloom.loop.limits import Limits
from taskloom.loop.optimization import Optimization
from taskloom.loop.run import Run, generators_kept
from taskloom.loop.saving import Saver
from taskloom.loop.stopwatch import Stopwatch
from taskloom.loop.trigger import Trigger
from taskloom.report.base import epoch_title

_TRAIN = "train"
_BOUNDARIES, _VALIDATION, _CHECKPOINTS = "epoch boundaries", "validation", "checkpoints"


class FitLoop:
    """Trains a task. See the module's text for the order of everything.

    Args:
        run: the parts of the stage.
        loader: training batches.
        optimization: how a batch becomes a step.
        validation: the loop to validate with, or None.
        limits: when training ends.
        saver: the checkpoint policies.
        logs: when metrics are flushed.
        policy: when validation runs.
        accumulation: micro-batches per window.

    Attributes:
        running: batches are being trained on, so Ctrl-C waits for the end of a step.
        between: no batch is in hand.
        is_last_batch: the batch in hand is the last of its epoch.
    """

    _clock = staticmethod(time.perf_counter)

    def __init__(
        self,
        run: Run,
        loader: NamedLoader,
        optimization: Optimization,
        validation: EvaluateLoop | None,
        *,
        limits: Limits,
        saver: Saver,
        logs: LogPolicy,
        policy: ValidationPolicy,
        accumulation: Accumulation,
    ) -> None:
        self.run_parts, self.loader, self.optimization, self.validation = run, loader, optimization, validation
        self.limits, self.saver, self.accumulation, self.logs = limits, saver, accumulation, logs
        self.progress: Progress = run.trainer.progress
        self.running = self.is_last_batch = False
        self.training_loss, self._losses = 0.0, 0
        trigger = partial(Trigger, batches_per_epoch=loader.length, total_steps=limits.total_steps)
        self._log_trigger = trigger(logs.interval())
        start_after = None if policy.start_after is None else Interval.parse(policy.start_after)
        self._validation_trigger = (
            None
            if policy.every is None or validation is None
            else trigger(Interval.parse(policy.every), start_after=start_after)
        )
        saver.plan(trigger)
        named = {"log": self._log_trigger, "validation": self._validation_trigger}
        named.update({f"checkpoint {number}": each for number, each in enumerate(saver.triggers)})
        self.agenda, self.between = saver.agenda, True
        keeps = any(callback.saves_on_exception for callback in run.trainer.active_callbacks)
        self._boundary = Boundary(saver, run.module) if keeps and saver.keeps and run.trainer.world_size == 1 else None
        self.agenda.plan({name: trigger for name, trigger in named.items() if trigger is not None})
        self._triggers = [trigger for trigger in named.values() if trigger is not None]
        hooks = run.hooks
        self._epoch_start = hooks.of("on_train_epoch_start")
        self._epoch_end = hooks.of_callbacks("on_train_epoch_end", monitoring=False) + hooks.of_task(
            "on_train_epoch_end"
        )
        self._epoch_end_monitors = hooks.of_callbacks("on_train_epoch_end", monitoring=True)
        self._batch_start, self._batch_end = hooks.of("on_train_batch_start"), hooks.of("on_train_batch_end")
        self._log_hooks = hooks.of_callbacks("on_log")
        self._tokens = overridden(run.task, "num_tokens", TaskModule)
        self._shown_skips = (0, 0)
        self.aside = Stopwatch(self._clock)
        self._next_check = self._next_time = self._due_time = self._began = 0.0

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until a limit is reached or a stop is asked for."""
        run, progress = self.run_parts, self.progress
        self._began = self._clock() - progress.seconds
        self._shown_skips = (progress.skipped_batches, progress.skipped_steps)
        self._take_up()
        run.metrics.enter(_TRAIN, training=True)
        run.metrics.level = "epoch"
        run.call("on_train_start")
        self.aside.start(_BOUNDARIES)
        self.running = True
        try:
            while self.agenda.epoch_open or not self._is_over():
                run.trainer.leave_if_preempted()
                self._epoch()
            run.trainer.take_requests()  # a Ctrl-C in the last moments of an epoch
        finally:
            self.running = False
            self.saver.position.close()
        self.aside.stop()
        run.call("on_train_end")
        requests = run.trainer.take_requests()
        if self.validation is not None and "validate" in requests:
            self._validate(self.validation)
            run.metrics.leave()
        self.aside.start(_CHECKPOINTS)
        self.saver.at_end(requested="save" in requests)
        self.saver.settle()
        load_best(run, self.saver, run.trainer.checkpoints)
        self.aside.stop()

    def _take_up(self) -> None:
        """Go on where the counters stand; what a checkpoint found undone is still to be done."""
        trainer, agenda = self.run_parts.trainer, self.agenda
        trainer.requests.update(agenda.requests)
        agenda.begin(self.progress)
        if agenda.stop is not None:
            trainer.should_stop, trainer.stop_reason, agenda.stop = True, agenda.stop, None

    def wake(self) -> None:
        """Look at what is due after the batch in hand, whatever was planned."""
        self._next_check = 0.0

    def _epoch(self) -> None:
        run, progress, optimization, metrics = self.run_parts, self.progress, self.optimization, self.run_parts.metrics
        over = self._begin_epoch()
        train_batch, window = optimization.train_batch, optimization.window
        batch_start, batch_end, tokens, clock = self._batch_start, self._batch_end, self._tokens, self._clock
        batch_size = declared_batch_size(self.loader.loader)
        last, batch, output, in_full = None, None, None, not over
        batches = iter(()) if over else self._batches()
        boundary, self.between = self._boundary, False
        if boundary is not None:
            boundary.take(progress.micro_batches)
        first = list(islice(batches, 1))
        self.aside.stop()  # the boundary between two epochs ends where the first batch is there
        batches = chain(first, batches)
        del first
        for last, batch in batches:
            metrics.batch = batch
            batch_idx = progress.batches_in_epoch
            self.is_last_batch = last
            if batch_start and -1 in [hook(batch, batch_idx) for hook in batch_start]:
                break
            output = train_batch(batch, batch_idx, last)
            if tokens is not None:
                progress.tokens += tokens(batch)
            progress.batches_in_epoch = batch_idx + 1
            progress.samples += batch_size if batch_size and not last else count_samples(batch) or 0
            progress.micro_batches += 1
            if batch_end:
                outputs = _for_hooks(output)
                for hook in batch_end:
                    hook(outputs, batch, batch_idx)
                outputs = None
            output = None  # what a step returned beside its loss must not outlive it
            now = clock()
            if now >= self._next_time:
                self._on_time(now)
            if progress.micro_batches >= self._next_check and not window.filled and not last:
                self._between_windows(epoch_ended=False)
                self.between = False
                if self._is_over():
                    in_full = False
                    break
            if boundary is not None and not window.filled:
                boundary.take(progress.micro_batches)
        self.between = True
        self.aside.start(_BOUNDARIES)
        metrics.batch = batch = None
        if last is None and not progress.batches_in_epoch:
            raise ValueError(
                explain(
                    "The training loader yielded no batch",
                    got=self.loader.loader,
                    why="nothing can be learned from it",
                    fix="check its data set; an iterator that was used up cannot be iterated over again",
                )
            )
        optimization.finish_epoch(max(progress.batches_in_epoch - 1, 0))
        part_done = progress.batches_in_epoch >= self.limits.batches_of(progress.epochs) < self.loader.length
        done = progress.batches_in_epoch
        self._finish_epoch(in_full and not part_done)
        run.reporter.finish(done, metrics.progress_bar_metrics)

    def _begin_epoch(self) -> bool:
        """Begin an epoch, or go on with one; return whether no batch of it is to be trained on any more."""
        run, progress, agenda = self.run_parts, self.progress, self.agenda
        resumed, agenda.epoch_open = agenda.epoch_open, True
        run.metrics.enter(_TRAIN, training=True)
        run.metrics.level = "epoch"
        self.optimization.window.batches = self.accumulation.at_epoch(progress.epochs)
        self.saver.position.begin_epoch()
        for hook in self._epoch_start:
            hook()
        run.metrics.level = "batch"
        run.reporter.start(
            epoch_title(progress.epochs, self.limits.epochs_shown),
            self.limits.batches_of(progress.epochs),
            done=progress.batches_in_epoch,
        )
        self._plan()
        if not resumed or self.saver.position.epoch_read:
            return False
        if not agenda.is_settled(progress):
            self._between_windows(epoch_ended=False)
        return self._is_over()

    def _batches(self) -> Iterator[tuple[bool, Any]]:
        """Yield batches with whether each is the epoch's last, from the position of the counters on."""
        progress, position = self.progress, self.saver.position
        if position.epoch_read:
            return iter(())
        most = self.limits.batches_of(progress.epochs)
        batches = position.batches(self.run_parts.transfer(), most)
        if self.loader.exact:
            return zip(chain(repeat(False, int(most) - progress.batches_in_epoch - 1), (True,)), batches, strict=False)
        return ((last, batch) for batch, last in with_last(batches))

    # Between windows --------------------------------------------------------------------------------------------------

    def _between_windows(self, *, epoch_ended: bool) -> bool:
        """Do what is due at this step, in the order of the contract.

        Args:
            epoch_ended: the epoch is about to end; a checkpoint waits until it has, so that it is resumed after it.

        Returns:
            Whether a checkpoint that was asked for waits.
        """
        run, progress, self.between = self.run_parts, self.progress, True
        progress.seconds = self._clock() - self._began
        progress.skipped_batches = self.optimization.window.skipped
        self.saver.check()
        run.trainer.leave_if_preempted()
        requests = run.trainer.take_requests()
        if self._log_trigger.due(progress) or "log" in requests or (self.logs.first_step and progress.steps == 1):
            self._flush()
        with self.agenda.undone_if_left("validation", requests, run.trainer.requests):
            due = self._validation_trigger is not None and self._validation_trigger.due(
                progress, epoch_ended=epoch_ended
            )
            validates = due or "validate" in requests
            if self.validation is not None and validates:
                self._validate(self.validation)
        self.agenda.settle(progress)
        saved = not epoch_ended and self._save(requested="save" in requests)
        self._plan()
        if (validates or saved) and not self._is_over():
            run.trainer.leave_if_preempted()  # what has just ended took long, so do not train for another step
        return epoch_ended and "save" in requests

    def _plan(self) -> None:
        """Work out how many batches and seconds may pass before anything can be due."""
        progress, trainer = self.progress, self.run_parts.trainer
        waits = [trigger.wait(progress) for trigger in self._triggers]
        together = trainer.world_size > 1  # another process may be asked to leave, and all must leave at one step
        if together or trainer.is_asked or (self.logs.first_step and progress.steps == 0):
            waits.append(1)
        self._next_check = progress.micro_batches + min([*waits, self.limits.wait(progress)])
        seconds = [trigger.wait_seconds(progress) for trigger in self._triggers]
        self._due_time = self._clock() + min([*seconds, self.limits.wait_seconds(progress)])
        self._next_time = min(self._due_time, self.run_parts.reporter.next_refresh)
        if trainer.is_asked or self.saver.has_failed:  # by what happened while this was worked out
            self.wake()

    def _on_time(self, now: float) -> None:
        """Refresh the progress display, and look between windows once something is due by the clock."""
        reporter = self.run_parts.reporter
        if now >= reporter.next_refresh:
            reporter.refresh(now, self.progress.batches_in_epoch, self.run_parts.metrics.peek())
        if now >= self._due_time:
            self.wake()
            self._due_time = math.inf
        self._next_time = min(self._due_time, reporter.next_refresh)

    def _flush(self) -> None:
        progress = self.progress
        self.read_losses()
        reported = self.run_parts.metrics.flush(progress.steps)
        skips = (progress.skipped_batches, progress.skipped_steps)
        if skips != self._shown_skips:
            self._shown_skips = skips
            reported.update(skipped_batches=skips[0], skipped_steps=skips[1])
        self.run_parts.trainer.record.log(reported, self._log_hooks)

    def read_losses(self) -> None:
        """Take in the losses since the last time.

        Raises:
            NonFiniteError: one of them is not finite and the policy is to stop.
        """
        total, count = self.optimization.window.take_loss()
        self.training_loss, self._losses = self.training_loss + total, self._losses + count

    def save_after_failure(self) -> Path | str:
        """Save a training in which something has failed, as of the last moment at which it was whole.

        Returns:
            The checkpoint, or why there is none.
        """
        boundary, earlier = self._boundary, None
        if boundary is None or not self.progress.steps or not self.agenda.begun:
            return "no step had been made" if boundary is not None else "the run keeps no checkpoints of its own"
        ended = not self.optimization.window.filled and self.progress.micro_batches > boundary.micro_batches
        if not self.between and not ended:
            if not boundary.weights_unchanged:
                return "the optimizer's step itself failed, so weights may be half changed"
            earlier = boundary.put_back()
        return self.saver.save_to_continue(earlier) or "the run keeps no checkpoints"

    def _validate(self, validation: EvaluateLoop) -> None:
        run = self.run_parts
        self.aside.start(_VALIDATION)
        try:
            with validation.undone_if_left():
                run.task.on_validation_model_zero_grad()
                with generators_kept(run.strategy), run.trainer.staged("validate"):
                    validation.evaluate()
        finally:
            self.aside.stop()
        run.metrics.enter(_TRAIN, training=True)
        self.optimization.schedulers.after_validation()

    def _save(self, *, requested: bool) -> bool:
        """Save for the policies that ask for it now; return whether any did."""
        due = self.saver.due(requested=requested)
        if due:
            self.read_losses()  # weights that a loss of NaN has spoilt are not worth keeping
            self.aside.start(_CHECKPOINTS)
            self.saver.save(due)
            self.aside.stop()
        return bool(due)

    def _finish_epoch(self, in_full: bool) -> None:
        run, progress, schedulers = self.run_parts, self.progress, self.optimization.schedulers
        position = self.saver.position
        if in_full and not position.epoch_read:
            position.epoch_read = True
            schedulers.after_epoch_batches()
        save_asked = self._between_windows(epoch_ended=in_full)
        self._flush()
        run.metrics.enter(_TRAIN, training=True)
        run.metrics.level = "epoch"
        for hook in self._epoch_end:
            hook()
        reported = run.metrics.commit([_TRAIN], progress.steps)
        if reported:
            run.trainer.record.log(reported, self._log_hooks)
        for hook in self._epoch_end_monitors:
            hook()
        self.agenda.epoch_open = False
        if in_full:
            schedulers.after_epoch()
            progress.epochs += 1
            progress.batches_in_epoch = 0
            position.epoch_read = False
            self._save(requested=save_asked)

    def _is_over(self) -> bool:
        trainer = self.run_parts.trainer
        return self.limits.reached(self.progress) or (trainer.should_stop and self.limits.may_stop(self.progress))

    @property
    def mean_training_loss(self) -> float:
        """Mean of the losses of all batches that were read so far; NaN before the first flush."""
        return self.training_loss / self._losses if self._losses else math.nan


def _for_hooks(output: Any) -> Any:
    """Return what `on_train_batch_end` is given: a dict with `"loss"`, as in Lightning, and nothing with a graph."""
    if isinstance(output, Loss):
        return {"loss": output.mean.detach()}
    if isinstance(output, Tensor):
        return {"loss": output.detach()}
    if isinstance(output, dict):
        return {
            name: value.mean.detach()
            if isinstance(value, Loss)
            else value.detach()
            if isinstance(value, Tensor)
            else value
            for name, value in output.items()
        }
    return output
