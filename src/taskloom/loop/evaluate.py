"""The validation and test loops.

```
[within fit] on_validation_model_zero_grad
on_validation_model_eval
on_validation_start
  on_validation_epoch_start
    per loader, per batch: transfer hooks → on_validation_batch_start → validation_step → on_validation_batch_end
  on_validation_epoch_end
  metric commit                     (epoch values over all loaders and processes)
on_validation_end                   (early stopping looks at them)
on_validation_model_train, and every submodule is in the mode it had before → on_log
```

`test` is the same with its own hooks. Every sample counts once: values are sums and weights until the commit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal

from taskloom.core.errors import explain
from taskloom.core.policies import ValidationPolicy
from taskloom.data import NamedLoader, feed
from taskloom.data.worker_signals import outliving
from taskloom.loop.evaluating import evaluating, ordinary_tensors
from taskloom.loop.run import Run, fit_arguments
from taskloom.metrics.objects import metric_updates, reset_updated

Stage = Literal["validate", "test"]
_PREFIXES = {"validate": "validation", "test": "test"}


class EvaluateLoop:
    """Evaluates a task on the loaders of one stage, as often as it is run.

    Args:
        run: the parts of the stage.
        stage: whose step and hooks.
        loaders: at least one.
        policy: how evaluation is run.

    Attributes:
        suffixes: that tell the metrics of each loader apart, where there are several.
    """

    def __init__(self, run: Run, stage: Stage, loaders: Sequence[NamedLoader], policy: ValidationPolicy) -> None:
        self.run, self.stage, self.loaders, self.policy = run, stage, list(loaders), policy
        self._read = [outliving(each.loader) for each in self.loaders]
        prefix, hooks, task = _PREFIXES[stage], run.hooks, run.task
        step = task.validation_step if stage == "validate" else task.test_step
        self._step = run.bind(fit_arguments(step, 3 if len(self.loaders) > 1 else 2), evaluates=True)
        self._start, self._end = hooks.of(f"on_{prefix}_start"), hooks.of(f"on_{prefix}_end")
        self._epoch_start, self._epoch_end = hooks.of(f"on_{prefix}_epoch_start"), hooks.of(f"on_{prefix}_epoch_end")
        # Lightning lets dataloader_idx be left out of a hook's signature.
        self._batch_start = [fit_arguments(hook, 3) for hook in hooks.of(f"on_{prefix}_batch_start")]
        self._batch_end = [fit_arguments(hook, 4) for hook in hooks.of(f"on_{prefix}_batch_end")]
        self._log_hooks = hooks.of_callbacks("on_log")
        self._model_eval = task.on_validation_model_eval if stage == "validate" else task.on_test_model_eval
        self._model_train = task.on_validation_model_train if stage == "validate" else task.on_test_model_train
        self._keys = [f"{stage}/{number}" for number in range(len(self.loaders))]
        self.suffixes = [
            f"/{loader.name or f'dataloader_idx_{number}'}" if len(self.loaders) > 1 else ""
            for number, loader in enumerate(self.loaders)
        ]

    def evaluate(self, *, most_batches: float = math.inf, sanity: bool = False) -> dict[str, float]:
        """Run over all loaders once and return the metrics for the loggers.

        Args:
            most_batches: of each loader.
            sanity: the values are thrown away.
        """
        run, metrics, lengths = self.run, self.run.metrics, [min(most_batches, each.length) for each in self.loaders]
        with evaluating(run, self.policy):
            self._model_eval()
            self._level_of_epoch()
            for hook in self._start:
                hook()
            for hook in self._epoch_start:
                hook()
            run.reporter.start(self.stage, sum(lengths), lasting=not sanity)
            done = 0
            for number, length in enumerate(lengths):
                done = self._evaluate_loader(number, length, done)
            self._level_of_epoch()
            for hook in self._epoch_end:
                hook()
            reported: dict[str, float] = {}
            with ordinary_tensors():
                if sanity:
                    metrics.forget(self._keys)
                else:
                    reported = metrics.commit(self._keys, run.trainer.progress.steps)
            run.reporter.finish(done, reported)
            for hook in self._end:
                hook()
            self._model_train()
        if not sanity:
            run.trainer.record.log(reported, self._log_hooks)
        return reported

    @contextmanager
    def undone_if_left(self) -> Generator[None, None, None]:
        """Forget what an evaluation gathered that a signal or an error ends within the `with` block.

        The evaluation of a run that is resumed begins anew, so nothing of a part of it may be in the checkpoint: values
        that were logged, metric objects, and the state of callbacks that look on.
        """
        run, updates = self.run, metric_updates(self.run.task)
        looking_on = run.hooks.owners("on_validation_batch_start", "on_validation_batch_end", "on_validation_start")
        states = [(callback, deepcopy(callback.state_dict())) for callback in looking_on]
        try:
            yield
        except BaseException:
            run.metrics.forget(self._keys)
            reset_updated(run.task, updates)
            for callback, state in states:
                if state:
                    callback.load_state_dict(state)
            raise

    def _level_of_epoch(self) -> None:
        self.run.metrics.enter(self._keys[0], training=False)
        self.run.metrics.level = "epoch"

    def _evaluate_loader(self, number: int, length: float, done: int) -> int:
        """Evaluate on one loader and return `done` plus its batches."""
        run, metrics, reporter, loader = self.run, self.run.metrics, self.run.reporter, self.loaders[number]
        metrics.enter(self._keys[number], training=False, suffix=self.suffixes[number])
        place = (number,) if len(self.loaders) > 1 else ()
        batch_idx = -1
        for batch_idx, batch in enumerate(feed(self._read[number], length, run.transfer(number, evaluates=True))):
            run.trainer.leave_if_preempted(all_meet=False)
            metrics.batch = batch
            for hook in self._batch_start:
                hook(batch, batch_idx, number)
            outputs = self._step(batch, batch_idx, *place)
            for hook in self._batch_end:
                hook(outputs, batch, batch_idx, number)
            outputs = None
            if time.perf_counter() >= reporter.next_refresh:
                reporter.refresh(time.perf_counter(), done + batch_idx + 1, {})
        metrics.batch = None
        if batch_idx < 0 and length:
            raise ValueError(no_batch(self.stage, loader, number))
        return done + batch_idx + 1


def no_batch(stage: str, loader: NamedLoader, number: int) -> str:
    """Return the error text for a loader that turns out to be empty."""
    return explain(
        f"The {stage} loader {loader.name or number} yielded no batch",
        got=loader.loader,
        fix="check its data set; an iterator that was used up cannot be iterated over again",
    )


def results(loop: EvaluateLoop, values: dict[str, float]) -> list[dict[str, float]]:
    """Split the metrics of an evaluation by loader, as `Trainer.validate` returns them: one dict per loader."""
    if len(loop.loaders) == 1:
        return [values]
    suffixes = loop.suffixes
    shared = {name: value for name, value in values.items() if not name.endswith(tuple(suffixes))}
    return [
        {**{name: value for name, value in values.items() if name.endswith(suffix)}, **shared} for suffix in suffixes
    ]


def sanity_check(loop: EvaluateLoop, batches: float) -> None:
    """Validate on a few batches, so that a mistake in validation shows before an epoch is spent."""
    run = loop.run
    run.call("on_sanity_check_start")
    loop.evaluate(most_batches=batches, sanity=True)
    run.call("on_sanity_check_end")
