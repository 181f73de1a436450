"""The fit loop. What follows is a contract, held by a test that counts and orders every hook.

```
configure_callbacks → prepare_data → setup("fit") → configure_model → train_dataloader → wrap
→ configure_optimizers → restore → on_fit_start
→ on_sanity_check_start → a few validation batches → on_sanity_check_end
on_train_start
  on_train_epoch_start
    transfer hooks → on_train_batch_start
      [window opens] on_before_zero_grad → zero_grad
        (gradients can be read until here, and are gone before the forward pass)
      training_step → on_before_backward → backward → on_after_backward
      [window complete] on_before_optimizer_step (gradients unscaled, not yet clipped)
        → clip → optimizer.step → scheduler.step
    on_train_batch_end → metrics flushed if due → on_log
    [the epoch's last batch] schedulers by epoch
    [due at this step] validation → its metrics committed → early stopping
      → schedulers that watch a metric → checkpoint
  on_train_epoch_end → the epoch's metrics committed → on_log → on_train_epoch_end of callbacks that monitor
  [due at this epoch] schedulers that watch a metric → checkpoint
on_train_end → [if the last step is in no checkpoint] checkpoint → on_fit_end → teardown
(on_exception on the way out of any failure)
```

Within one moment callbacks run before the task. What is due is looked for between windows only, so a checkpoint never
splits one. A training that is ended by `max_steps`, `max_time` or `should_stop` in the middle of an epoch still ends
that epoch's hooks, but does not count the epoch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, repeat
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
from taskloom.data import NamedLoader, feed
from taskloom.data.loaders import with_last
from taskloom.loop.evaluate import EvaluateLoop
from taskloom.loop.limits import Limits
from taskloom.loop.optimization import Optimization
from taskloom.loop.run import Run, generators_kept
from taskloom.loop.saving import Saver
from taskloom.loop.trigger import Trigger
from taskloom.report.base import epoch_title

_TRAIN = "train"


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
        is_last_batch: the batch in hand is the last of its epoch; kept up to date where a hook could ask.
    """

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
        self.is_last_batch = False
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
        hooks = run.hooks
        self._epoch_start = hooks.of("on_train_epoch_start")
        self._epoch_end = hooks.of_callbacks("on_train_epoch_end", monitoring=False) + hooks.of_task(
            "on_train_epoch_end"
        )
        self._epoch_end_monitors = hooks.of_callbacks("on_train_epoch_end", monitoring=True)
        self._batch_start, self._batch_end = hooks.of("on_train_batch_start"), hooks.of("on_train_batch_end")
        self._log_hooks = hooks.of_callbacks("on_log")
        self._tokens = overridden(run.task, "num_tokens", TaskModule)
        self._next_check = 0.0
        self._next_time = 0.0
        self._began = 0.0
        self.running = False

    # Running ----------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train until a limit is reached or a stop is asked for."""
        run, progress = self.run_parts, self.progress
        self._began = time.perf_counter() - progress.seconds
        for trigger in (self._log_trigger, self._validation_trigger, *self.saver.triggers):
            if trigger is not None:
                trigger.begin(progress)
        run.metrics.enter(_TRAIN, training=True)
        run.metrics.level = "epoch"
        run.call("on_train_start")
        self.running = True
        while not self.limits.reached(progress) and not self._stopping():
            self._epoch()
        self.running = False
        run.call("on_train_end")
        self.saver.at_end()

    def wake(self) -> None:
        """Look at what is due after the batch in hand, whatever was planned."""
        self._next_check = 0.0

    def _epoch(self) -> None:
        run, progress, optimization, metrics = self.run_parts, self.progress, self.optimization, self.run_parts.metrics
        self._begin_epoch()
        train_batch, window, reporter = optimization.train_batch, optimization.window, run.reporter
        batch_start, batch_end, tokens, clock = self._batch_start, self._batch_end, self._tokens, time.perf_counter
        started_at = progress.micro_batches
        ended, left = True, False
        for last, batch in self._batches():
            metrics.batch = batch
            batch_idx = progress.batches_in_epoch
            if batch_start and -1 in [hook(batch, batch_idx) for hook in batch_start]:
                left = True
                break
            output = train_batch(batch, batch_idx, last)
            progress.batches_in_epoch = batch_idx + 1
            progress.micro_batches += 1
            progress.samples += count_samples(batch) or 0
            if tokens is not None:
                progress.tokens += tokens(batch)
            if batch_end:
                self.is_last_batch = last
                outputs = _for_hooks(output)
                for hook in batch_end:
                    hook(outputs, batch, batch_idx)
            now = clock()
            if now >= self._next_time:
                self._on_time(now)
            if progress.micro_batches >= self._next_check and not window.filled and not last:
                self._between_windows(epoch_ended=False)
                if self.limits.reached(progress) or self._stopping():
                    ended = False
                    break
        metrics.batch = None
        if progress.micro_batches == started_at and not progress.batches_in_epoch and not left:
            raise ValueError(
                explain(
                    "The training loader yielded no batch",
                    got=self.loader.loader,
                    why="nothing can be learned from it",
                    fix="check its data set; an iterator that was used up cannot be iterated over again",
                )
            )
        optimization.finish_epoch(progress.batches_in_epoch)
        self._finish_epoch(ended)
        reporter.finish(
            progress.batches_in_epoch if not ended else int(min(self.loader.length, 2**62)),
            metrics.progress_bar_metrics,
        )

    def _begin_epoch(self) -> None:
        run, progress = self.run_parts, self.progress
        run.metrics.enter(_TRAIN, training=True)
        run.metrics.level = "epoch"
        self.optimization.window.batches = self.accumulation.at_epoch(progress.epochs)
        self.saver.epoch_begins()
        for hook in self._epoch_start:
            hook()
        run.metrics.level = "batch"
        run.reporter.start(
            epoch_title(progress.epochs, self.limits.epochs_shown), self.loader.length, done=progress.batches_in_epoch
        )
        self._plan()

    def _batches(self) -> Iterator[tuple[bool, Any]]:
        """Yield batches with whether each is the epoch's last, from the position of the counters on."""
        loader, done = self.loader, self.progress.batches_in_epoch
        length = loader.length
        if loader.exact:
            remaining = int(length) - done
            batches = (
                self.saver.resumed_feed(loader, self.run_parts.transfer())
                if done
                else feed(loader.loader, length, self.run_parts.transfer())
            )
            return zip(chain(repeat(False, remaining - 1), (True,)), batches, strict=False)
        batches = (
            self.saver.resumed_feed(loader, self.run_parts.transfer())
            if done
            else feed(loader.loader, length, self.run_parts.transfer())
        )
        return ((last, batch) for batch, last in with_last(batches))

    # Between windows --------------------------------------------------------------------------------------------------

    def _between_windows(self, *, epoch_ended: bool) -> None:
        """Do what is due at this step, in the order of the contract."""
        run, progress = self.run_parts, self.progress
        progress.seconds = time.perf_counter() - self._began
        progress.skipped_batches = self.optimization.window.skipped
        requests = run.trainer.take_requests()
        if self._log_trigger.due(progress) or "log" in requests or (self.logs.first_step and progress.steps == 1):
            self._flush()
        due = self._validation_trigger is not None and self._validation_trigger.due(progress, epoch_ended=epoch_ended)
        if self.validation is not None and (due or "validate" in requests):
            self._validate()
        self.saver.if_due(at_epoch_end=False, requested="save" in requests)
        self._plan()

    def _plan(self) -> None:
        """Work out how many batches and seconds may pass before anything can be due."""
        progress = self.progress
        triggers = [
            trigger
            for trigger in (self._log_trigger, self._validation_trigger, *self.saver.triggers)
            if trigger is not None
        ]
        waits = [trigger.wait(progress) for trigger in triggers]
        if self.logs.first_step and progress.steps == 0:
            waits.append(1)
        self._next_check = progress.micro_batches + min([*waits, self.limits.wait(progress)])
        seconds = min([*(trigger.wait_seconds(progress) for trigger in triggers), self.limits.wait_seconds(progress)])
        self._due_time = time.perf_counter() + seconds
        self._next_time = min(self._due_time, self.run_parts.reporter.next_refresh)

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
        total, count = self.optimization.window.take_loss()
        self.training_loss, self._losses = self.training_loss + total, self._losses + count
        self.run_parts.trainer.record.log(self.run_parts.metrics.flush(self.progress.steps), self._log_hooks)

    def _validate(self) -> None:
        run = self.run_parts
        assert_validation = self.validation
        if assert_validation is None:
            return
        run.task.on_validation_model_zero_grad()
        with generators_kept(run.strategy), run.trainer.staged("validate"):
            assert_validation.evaluate()
        run.metrics.enter(_TRAIN, training=True)
        self.optimization.schedulers.after_validation()

    def _finish_epoch(self, ended: bool) -> None:
        run, progress = self.run_parts, self.progress
        if ended:
            self.optimization.schedulers.after_epoch_batches()
        self._between_windows(epoch_ended=ended)
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
        if ended:
            self.optimization.schedulers.after_epoch()
            progress.epochs += 1
            progress.batches_in_epoch = 0
            self.saver.if_due(at_epoch_end=True)

    def _stopping(self) -> bool:
        trainer = self.run_parts.trainer
        return trainer.should_stop and self.limits.may_stop(self.progress)

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
