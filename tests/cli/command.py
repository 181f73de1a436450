"""What a command run inside a test leaves, and where the samples are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLES = Path(__file__).parent / "broken"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[[Sequence[str]], Outcome]
