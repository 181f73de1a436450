"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import SupportsFloat


def format_value(value: SupportsFloat) -> str:
    """Return a metric with four significant digits, an int as it is: `0.1234`, `12345.7`, `1.200e-05`, `300`."""
    if isinstance(value, int):
        return str(value)
    number = float(value)
    size = abs(number)
    if not math.isfinite(number) or number == 0:
        return f"{number:g}"
    if size >= 1e6 or size < 1e-3:
        return f"{number:.3e}"
    return f"{number:.1f}" if size >= 1000 else f"{number:.4g}"


def format_metrics(metrics: Mapping[str, SupportsFloat], separator: str = "  ") -> str:
    """Return `name value` pairs in one line."""
    return separator.join(f"{name} {format_value(value)}" for name, value in metrics.items())


def format_duration(seconds: float) -> str:
    """Return `12.3 s`, `4:05` (minutes) or `1:02:03` (hours)."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_rate(per_second: float, noun: str = "batches", one: str = "batch") -> str:
    """Return `38.1 batches/s`, or `2.5 s/batch` where a second is too short for one."""
    if per_second <= 0:
        return ""
    return f"{per_second:.1f} {noun}/s" if per_second >= 1 else f"{1 / per_second:.1f} s/{one}"


def format_count(count: int) -> str:
    """Return a number with an SI-like suffix and three digits, as for parameters: `650`, `1.2 K`, `12.3 M`, `7.1 B`."""
    if abs(count) < 1000:
        return str(count)
    number = float(count)
    for suffix in ("K", "M", "B"):
        number /= 1000
        if abs(number) < 999.95:
            return f"{number:.1f} {suffix}"
    return f"{number / 1000:,.1f} T"
