"""Deleting checkpoints when asked to, beyond what the policies of a run delete by themselves.

Never deleted are: what `last.json` or `best.json` name, what is pinned, what a run was last resumed from, the newest
checkpoint that training can be resumed from, and anything whose manifest cannot be read. Of the checkpoints that are to
be kept every file is read and compared with its hash first, and one that is damaged does not count as kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from time import time

from taskloom.checkpoint.catalogue import Leftover, Listed, list_checkpoints, list_leftovers, marks_in, monitored
from taskloom.checkpoint.file_checks import file_problems
from taskloom.checkpoint.files import disk_errors, remove_tree
from taskloom.checkpoint.place import Place
from taskloom.checkpoint.staging import delete_checkpoint
from taskloom.core.errors import ConfigError, explain, nearest

HOUR = 3600.0


@dataclass(frozen=True)
class Pruning:
    """What is deleted and what stays.

    Args:
        delete: checkpoints, the oldest first.
        keep: the others, each with the reason.
        leftovers: of killed saves, old enough to be no save in progress.
    """

    delete: tuple[Listed, ...]
    keep: tuple[tuple[Listed, str], ...]
    leftovers: tuple[Leftover, ...]

    @property
    def bytes(self) -> int:
        """What becomes free."""
        return sum(each.bytes for each in self.delete) + sum(each.bytes for each in self.leftovers)

    def apply(self) -> int:
        """Delete, but for what has been pinned or named since, and return the bytes that became free.

        Raises:
            CheckpointError: something cannot be deleted; what is left is whole.
        """
        free = 0
        for each in self.delete:
            assert each.manifest is not None  # such are never among them
            with disk_errors(each.path):
                if each.path.name not in marks_in(each.path.parent):
                    delete_checkpoint(each.path, each.manifest.run_id)
                    free += each.bytes
        for leftover in self.leftovers:
            with disk_errors(leftover.path):
                remove_tree(leftover.path)
            free += leftover.bytes
        return free


def plan_pruning(
    folder: Place,
    *,
    keep_last: int | None = None,
    keep_best: int | None = None,
    monitor: str | None = None,
    mode: str | None = None,
    leftover_age: float = HOUR,
) -> Pruning:
    """Decide what of a folder of checkpoints is deleted.

    Args:
        folder: holds the checkpoints of a run.
        keep_last: how many of the newest stay. With neither this nor `keep_best`, all stay.
        keep_best: how many of the best by `monitor` stay.
        monitor: a metric; may be left out where the run monitored just one.
        mode: `"min"` or `"max"`; by default that of the run, else `"min"`.
        leftover_age: seconds that nothing was written to what a killed save has left, before it is removed.

    Raises:
        ConfigError: there is no telling which are best.
    """
    listed = list_checkpoints(folder)
    readable = [each for each in listed if each.manifest is not None]
    reasons: dict[Place, str] = {each.path: "it cannot be read" for each in listed if each.manifest is None}
    reasons.update({each.path: ", ".join(each.marks) for each in listed if each.marks})
    aside = [each.path for each in readable if each.path.name.startswith(".")]
    reasons.update(dict.fromkeys(aside, "it was set aside and is the only copy"))
    newest = readable[::-1]
    if keep_last is None and keep_best is None:
        reasons.update(dict.fromkeys((each.path for each in readable), "nothing was asked to be deleted"))
    else:
        checks = _Checks(reasons)
        checks.keep((each for each in newest if each.manifest and not each.manifest.weights_only), 1, "newest")
        checks.keep(newest, keep_last or 0, "newest")
        if keep_best is not None:
            checks.keep(_ranked(folder, readable, monitor, mode), keep_best, "best")
    now = time()
    return Pruning(
        delete=tuple(each for each in readable if each.path not in reasons),
        keep=tuple((each, reasons[each.path]) for each in listed if each.path in reasons),
        leftovers=tuple(each for each in list_leftovers(folder) if now - each.written_at >= leftover_age),
    )


class _Checks:
    """Chooses checkpoints to keep, reading each of them once."""

    def __init__(self, reasons: dict[Place, str]) -> None:
        self._reasons = reasons
        self._problem: dict[Place, str] = {}

    def keep(self, ordered: Iterable[Listed], count: int, reason: str) -> None:
        """Keep the first `count` that are whole, and what is damaged before them."""
        for each in ordered:
            if count <= 0:
                return
            problem = self._problem_of(each)
            if problem:
                self._reasons.setdefault(each.path, f"it is damaged and does not count: {problem}")
            else:
                self._reasons.setdefault(each.path, reason)
                count -= 1

    def _problem_of(self, each: Listed) -> str:
        if each.path not in self._problem:
            assert each.manifest is not None
            problems = file_problems(each.path, each.manifest, hashes=True)
            self._problem[each.path] = problems[0] if problems else ""
        return self._problem[each.path]


def _ranked(folder: Place, readable: list[Listed], monitor: str | None, mode: str | None) -> list[Listed]:
    """Return the checkpoints that have the metric, best first; of equal ones the earlier first."""
    known = monitored(folder)
    measured = sorted({name for each in readable if each.manifest for name in each.manifest.metrics})
    if monitor is None and len(known) != 1:
        raise ConfigError(
            [
                explain(
                    "There is no telling which checkpoints are best",
                    why=f"the run monitored {', '.join(known) or 'nothing'}",
                    fix=f"name the metric: --monitor {next(iter(known), next(iter(measured), 'val/loss'))}",
                )
            ]
        )
    name = monitor or next(iter(known))
    if name not in measured:
        raise ConfigError(
            [
                explain(
                    f"No checkpoint has the metric {name!r}",
                    got=measured,
                    fix=f"use one of these.{nearest(name, measured)}",
                )
            ]
        )
    sign = -1.0 if (mode or known.get(name, "min")) == "max" else 1.0
    values = [(each.metric(name), each) for each in readable]
    return [
        each
        for _, each in sorted(
            ((sign * value, each) for value, each in values if value is not None), key=lambda pair: pair[0]
        )
    ]
