"""Sizes, ages and names as these commands print them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timezone


def format_bytes(count: int) -> str:
    """Return a size with three digits and a decimal unit: `650 B`, `1.23 MB`, `5.00 GB`."""
    if count < 1000:
        return f"{count} B"
    number = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.5 or unit == "TB":
            break
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{digits}f} {unit}"


def format_age(saved_at: str, now: datetime | None = None) -> str:
    """Return how long ago an ISO time is, in its two largest units: `2 d 4 h`, `5 min`, `12 s`."""
    try:
        then = datetime.fromisoformat(saved_at)
    except ValueError:
        return "?"
    then = then if then.tzinfo else then.replace(tzinfo=timezone.utc)
    seconds = max(0, int(((now or datetime.now(timezone.utc)) - then).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if not minutes:
        return f"{seconds} s"
    if not hours:
        return f"{minutes} min"
    return f"{days} d {hours % 24} h" if days else f"{hours} h {minutes % 60} min"


def printable(text: str) -> str:
    """Return text from a file for the terminal: what could move its cursor or change its colours is escaped."""
    return "".join(each if each.isprintable() or each in "\n\t" else repr(each)[1:-1] for each in text)


def one_line(text: str) -> str:
    """Return `printable` text in which lines do not break."""
    return printable(text.replace("\n", "\\n").replace("\t", " "))


def say(lines: str | Sequence[str]) -> None:
    """Print lines that may hold names from a file."""
    print(printable(lines if isinstance(lines, str) else "\n".join(lines)))


def on_terminal() -> bool:
    """Whether what is printed is seen by a person at a terminal."""
    return sys.stdout.isatty()
