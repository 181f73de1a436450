"""What a run shows to people: progress, tables, and the lines at its start and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskloom.core.lazy import on_first_use

if TYPE_CHECKING:
    from taskloom.report.base import ProgressReporter, epoch_title
    from taskloom.report.lines import batch_line, closing_lines, next_commands, start_lines
    from taskloom.report.progress import PlainReporter, RichReporter, SilentReporter, resolve_reporter
    from taskloom.report.summary import ModelSummaryTable, summarize
    from taskloom.report.tables import render_metrics

# Loaded on first use: commands that only print a table need no torch.
_HOME = {
    "ModelSummaryTable": "taskloom.report.summary",
    "PlainReporter": "taskloom.report.progress",
    "ProgressReporter": "taskloom.report.base",
    "RichReporter": "taskloom.report.progress",
    "SilentReporter": "taskloom.report.progress",
    "batch_line": "taskloom.report.lines",
    "closing_lines": "taskloom.report.lines",
    "epoch_title": "taskloom.report.base",
    "next_commands": "taskloom.report.lines",
    "render_metrics": "taskloom.report.tables",
    "resolve_reporter": "taskloom.report.progress",
    "start_lines": "taskloom.report.lines",
    "summarize": "taskloom.report.summary",
}

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

__getattr__ = on_first_use(__name__, _HOME)
