"""What lies in a folder of checkpoints, for people: what each is kept for, and whether it is whole. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taskloom.checkpoint.file_checks import file_problems
from taskloom.checkpoint.folder import LAST, KeptRecord, best_entries, candidates, read_json
from taskloom.checkpoint.manifest import MANIFEST, Manifest
from taskloom.checkpoint.place import Place, children, files_below, is_remote, modified_at, size_of
from taskloom.checkpoint.staging import HIDDEN, final_name, is_unfinished, stands_for_its_target


@dataclass(frozen=True)
class Listed:
    """A checkpoint in a folder, or what should be one.

    Args:
        path: of it.
        manifest: None where it cannot be read.
        bytes: on the disk or in the store.
        marks: why it stays whatever is pruned: `last`, `best by NAME`, `pinned`, `resumed from`.
        problems: what is wrong with it, as far as it was looked at.
    """

    path: Place
    manifest: Manifest | None
    bytes: int
    marks: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def metric(self, name: str) -> float | None:
        """Return a finite metric that was measured on just these weights."""
        value, step = self.manifest.metrics.get(name, (math.nan, -1)) if self.manifest else (math.nan, -1)
        return value if self.manifest and step == self.manifest.step and math.isfinite(value) else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        about: dict[str, Any] = {"path": str(self.path), "bytes": self.bytes, "marks": list(self.marks)}
        if self.manifest is not None:
            fields = self.manifest.to_json()
            about.update(
                {key: fields[key] for key in ("run_id", "saved_at", "step", "epoch", "weights_only", "metrics")}
            )
        return {**about, "problems": list(self.problems)}


@dataclass(frozen=True)
class Leftover:
    """What a save or a deletion that was killed has left.

    Args:
        path: of it.
        bytes: that it takes.
        written_at: when its newest file was written, in seconds since 1970.
    """

    path: Place
    bytes: int
    written_at: float


def list_checkpoints(folder: Place, *, hashes: bool = False) -> list[Listed]:
    """Return the checkpoints in a folder, the oldest first, and after them those that cannot be read.

    Args:
        folder: holds the checkpoints of a run.
        hashes: read every file and compare its hash; otherwise sizes are compared.

    Raises:
        OSError: a store cannot be asked.
    """
    marks = marks_in(folder)
    found, passed_over = candidates(folder)
    listed = [
        Listed(
            path,
            manifest,
            sum(file.bytes for file in manifest.files.values()) + size_of(path / MANIFEST),
            marks.get(final_name(path.name), ()),
            tuple(file_problems(path, manifest, hashes=hashes)),
        )
        for manifest, path in sorted(found, key=lambda each: (each[0].saved_at, each[0].step, each[1].name))
    ]
    damaged = [
        Listed(each.path, None, _bytes_below(each.path), marks.get(each.path.name, ()), (each.reason,))
        for each in passed_over
        if each.damaged
    ]
    return listed + damaged


def list_leftovers(folder: Place) -> list[Leftover]:
    """Return what killed saves and deletions have left in a folder; nothing that may be the only copy of a checkpoint.

    Raises:
        OSError: a store cannot be asked.
    """
    found = []
    for path, is_folder in children(folder):
        hidden = HIDDEN.fullmatch(path.name)
        if is_folder and ((hidden and not stands_for_its_target(path)) or is_unfinished(path)):
            files = list(_files_below(path))
            touched = files if is_remote(path) else [path, *files]
            newest = max(map(modified_at, touched), default=0.0)
            found.append(Leftover(path, sum(map(size_of, files)), newest))
    return found


def monitored(folder: Place) -> dict[str, str]:
    """Return the metrics that `best.json` knows, each with its mode."""
    entries = best_entries(folder).values()
    return {str(entry["monitor"]): str(entry.get("mode", "min")) for entry in entries if "monitor" in entry}


def marks_in(folder: Place) -> dict[str, tuple[str, ...]]:
    """Return what checkpoints are kept for now, by their names."""
    named = [(read_json(folder / LAST).get("checkpoint"), "last")]
    named += [(entry.get("checkpoint"), f"best by {entry.get('monitor')}") for entry in best_entries(folder).values()]
    record = KeptRecord(folder)
    named += [(name, "pinned") for name in record.pinned()]
    named += [(name, "resumed from") for name in record.resumed_from()]
    marks: dict[str, tuple[str, ...]] = {}
    for name, mark in named:
        if isinstance(name, str):
            marks[name] = (*marks.get(name, ()), mark)
    return marks


def _files_below(path: Place) -> Iterator[Place]:
    if is_remote(path):
        yield from files_below(path)
    else:
        yield from (file for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _bytes_below(path: Place) -> int:
    return sum(map(size_of, _files_below(path)))
