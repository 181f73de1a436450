"""The folder of a run: chosen once, made when it is first written to, and found again by `last` and `best`.

It may lie in a store (`s3://bucket/runs`). What a folder on a disk does by being made, a small file does there:
`run.json`, put exclusively, claims the name. On both it tells what the run is of, so that a search can tell runs apart
without opening their checkpoints.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import PurePath
from typing import Any

from taskloom.checkpoint.files import claim_file, make_folder, move_folder, replace_file, to_json
from taskloom.checkpoint.folder import LAST, PassedOver, best_checkpoint, search
from taskloom.checkpoint.place import (
    Place,
    StoreError,
    children,
    is_file,
    is_folder,
    is_remote,
    kind_of,
    modified_at,
    place_of,
    read_bytes,
    run_root,
)
from taskloom.core.errors import CheckpointError, explain
from taskloom.core.policies import RunFolder

CHECKPOINTS = "checkpoints"
RUN = "run.json"


@dataclass(frozen=True)
class Found:
    """The checkpoint that `ckpt_path` names.

    Args:
        path: of it.
        verified: every file of it was read and its hash compared while it was looked for.
        run: the run it was looked for in, where that was not given.
        other_runs: that were passed over for this one, the one written to last first.
        passed_over: in the run, on the way to this checkpoint.
    """

    path: Place
    verified: bool = False
    run: Place | None = None
    other_runs: tuple[Place, ...] = ()
    passed_over: tuple[PassedOver, ...] = ()

    def lines(self) -> list[str]:
        """Say what was chosen where there was a choice."""
        lines = []
        if self.run is not None and self.other_runs:
            shown = ", ".join(run.name for run in self.other_runs[:3])
            more = f" and {len(self.other_runs) - 3} more" if len(self.other_runs) > 3 else ""
            lines.append(f"Run: {self.run.name} (passed over {shown}{more})")
        return [*lines, *(f"Passed over {each}" for each in self.passed_over)]


def make_run_folder(choice: RunFolder, task_name: str, *, task_class: str = "", run_id: str = "") -> Place:
    """Make the folder of a new run and return it.

    Without a name it is called after the task and the time; a number is added where that exists, so that two runs that
    start in the same second do not share one. In a folder that is overwritten, the checkpoints of the run before are
    set aside.

    Args:
        choice: where.
        task_name: what runs without a name are called after.
        task_class: import path of the task's class, noted in `run.json`.
        run_id: noted there too.

    Raises:
        ValueError: a named folder exists and may not be overwritten.
        PermissionError: it cannot be written; names the folder.
    """
    root = run_root(choice)
    name = choice.name or f"{_slug(task_name)}-{datetime.now():%Y%m%d-%H%M%S}"
    started = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = to_json({"run_id": run_id, "task_class": task_class, "started_at": started, "host": socket.gethostname()})
    try:
        make_folder(root)
        for number in range(10_000):
            folder = root / (name if not number else f"{name}-{number}")
            if _claim(folder, facts, overwrite=choice.overwrite):
                return folder
            if choice.name is not None:
                raise ValueError(
                    explain(
                        f"The run folder {folder} exists already",
                        fix="choose another name, pass ckpt_path='last' to continue it, or RunFolder(overwrite=True)",
                    )
                )
    except StoreError:
        raise
    except OSError as error:
        raise PermissionError(
            explain(
                f"The run folder {root / name} cannot be written",
                got=str(error),
                fix="choose another place with run_dir=..., or correct the permissions",
            )
        ) from error
    raise ValueError(explain(f"No free name for a run was found in {root}", got=name))


def _claim(folder: Place, facts: bytes, *, overwrite: bool) -> bool:
    """Make a folder this run's own; False if it is another's."""
    if is_remote(folder):
        if not overwrite and (kind_of(folder) or not claim_file(folder / RUN, facts)):
            return False
    else:
        try:
            folder.mkdir(exist_ok=overwrite)
        except FileExistsError:
            return False
    _set_aside(folder / CHECKPOINTS)
    replace_file(folder / RUN, facts, fsync=False)
    return True


def _set_aside(checkpoints: Place) -> None:
    """Rename what an overwritten run has saved, to `checkpoints-1` and so on: overwriting destroys no checkpoint."""
    if kind_of(checkpoints):
        free = (checkpoints.with_name(f"{CHECKPOINTS}-{number}") for number in range(1, 10_000))
        move_folder(checkpoints, next(path for path in free if not kind_of(path)))


def require_shared(folder: Place, run_id: str, node: int) -> None:
    """Hold that a process sees the run's folder that rank 0 has made: one folder, which all machines share.

    Raises:
        RuntimeError: it is not there, or is another one of the same name.
    """
    found = run_facts(folder).get("run_id")
    if found == run_id:
        return
    raise RuntimeError(
        explain(
            f"Machine {node} ({socket.gethostname()}) does not see the run's folder {folder}",
            got=f"the folder of the run {found!r}" if found else "no such folder",
            why="rank 0 writes for all machines, and every one reads from there when the run is resumed",
            fix="choose a run_dir on a file system that all machines share, or a store such as s3://bucket/runs",
        )
    )


def run_facts(folder: Place) -> dict[str, Any]:
    """Return what `run.json` tells of a run; nothing if it is missing or damaged."""
    try:
        facts = json.loads(read_bytes(folder / RUN))
    except StoreError:
        raise
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def find_checkpoint(
    wanted: str | PurePath, choice: RunFolder, current: Place | None, *, task_class: str = "", hashes: bool = True
) -> Found:
    """Return the checkpoint that `ckpt_path` names.

    Args:
        wanted: `"last"` or `"best"` of the run in hand, else of the newest run below the root; a checkpoint; or a
            run's folder.
        choice: where runs are.
        current: folder of the run in hand, if there is one.
        task_class: import path of the task's class; runs of a class with this name come before others.
        hashes: read all files of `last`; otherwise only their sizes are compared.

    Raises:
        CheckpointError: there is none that verifies; says what was looked at.
        OSError: the store that it is in cannot be asked.
    """
    if wanted not in ("last", "best"):
        path = place_of(wanted, choice)
        return _latest(path, hashes=hashes) if is_folder(path / CHECKPOINTS) else Found(path)
    runs = [current] if current is not None else runs_below(choice, task_class)
    if not runs:
        raise CheckpointError(
            explain(
                f"ckpt_path={str(wanted)!r} finds no run with a checkpoint in {choice.root}",
                fix="check run_dir, or pass the path of a checkpoint",
            )
        )
    run, others = runs[0], tuple(runs[1:])
    if wanted == "best":
        return Found(best_checkpoint(run / CHECKPOINTS), verified=True, run=run, other_runs=others)
    return _latest(run, others, hashes=hashes)


def run_folder_of(checkpoint: Place) -> Place | None:
    """Return the run folder that a checkpoint lies in, None when it was saved elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None


def runs_below(choice: RunFolder, task_class: str = "") -> list[Place]:
    """Return run folders that hold checkpoints: those of the class first, the one that was written to last first.

    Raises:
        OSError: the store that they are in cannot be asked.
    """
    root = run_root(choice) / choice.name if choice.name else run_root(choice)
    folders = [root, *(path for path, is_a_folder in children(root) if is_a_folder)]
    found = [(run, when) for run in folders for when in [_written_at(run / CHECKPOINTS)] if when is not None]
    is_other = _is_of_another_class(task_class)
    return [run for run, _ in sorted(found, key=lambda each: (is_other(each[0]), -each[1]))]


def _is_of_another_class(task_class: str) -> Callable[[Place], bool]:
    """Return what tells runs of other classes; modules are not compared, for a script's own is `__main__`."""
    name = task_class.rpartition(".")[2]

    def is_other(run: Place) -> bool:
        found = str(run_facts(run).get("task_class", "")).rpartition(".")[2] if name else ""
        return bool(found) and found != name

    return is_other


def _written_at(folder: Place) -> float | None:
    """Return when the last checkpoint of a run was written, None if it has none."""
    if is_file(folder / LAST):
        return modified_at(folder / LAST)
    steps = [path for path, is_a_folder in children(folder) if is_a_folder and "step-" in path.name]
    if not steps:
        return None
    manifests = [path / "manifest.json" for path in steps if is_file(path / "manifest.json")]
    return max(map(modified_at, manifests), default=0.0)


def _latest(run: Place, others: tuple[Place, ...] = (), *, hashes: bool) -> Found:
    folder = run / CHECKPOINTS
    found, passed_over = search(folder, hashes=hashes)
    if found is None:
        raise CheckpointError(
            explain(
                f"No checkpoint in {folder} verifies",
                got=[str(each) for each in passed_over] or "none was written",
                fix="pass the path of another checkpoint, or start anew without ckpt_path",
            )
        )
    return Found(found, hashes, run, others, tuple(passed_over))


def _slug(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
