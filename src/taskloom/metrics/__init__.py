"""What `log` fills and a flush reduces."""

from __future__ import annotations

from taskloom.metrics.objects import metric_states, restore_metric_states
from taskloom.metrics.store import MetricStore

__all__ = ["MetricStore", "metric_states", "restore_metric_states"]
