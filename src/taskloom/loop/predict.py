"""The prediction loop.

```
on_predict_model_eval
on_predict_start
  on_predict_epoch_start
    per loader, per batch: transfer hooks → on_predict_batch_start → predict_step → on_predict_batch_end
  on_predict_epoch_end
on_predict_end
on_predict_model_train, and every submodule is in the mode it had before
```
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from taskloom.core.policies import ValidationPolicy
from taskloom.data import NamedLoader, feed
from taskloom.loop.evaluate import no_batch
from taskloom.loop.evaluating import evaluating
from taskloom.loop.run import Run, fit_arguments


def predict(run: Run, loaders: Sequence[NamedLoader], policy: ValidationPolicy, *, keep: bool = True) -> list[Any]:
    """Run `predict_step` over all loaders.

    Args:
        run: the parts of the stage.
        loaders: at least one.
        policy: how evaluation is run.
        keep: return the outputs. With False each is dropped once the hooks saw it, so memory does not grow with the
            data.

    Returns:
        The outputs in order; a list per loader when there are several.
    """
    hooks, task, reporter = run.hooks, run.task, run.reporter
    step = run.bind(fit_arguments(task.predict_step, 3 if len(loaders) > 1 else 2), evaluates=True)
    precision = run.evaluation_precision or run.strategy.precision
    batch_start = [fit_arguments(hook, 3) for hook in hooks.of("on_predict_batch_start")]
    batch_end = [fit_arguments(hook, 4) for hook in hooks.of("on_predict_batch_end")]
    kept: list[list[Any]] = []
    with evaluating(run, policy):
        task.on_predict_model_eval()
        run.call("on_predict_start")
        run.call("on_predict_epoch_start")
        reporter.start("predict", sum(loader.length for loader in loaders))
        done = 0
        for number, loader in enumerate(loaders):
            outputs_of_loader: list[Any] = []
            place = (number,) if len(loaders) > 1 else ()
            batch_idx = -1
            batches = feed(loader.loader, loader.length, run.transfer(number, evaluates=True))
            for batch_idx, batch in enumerate(batches):
                run.trainer.leave_if_preempted(all_meet=False)
                for hook in batch_start:
                    hook(batch, batch_idx, number)
                outputs = step(batch, batch_idx, *place)
                if precision.converts_output:
                    outputs = precision.convert_output(outputs)
                for hook in batch_end:
                    hook(outputs, batch, batch_idx, number)
                if keep:
                    outputs_of_loader.append(outputs)
                done += 1
                if time.perf_counter() >= reporter.next_refresh:
                    reporter.refresh(time.perf_counter(), done, {})
            if batch_idx < 0 and loader.length:
                raise ValueError(no_batch("predict", loader, number))
            kept.append(outputs_of_loader)
        reporter.finish(done, {})
        run.call("on_predict_epoch_end")
        run.call("on_predict_end")
        task.on_predict_model_train()
    return kept[0] if len(kept) == 1 else kept
