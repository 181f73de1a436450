"""Saving under one policy, and deleting what it no longer keeps.

The rules that no order of crashes may break: a pointer moves only to a checkpoint that has verified; a checkpoint is
deleted only after its successor verified and the pointers have moved; deleted is only what this run wrote and what
nothing still names (`last.json`, `best.json`, a pin, another policy, the checkpoint this run was resumed from).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import xxhash

from taskloom.checkpoint.file_checks import file_problems
from taskloom.checkpoint.files import disk_errors, move_folder
from taskloom.checkpoint.folder import KEPT, KeptRecord, checkpoint_name, named_by_pointers, write_best, write_last
from taskloom.checkpoint.manifest import Manifest
from taskloom.checkpoint.place import Place, as_path, kind_of
from taskloom.checkpoint.policy import CheckpointPolicy
from taskloom.checkpoint.reader import problems_of
from taskloom.checkpoint.staging import delete_checkpoint, final_name, is_unfinished, tidy
from taskloom.checkpoint.writer import CheckpointContent, write_checkpoint
from taskloom.core.errors import CheckpointError, ConfigError, TaskloomWarning, explain, nearest


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint that a keeper saved or is about to; `value` is the monitored metric, `None` if it has no rank."""

    name: str
    step: int
    value: float | None


class CheckpointKeeper:
    """Saves checkpoints into a folder and keeps what a policy says. One process of a run has it, the others none.

    Several keepers may share a folder: what any of them keeps is left alone by the others, and policies that save the
    same content at the same step share one checkpoint.

    Args:
        folder: of the run's checkpoints; made at the first save.
        policy: what to keep.
        run_id: the run; checkpoints of other runs are never replaced or deleted.
        name: tells apart policies with equal settings.
    """

    def __init__(self, folder: str | PurePath, policy: CheckpointPolicy, run_id: str, *, name: str = "") -> None:
        self.folder = as_path(folder).absolute()
        self.policy = policy
        self.run_id = run_id
        self._key = f"{name or policy.monitor or 'newest'} {xxhash.xxh3_64_hexdigest(repr(policy).encode())[:8]}"
        self._entries: list[KeptCheckpoint] = []  # in the order they were saved
        self._resumed_from: str | None = None
        self._tidied = False

    @property
    def kept(self) -> list[Place]:
        """The checkpoints that the policy keeps now, oldest first."""
        wanted = self._wanted()
        return [self.folder / entry.name for entry in self._entries if entry.name in wanted]

    @property
    def last_path(self) -> Place | None:
        """The newest checkpoint."""
        return self.folder / self._entries[-1].name if self._entries else None

    @property
    def best_path(self) -> Place | None:
        """The checkpoint with the best monitored metric, if any could be ranked."""
        best = self._best()
        return self.folder / best.name if best else None

    @property
    def best_score(self) -> float | None:
        """The best monitored metric."""
        best = self._best()
        return best.value if best else None

    def save(self, content: CheckpointContent, *, on_schedule: bool = True) -> Place | None:
        """Save a checkpoint, verify it, move the pointers to it and delete what the policy no longer keeps.

        Args:
            content: what to save.
            on_schedule: the policy's interval asked for this save, so the monitored metric must be there and be of
                this step. Other saves (at the end, after an interrupt) are ranked only if it happens to be.

        Returns:
            The checkpoint, or `None` where the policy would not keep it (`keep_last=0` and not among the best).

        Raises:
            ConfigError: the monitored metric is missing, or was measured at an earlier step.
            CheckpointError: it could not be written, or another run's checkpoint has its name. Earlier ones are
                untouched.
        """
        entry = self.plan(content, on_schedule=on_schedule)
        return None if entry is None else self.write(content, entry)

    def plan(self, content: CheckpointContent, *, on_schedule: bool = True) -> KeptCheckpoint | None:
        """Decide on a save, without writing: see `save`. The save before must have ended.

        Returns:
            What to hand to `write`, or `None` where the policy would not keep the checkpoint.

        Raises:
            ConfigError: the monitored metric is missing, or was measured at an earlier step.
        """
        value = self._monitored(content, on_schedule=on_schedule)
        entry = KeptCheckpoint(checkpoint_name(content.step), content.step, value)
        return entry if self._would_keep(entry) else None

    def write(self, content: CheckpointContent, entry: KeptCheckpoint) -> Place:
        """Do what `plan` decided on; may be called in another thread, of which there is one at a time.

        Raises:
            CheckpointError: it could not be written, or another run's checkpoint has its name. Earlier ones are
                untouched.
        """
        path = self.folder / entry.name
        with disk_errors(path):
            self._tidy()
            manifest = self._already_saved(path, content) or write_checkpoint(
                path, content, fsync=self.policy.fsync, weights_only=self.policy.weights_only
            )
            problems = file_problems(path, Manifest.read(path), hashes=False)
            if problems:
                what = f"{path} does not verify after it was saved"
                raise CheckpointError(explain(what, got=problems[0], fix="check the disk"))
            self._entries = [*(kept for kept in self._entries if kept.name != entry.name), entry]
            self._point(manifest, entry)
            self._prune()
        return path

    def pin(self, path: Place, *, pinned: bool = True) -> None:
        """Keep a checkpoint of this folder whatever the policies say, or stop doing so with `pinned=False`."""
        KeptRecord(self.folder).set_pinned(path.name, pinned=pinned)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on keeping; plain data."""
        return {
            "monitor": self.policy.monitor,
            "mode": self.policy.mode,
            "entries": [[entry.name, entry.step, entry.value] for entry in self._entries],
        }

    def load_state_dict(self, state: Mapping[str, Any], *, resumed_from: Place | None = None) -> None:
        """Go on keeping what an earlier process of the run kept.

        The state lies inside the checkpoint that was resumed from, so it does not know of that checkpoint itself; it is
        counted, ranked by the metrics in its manifest, and never deleted by this process. Values that another metric
        gave are forgotten, and what is gone from the disk is left out, with a warning if the policy still kept it. A
        checkpoint that lies elsewhere begins a new folder, in which nothing is kept yet.

        Args:
            state: from `state_dict`.
            resumed_from: the checkpoint that training was resumed from.
        """
        same_metric = (state["monitor"], state["mode"]) == (self.policy.monitor, self.policy.mode)
        self._entries = [
            KeptCheckpoint(name, step, value if same_metric else None) for name, step, value in state["entries"]
        ]
        if resumed_from is not None and resumed_from.resolve().parent != self.folder.resolve():
            self._entries = []  # they lie in another folder, which this run does not write to
        elif resumed_from is not None:
            self._resumed_from = final_name(resumed_from.name)
            with disk_errors(self.folder / KEPT):
                KeptRecord(self.folder).resume(self.run_id, self._resumed_from, fsync=self.policy.fsync)
            manifest = Manifest.read(resumed_from)
            if manifest.run_id == self.run_id:
                value, step = manifest.metrics.get(self.policy.monitor or "", (math.nan, -1))
                ranked = value if math.isfinite(value) and step == manifest.step else None
                self._entries = [entry for entry in self._entries if entry.name != self._resumed_from]
                self._entries.append(KeptCheckpoint(self._resumed_from, manifest.step, ranked))
        wanted = self._wanted()
        missing = [entry.name for entry in self._entries if not kind_of(self.folder / entry.name)]
        self._entries = [entry for entry in self._entries if entry.name not in missing]
        if self._resumed_from is not None:
            # What this policy claimed last may be of a future that the run went back from; the others look at it.
            with disk_errors(self.folder / KEPT):
                KeptRecord(self.folder).claim(self._key, sorted(self._wanted()), fsync=self.policy.fsync)
        lost = [name for name in missing if name in wanted]
        if lost:
            warnings.warn(
                explain(
                    f"{', '.join(lost)} in {self.folder} was kept and is gone",
                    why="it was deleted or moved by something else",
                    fix="the best is now chosen among what is left",
                ),
                TaskloomWarning,
                stacklevel=2,
            )

    def _monitored(self, content: CheckpointContent, *, on_schedule: bool) -> float | None:
        """Return the value to rank by, or `None` if this content cannot be ranked."""
        monitor = self.policy.monitor
        if monitor is None:
            return None
        found = content.metrics.get(monitor)
        if found is None or found[1] != content.step:
            if not on_schedule:
                return None
            raise ConfigError(
                [_no_metric(monitor, content) if found is None else _stale_metric(monitor, found[1], content.step)]
            )
        value = float(found[0])
        if math.isfinite(value):
            return value
        warnings.warn(
            explain(
                f"The monitored metric {monitor!r} is {value} at step {content.step}",
                why="a value that is not finite is never best",
                fix="look for the cause with debug=True",
            ),
            TaskloomWarning,
            stacklevel=3,
        )
        return None

    def _ranked(self, entries: list[KeptCheckpoint]) -> list[KeptCheckpoint]:
        """Return the entries that have a value, best first; of equal ones the earlier first."""
        sign = -1.0 if self.policy.mode == "max" else 1.0
        return sorted(
            (entry for entry in entries if entry.value is not None), key=lambda entry: sign * (entry.value or 0.0)
        )

    def _best(self) -> KeptCheckpoint | None:
        ranked = self._ranked(self._entries) if self.policy.save_top_k != 0 else []
        return ranked[0] if ranked else None

    def _wanted(self, entries: list[KeptCheckpoint] | None = None) -> set[str]:
        """Return the names that the policy keeps among the entries."""
        entries = self._entries if entries is None else entries
        if self.policy.keeps_everything:
            return {entry.name for entry in entries}
        newest = entries[len(entries) - self.policy.keep_last :] if self.policy.keep_last <= len(entries) else entries
        return {entry.name for entry in [*newest, *self._ranked(entries)[: self.policy.save_top_k]]}

    def _would_keep(self, entry: KeptCheckpoint) -> bool:
        return entry.name in self._wanted([*(kept for kept in self._entries if kept.name != entry.name), entry])

    def _already_saved(self, path: Place, content: CheckpointContent) -> Manifest | None:
        """Return the manifest if another policy has just saved this content, after making sure the name may be used."""
        if not kind_of(path) or is_unfinished(path):
            return None
        try:
            manifest = Manifest.read(path)
        except CheckpointError as error:
            self._set_aside(path, error)
            return None
        if manifest.run_id != self.run_id:
            raise CheckpointError(
                explain(
                    f"{path} belongs to the run {manifest.run_id!r}, so {self.run_id!r} does not replace it",
                    fix="give this run a folder of its own (run_dir)",
                )
            )
        enough = self.policy.weights_only or not manifest.weights_only
        if manifest.save_id == content.save_id and enough and not problems_of(path, hashes=False):
            return manifest
        if path.name in KeptRecord(self.folder).pinned():
            self._keep_pinned(path)
        return None

    def _keep_pinned(self, path: Place) -> None:
        """Move a pinned checkpoint out of the way of one of the same step, which a run that went back comes to anew."""
        aside, record = _free_name(path, "pinned"), KeptRecord(self.folder)
        key = f"set aside by {self.run_id}"  # a claim, because only people write pins
        record.claim(key, [*record.claims().get(key, ()), aside.name], fsync=self.policy.fsync)
        move_folder(path, aside)
        warnings.warn(
            explain(
                f"{path} is pinned and in the way of a new checkpoint of its step; it is now {aside.name}",
                fix="delete it if it is not needed any more",
            ),
            TaskloomWarning,
            stacklevel=4,
        )

    def _set_aside(self, path: Place, error: CheckpointError) -> None:
        aside = _free_name(path, "damaged")
        move_folder(path, aside)
        warnings.warn(
            explain(
                f"{path} is in the way of a new checkpoint and cannot be read; it is now {aside.name}",
                why=str(error),
                fix="delete it if nothing in it is needed",
            ),
            TaskloomWarning,
            stacklevel=4,
        )

    def _point(self, manifest: Manifest, entry: KeptCheckpoint) -> None:
        write_last(self.folder, manifest, entry.name, fsync=self.policy.fsync)
        best = self._best()
        if best is not None:
            monitor, mode = self.policy.monitor, self.policy.mode
            pointer = {
                "checkpoint": best.name,
                "step": best.step,
                "run_id": self.run_id,
                "monitor": monitor,
                "mode": mode,
                "value": best.value,
            }
            write_best(self.folder, f"{monitor} ({mode})", pointer, fsync=self.policy.fsync)

    def _prune(self) -> None:
        """Delete what the policy no longer keeps and nothing else holds."""
        wanted = self._wanted()
        record = KeptRecord(self.folder)
        record.claim(self._key, sorted(wanted), fsync=self.policy.fsync)
        others = {name for key, names in record.claims().items() if key != self._key for name in names}
        protected = wanted | others | record.pinned() | named_by_pointers(self.folder) | {self._resumed_from}
        for entry in list(self._entries):
            if entry.name not in protected and self._delete(self.folder / entry.name):
                self._entries = [kept for kept in self._entries if kept is not entry]  # others may be reading the list

    def _delete(self, path: Place) -> bool:
        """Delete a checkpoint of this run; return whether it is gone (or is no longer this run's to delete)."""
        if not kind_of(path):
            return True
        try:
            if Manifest.read(path).run_id != self.run_id:
                return True
            delete_checkpoint(path, self.run_id)
        except (CheckpointError, OSError) as error:
            warnings.warn(
                explain(f"{path} could not be deleted", got=str(error), fix="delete it by hand"),
                TaskloomWarning,
                stacklevel=4,
            )
            return False
        return True

    def _tidy(self) -> None:
        """Remove what a killed process of this run left half written, half replaced or half deleted."""
        if not self._tidied and kind_of(self.folder):
            tidy(self.folder, self.run_id)
            self._tidied = True


def _free_name(path: Place, what: str) -> Place:
    number = 1
    while kind_of(free := path.with_name(f"{path.name}.{what}-{number}")):
        number += 1
    return free


def _no_metric(monitor: str, content: CheckpointContent) -> str:
    known = ", ".join(sorted(content.metrics)) or "none"
    return explain(
        f"CheckpointPolicy monitors {monitor!r}, which was not logged by step {content.step}. Logged so far: {known}",
        fix=f"log it with self.log({monitor!r}, value) in validation_step, or monitor one of those."
        + nearest(monitor, content.metrics),
    )


def _stale_metric(monitor: str, measured: int, step: int) -> str:
    return explain(
        f"CheckpointPolicy monitors {monitor!r}, measured at step {measured}, and a checkpoint is due at step {step}",
        why="the value would belong to other weights than those saved",
        fix="save at the interval of the validation: CheckpointPolicy(every=...) equal to val_check_interval",
    )
