"""Tables: drawn by rich on a terminal, aligned with spaces elsewhere, so that logs hold no control characters."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import SupportsFloat

from taskloom.report.text import format_value


def render_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    title: str = "",
    width: int | None = None,
    terminal: bool = False,
) -> str:
    """Return a table as text.

    Args:
        columns: headings.
        rows: cells, as many as there are columns.
        right: headings of the columns that are aligned to the right.
        title: above the table.
        width: in characters; of the terminal by default.
        terminal: draw lines and colours.
    """
    if not terminal:
        lines = [title] if title else []
        table = [list(columns), *map(list, rows)]
        widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
        for row in table:
            padded = zip(row, widths, columns, strict=True)
            cells = (cell.rjust(size) if name in right else cell.ljust(size) for cell, size, name in padded)
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left", header_style="bold")
    for name in columns:
        drawn.add_column(name, justify="right" if name in right else "left", overflow="fold")
    for cells_of_row in rows:
        drawn.add_row(*map(Text, cells_of_row))  # Text, because brackets in a cell would be read as markup
    console = Console(force_terminal=True, width=width)
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().rstrip("\n")


def render_metrics(
    results: Sequence[Mapping[str, SupportsFloat]],
    *,
    stage: str = "",
    loaders: Sequence[str] = (),
    width: int | None = None,
    terminal: bool | None = None,
) -> str:
    """Return the table of what `validate` or `test` measured: one row per metric, one column per loader.

    Args:
        results: metrics of each loader.
        stage: named above the table.
        loaders: names of the loaders; numbers by default.
        width: in characters; of the terminal by default.
        terminal: draw lines and colours; by default where `sys.stdout` is a terminal.
    """
    names = list(dict.fromkeys(name for metrics in results for name in metrics))
    if not names:
        return f"{stage or 'evaluation'}: nothing was logged"
    headings = ["value"]
    if len(results) > 1:
        headings = list(loaders) or [f"loader {index}" for index in range(len(results))]
    rows = [[name, *(format_value(metrics[name]) if name in metrics else "" for metrics in results)] for name in names]
    drawn = sys.stdout.isatty() if terminal is None else terminal
    return render_table(["metric", *headings], rows, right=headings, title=stage, width=width, terminal=drawn)
