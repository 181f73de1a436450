"""What `log` fills and a flush reduces."""

from __future__ import annotations

from taskloom.metrics.store import MetricStore

__all__ = ["MetricStore"]
