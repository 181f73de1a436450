"""What a run shows to people: progress, tables, and the lines at its start and end."""

from __future__ import annotations

from taskloom.report.base import ProgressReporter, epoch_title

__all__ = ["ProgressReporter", "epoch_title"]
