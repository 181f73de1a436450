"""What a run shows to people: progress, tables, and the lines at its start and end."""

from __future__ import annotations

from taskloom.report.base import ProgressReporter, epoch_title
from taskloom.report.lines import batch_line, closing_lines, next_commands, start_lines
from taskloom.report.progress import PlainReporter, RichReporter, SilentReporter, resolve_reporter
from taskloom.report.summary import ModelSummaryTable, summarize
from taskloom.report.tables import render_metrics

__all__ = [
    "ModelSummaryTable",
    "PlainReporter",
    "ProgressReporter",
    "RichReporter",
    "SilentReporter",
    "batch_line",
    "closing_lines",
    "epoch_title",
    "next_commands",
    "render_metrics",
    "resolve_reporter",
    "start_lines",
    "summarize",
]
