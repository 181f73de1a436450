"""The states of `torchmetrics.Metric` objects in a task, for a run that continues in the middle of an epoch.

They are no parameters and, unless their author says so, not in a module's `state_dict`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from taskloom.core.errors import CheckpointError, explain


def metric_states(module: nn.Module) -> dict[str, Any]:
    """Return the states of the metrics in `module` that were updated since their last reset, by name."""
    return {
        name: {"updates": metric._update_count, "states": {state: vars(metric)[state] for state in metric._defaults}}
        for name, metric in _metrics(module)
        if metric.update_called
    }


def restore_metric_states(module: nn.Module, states: Mapping[str, Any]) -> None:
    """Restore what `metric_states` returned, on the device of each metric.

    Raises:
        CheckpointError: a metric is not there any more.
    """
    metrics = dict(_metrics(module)) if states else {}
    for name, saved in states.items():
        if name not in metrics:
            raise CheckpointError(
                explain(
                    f"{type(module).__name__} has no metric {name!r}, which the checkpoint holds the state of",
                    got=sorted(metrics),
                    fix="build the task as it was saved, or continue from the end of an epoch",
                )
            )
        metric = metrics[name]
        for state, value in saved["states"].items():
            moved = [each.to(metric.device) for each in value] if isinstance(value, list) else value.to(metric.device)
            setattr(metric, state, moved)
        metric._update_count, metric._computed = saved["updates"], None


def metric_updates(module: nn.Module) -> dict[str, int]:
    """Return how often each metric in `module` was updated since its last reset, by name."""
    return {name: metric._update_count for name, metric in _metrics(module)}


def reset_updated(module: nn.Module, before: Mapping[str, int]) -> None:
    """Reset the metrics that were updated since `metric_updates` returned `before`, at which they held nothing."""
    for name, metric in _metrics(module):
        if metric._update_count and not before.get(name):
            metric.reset()


def _metrics(module: nn.Module) -> Iterator[tuple[str, Any]]:
    torchmetrics = sys.modules.get("torchmetrics")
    if torchmetrics is not None:
        for name, each in module.named_modules():
            if isinstance(each, torchmetrics.Metric):
                yield name, each
