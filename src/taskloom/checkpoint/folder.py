"""What lies in a folder of checkpoints: names, pointers to the last and the best, and the search for a good one.

Pointers are conveniences for people and programs. The search for the newest checkpoint does not trust them: it looks
at what is there, newest first, and takes the first one whose every file verifies.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskloom.checkpoint.files import replace_json
from taskloom.checkpoint.manifest import MANIFEST, Manifest
from taskloom.checkpoint.reader import verify_checkpoint
from taskloom.core.errors import CheckpointError, TaskloomWarning, explain

LAST, BEST, KEPT = "last.json", "best.json", "kept.json"
_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<purpose>writing|replaced)-[0-9a-f]{8}")


def checkpoint_name(step: int) -> str:
    """Return the folder name of the checkpoint after `step` optimizer steps; names sort as steps do."""
    return f"step-{step:08d}"


def latest_checkpoint(folder: str | Path, *, for_resume: bool = True) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies, walking back from the newest one written.

    Args:
        folder: holds the checkpoints of a run.
        for_resume: pass over weights-only checkpoints, which training cannot continue from.

    Returns:
        The checkpoint (`None` if there is no good one), and one line for everything passed over on the way, with the
        reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None, [f"{folder} does not exist"]
    skipped: list[str] = []
    found: list[tuple[str, int, Path, bool]] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        hidden = _HIDDEN.fullmatch(path.name)
        if hidden and hidden["purpose"] == "writing":
            skipped.append(f"{path}: a save that did not finish")
            continue
        was_set_aside = hidden is not None and not (folder / hidden["name"]).exists()
        if not was_set_aside and (
            path.name.startswith(".") or not (path.name.startswith("step-") or (path / MANIFEST).exists())
        ):
            continue
        try:
            manifest = Manifest.read(path) if (path / MANIFEST).exists() else None
        except CheckpointError as error:
            skipped.append(f"{path}: {error}")
            continue
        if manifest is None:
            skipped.append(f"{path}: it has no {MANIFEST}")
        else:
            found.append((manifest.saved_at, manifest.step, path, manifest.weights_only))
    for _, _, path, weights_only in sorted(found, reverse=True):
        problems = (
            ["it holds only weights, training cannot continue from it"]
            if weights_only and for_resume
            else verify_checkpoint(path)
        )
        if not problems:
            return path, skipped
        skipped.append(f"{path}: {problems[0]}")
    return None, skipped


def best_checkpoint(folder: str | Path, monitor: str | None = None) -> Path:
    """Return the checkpoint that `best.json` names.

    Args:
        folder: holds the checkpoints of a run.
        monitor: the metric it is best by; may be left out if only one is monitored.

    Raises:
        CheckpointError: nothing was monitored, several metrics were and none is chosen, or the checkpoint is gone.
    """
    folder = Path(folder)
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
    path = folder / str(entries[0].get("checkpoint"))
    if not path.is_dir():
        raise CheckpointError(
            explain(f"{folder / BEST} names {path.name}, which is gone", fix="use ckpt_path='last', or pass a path")
        )
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a pointer file; one that is missing or damaged counts as empty, with a warning if damaged."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(explain(f"{path} is damaged and is ignored", got=str(error)), TaskloomWarning, stacklevel=2)
        return {}
    return data if isinstance(data, dict) else {}


def write_last(folder: Path, manifest: Manifest, name: str, *, fsync: bool) -> None:
    """Point `last.json` at a checkpoint that has verified."""
    replace_json(folder / LAST, {"checkpoint": name, "step": manifest.step, "run_id": manifest.run_id}, fsync=fsync)


def best_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of `best.json`, one per monitored metric and direction."""
    entries = read_json(folder / BEST).get("best", {})
    if not isinstance(entries, dict):
        return {}
    return {key: entry for key, entry in entries.items() if isinstance(entry, dict)}


def write_best(folder: Path, key: str, entry: Mapping[str, Any], *, fsync: bool) -> None:
    """Set one entry of `best.json`; the entries of other policies stay."""
    replace_json(folder / BEST, {"best": {**best_entries(folder), key: dict(entry)}}, fsync=fsync)


def named_by_pointers(folder: Path) -> set[str]:
    """Return the names of the checkpoints that `last.json` and `best.json` point at."""
    named = {read_json(folder / LAST).get("checkpoint")} | {
        entry.get("checkpoint") for entry in best_entries(folder).values()
    }
    return {name for name in named if isinstance(name, str)}


class KeptRecord:
    """`kept.json`: which checkpoints each policy keeps, and which are pinned.

    It is how policies that share a folder know of each other, also over a restart.

    Args:
        folder: holds the checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / KEPT

    def claims(self) -> dict[str, list[str]]:
        """Return the names that each policy keeps, by the policy's key."""
        claims = read_json(self._path).get("claims", {})
        return claims if isinstance(claims, dict) else {}

    def pinned(self) -> set[str]:
        """Return the names that are kept whatever the policies say."""
        return set(read_json(self._path).get("pinned", []))

    def claim(self, key: str, names: list[str], *, fsync: bool) -> None:
        """Record what one policy keeps, in place of what it kept before."""
        self._write({**self.claims(), key: names}, self.pinned(), fsync=fsync)

    def set_pinned(self, name: str, *, pinned: bool) -> None:
        """Pin or unpin a checkpoint."""
        names = self.pinned() | {name} if pinned else self.pinned() - {name}
        self._write(self.claims(), names, fsync=True)

    def _write(self, claims: dict[str, list[str]], pinned: set[str], *, fsync: bool) -> None:
        replace_json(self._path, {"claims": claims, "pinned": sorted(pinned)}, fsync=fsync)
