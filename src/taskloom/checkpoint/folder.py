"""What lies in a folder of checkpoints: names, pointers to the last and the best, and the search for a good one.

Pointers are conveniences for people and programs. The search for the newest checkpoint does not trust them: it looks
at what is there, newest first, and takes the first one whose every file verifies.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from taskloom.checkpoint.files import replace_json
from taskloom.checkpoint.manifest import MANIFEST, Manifest
from taskloom.checkpoint.place import Place, StoreError, as_path, children, is_file, is_folder, kind_of, read_bytes
from taskloom.checkpoint.staging import HIDDEN, is_unfinished, stands_for_its_target
from taskloom.core.errors import CheckpointError, TaskloomWarning, explain

LAST, BEST, KEPT, PINNED = "last.json", "best.json", "kept.json", "pinned.json"


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` optimizer steps; names sort as steps do."""
    return f"step-{step:08d}"


@dataclass(frozen=True)
class PassedOver:
    """Something that a search for a checkpoint did not take.

    Args:
        path: of it.
        reason: why, as a sentence.
        damaged: it was whole once, or should be, and is not.
    """

    path: Place
    reason: str
    damaged: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def latest_checkpoint(folder: str | PurePath, *, for_resume: bool = True) -> tuple[Place | None, list[str]]:
    """Find the newest checkpoint that verifies, walking back from the newest one written.

    Args:
        folder: holds the checkpoints of a run; a folder or a URL.
        for_resume: pass over weights-only checkpoints, which training cannot continue from.

    Returns:
        The checkpoint (`None` if there is no good one), and one line for everything passed over on the way, with the
        reason.

    Raises:
        OSError: the store that the folder is in cannot be asked. That says nothing about the checkpoints there.
    """
    found, passed_over = search(as_path(folder), for_resume=for_resume)
    return found, [str(each) for each in passed_over]


def search(folder: Place, *, for_resume: bool = True, hashes: bool = True) -> tuple[Place | None, list[PassedOver]]:
    """Find the newest good checkpoint as `latest_checkpoint` does.

    Args:
        folder: holds the checkpoints of a run.
        for_resume: pass over weights-only checkpoints.
        hashes: read everything; otherwise only sizes, indexes and states are looked at.

    Raises:
        OSError: the store that the folder is in cannot be asked.
    """
    if not is_folder(folder):
        return None, [PassedOver(folder, "it does not exist")]
    found, passed_over = candidates(folder)
    for manifest, path in sorted(found, key=lambda each: (each[0].saved_at, each[0].step, each[1].name), reverse=True):
        if manifest.weights_only and for_resume:
            passed_over.append(PassedOver(path, "it holds only weights, training cannot continue from it"))
            continue
        problems = _problems(path, hashes=hashes)
        if not problems:
            return path, passed_over
        passed_over.append(PassedOver(path, problems[0], damaged=True))
    return None, passed_over


def candidates(folder: Place) -> tuple[list[tuple[Manifest, Place]], list[PassedOver]]:
    """Return what looks like a checkpoint, and what does not although one would expect it to."""
    found: list[tuple[Manifest, Place]] = []
    passed_over: list[PassedOver] = []
    for path, is_a_folder in children(folder):
        if not is_a_folder:
            continue
        hidden = HIDDEN.fullmatch(path.name)
        if hidden and hidden["purpose"] == "writing":
            passed_over.append(PassedOver(path, "a save that did not finish"))
            continue
        has_manifest = is_file(path / MANIFEST)
        if path.name.startswith(".") and not stands_for_its_target(path):
            continue
        if not has_manifest:
            if is_unfinished(path):
                passed_over.append(PassedOver(path, "a save or a deletion that did not finish"))
            elif path.name.startswith("step-") or hidden:
                passed_over.append(PassedOver(path, f"it has no {MANIFEST}", damaged=True))
            continue
        try:
            found.append((Manifest.read(path), path))
        except CheckpointError as error:
            passed_over.append(PassedOver(path, str(error), damaged=True))
    return found, passed_over


def best_checkpoint(folder: str | PurePath, monitor: str | None = None) -> Place:
    """Return the checkpoint that `best.json` names, once every file of it has verified.

    Args:
        folder: holds the checkpoints of a run; a folder or a URL.
        monitor: the metric it is best by; may be left out if only one is monitored.

    Raises:
        CheckpointError: nothing was monitored, several metrics were and none is chosen, or the checkpoint is gone or
            damaged. Then the text names the file, and the best checkpoint among those left.
        OSError: the store that the folder is in cannot be asked.
    """
    folder = as_path(folder)
    entry = _best_entry(folder, monitor)
    path = folder / str(entry.get("checkpoint"))
    if not kind_of(path):
        raise CheckpointError(
            explain(f"{folder / BEST} names {path.name}, which is gone", fix=_next_best(folder, entry, path.name))
        )
    problems = _problems(path, hashes=True)
    if problems:
        raise CheckpointError(
            explain(f"The best checkpoint {path} is damaged", got=problems[0], fix=_next_best(folder, entry, path.name))
        )
    return path


def _best_entry(folder: Place, monitor: str | None) -> Mapping[str, Any]:
    entries = [entry for entry in best_entries(folder).values() if monitor in (None, entry.get("monitor"))]
    if not entries:
        raise CheckpointError(
            explain(
                f"{folder / BEST} names no best checkpoint" + (f" by {monitor!r}" if monitor else ""),
                why="no policy with a monitor has saved one",
                fix="train with checkpoint=CheckpointPolicy(monitor='val/loss'), or use ckpt_path='last'",
            )
        )
    if len(entries) > 1:
        names = sorted(str(entry.get("monitor")) for entry in entries)
        raise CheckpointError(
            explain(
                f"{folder / BEST} names a best checkpoint by each of {', '.join(names)}",
                fix="pass the path of the one you mean",
            )
        )
    return entries[0]


def _next_best(folder: Place, entry: Mapping[str, Any], lost: str) -> str:
    """Say which of the checkpoints that are left is best by the same metric."""
    monitor, sign = str(entry.get("monitor")), -1.0 if entry.get("mode") == "max" else 1.0
    measured = [
        (sign * value, path, value)
        for manifest, path in candidates(folder)[0]
        for value, step in [manifest.metrics.get(monitor, (math.nan, -1))]
        if path.name != lost and step == manifest.step and math.isfinite(value)
    ]
    for _, path, value in sorted(measured, key=lambda each: each[0]):
        if not _problems(path, hashes=False):
            return f"pass the next best by {monitor}, {path} ({value:.6g}), or ckpt_path='last'"
    return "use ckpt_path='last', or pass a path"


def read_json(path: Place) -> dict[str, Any]:
    """Read a pointer file; one that is missing or damaged counts as empty, with a warning if damaged."""
    try:
        data = json.loads(read_bytes(path))
    except FileNotFoundError:
        return {}
    except StoreError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(explain(f"{path} is damaged and is ignored", got=str(error)), TaskloomWarning, stacklevel=2)
        return {}
    return data if isinstance(data, dict) else {}


def write_last(folder: Place, manifest: Manifest, name: str, *, fsync: bool) -> None:
    """Point `last.json` at a checkpoint that has verified."""
    replace_json(folder / LAST, {"checkpoint": name, "step": manifest.step, "run_id": manifest.run_id}, fsync=fsync)


def best_entries(folder: Place) -> dict[str, dict[str, Any]]:
    """Return the entries of `best.json`, one per monitored metric and direction."""
    entries = read_json(folder / BEST).get("best", {})
    if not isinstance(entries, dict):
        return {}
    return {key: entry for key, entry in entries.items() if isinstance(entry, dict)}


def write_best(folder: Place, key: str, entry: Mapping[str, Any], *, fsync: bool) -> None:
    """Set one entry of `best.json`; the entries of other policies stay."""
    replace_json(folder / BEST, {"best": {**best_entries(folder), key: dict(entry)}}, fsync=fsync)


def named_by_pointers(folder: Place) -> set[str]:
    """Return the names of the checkpoints that `last.json` and `best.json` point at."""
    named = {read_json(folder / LAST).get("checkpoint")} | {
        entry.get("checkpoint") for entry in best_entries(folder).values()
    }
    return {name for name in named if isinstance(name, str)}


def _problems(path: Place, *, hashes: bool) -> list[str]:
    from taskloom.checkpoint.reader import problems_of  # imported here, because a list of checkpoints needs no torch

    return problems_of(path, hashes=hashes)


class KeptRecord:
    """What is kept and why: by the policies and the run in `kept.json`, by people in `pinned.json`.

    The first is how policies that share a folder know of each other, also over a restart. The second is a file of its
    own, which a training only reads, so that one can pin a checkpoint of a run that goes on.

    Args:
        folder: holds the checkpoints.
    """

    def __init__(self, folder: Place) -> None:
        self._path, self._pins = folder / KEPT, folder / PINNED

    def claims(self) -> dict[str, list[str]]:
        """Return the names that each policy keeps, by the policy's key."""
        return self._mapping("claims")

    def resumed_from(self) -> set[str]:
        """Return the names of the checkpoints that runs were last resumed from."""
        return {name for name in self._mapping("resumed_from").values() if isinstance(name, str)}

    def pinned(self) -> set[str]:
        """Return the names that are kept whatever the policies say."""
        names = read_json(self._pins).get("pinned", [])
        return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()

    def claim(self, key: str, names: list[str], *, fsync: bool) -> None:
        """Record what one policy keeps, in place of what it kept before."""
        self._write({**self.claims(), key: names}, self._mapping("resumed_from"), fsync=fsync)

    def resume(self, run_id: str, name: str, *, fsync: bool) -> None:
        """Record which checkpoint a run was resumed from, in place of an earlier one."""
        resumed_from = self._mapping("resumed_from")
        if resumed_from.get(run_id) != name:
            self._write(self.claims(), {**resumed_from, run_id: name}, fsync=fsync)

    def set_pinned(self, name: str, *, pinned: bool) -> None:
        """Pin or unpin a checkpoint."""
        names = self.pinned() | {name} if pinned else self.pinned() - {name}
        replace_json(self._pins, {"pinned": sorted(names)}, fsync=True)

    def _mapping(self, entry: str) -> dict[str, Any]:
        found = read_json(self._path).get(entry, {})
        return found if isinstance(found, dict) else {}

    def _write(self, claims: dict[str, list[str]], resumed_from: dict[str, str], *, fsync: bool) -> None:
        replace_json(self._path, {"claims": claims, "resumed_from": resumed_from}, fsync=fsync)
