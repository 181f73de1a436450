"""A three-way merge of lines, for following a template without losing what its user wrote.

The idea is that of diff3: text that both sides still share with the common ancestor cuts the files into sections, and
in each section the side that changed wins; where both changed, differently, both are shown. Written here because the
one library for it that needs no git is under the GPL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    Args:
        text: with conflict markers where both sides changed the same place.
        conflicts: how many places those are.
    """

    text: str
    conflicts: int


def merge_texts(base: str, ours: str, theirs: str, *, our_name: str = "yours", their_name: str = "template") -> Merged:
    """Merge two descendants of `base` line by line.

    Args:
        base: what both came from.
        ours: one side.
        theirs: the other side.
        our_name: shown in conflict markers.
        their_name: shown in conflict markers.
    """
    lines = [text.splitlines(keepends=True) for text in (base, ours, theirs)]
    found: list[str] = []
    conflicts = 0
    for base_part, our_part, their_part in _sections(*lines):
        if our_part in (base_part, their_part):
            found += their_part
        elif their_part == base_part:
            found += our_part
        else:
            conflicts += 1
            found += [
                f"<<<<<<< {our_name}\n",
                *_closed(our_part),
                "=======\n",
                *_closed(their_part),
                f">>>>>>> {their_name}\n",
            ]
    return Merged("".join(found), conflicts)


def _sections(
    base: Sequence[str], ours: Sequence[str], theirs: Sequence[str]
) -> Iterator[tuple[list[str], list[str], list[str]]]:
    """Cut the three files at the lines that all of them share; yield the shared and the differing parts in turn."""
    done = [0, 0, 0]
    for start, our_start, their_start, length in [*_shared(base, ours, theirs), (len(base), len(ours), len(theirs), 0)]:
        yield list(base[done[0] : start]), list(ours[done[1] : our_start]), list(theirs[done[2] : their_start])
        kept = list(base[start : start + length])
        yield kept, kept, kept
        done = [start + length, our_start + length, their_start + length]


def _shared(base: Sequence[str], ours: Sequence[str], theirs: Sequence[str]) -> Iterator[tuple[int, int, int, int]]:
    """Yield runs of lines that are the same in all three, as (base, ours, theirs, length)."""
    one = SequenceMatcher(None, base, ours, autojunk=False).get_matching_blocks()
    other = SequenceMatcher(None, base, theirs, autojunk=False).get_matching_blocks()
    for first in one:
        for second in other:
            start, end = max(first.a, second.a), min(first.a + first.size, second.a + second.size)
            if start < end:
                yield start, first.b + start - first.a, second.b + start - second.a, end - start


def _closed(lines: list[str]) -> list[str]:
    """Return lines of which the last one ends, so that a marker starts on a line of its own."""
    return [*lines[:-1], lines[-1] if lines[-1].endswith("\n") else lines[-1] + "\n"] if lines else []
