"""The folder of a run: chosen once, made when it is first written to, and found again by `last` and `best`."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

from taskloom.checkpoint import best_checkpoint, latest_checkpoint
from taskloom.core.errors import CheckpointError, explain
from taskloom.core.policies import RunFolder

CHECKPOINTS = "checkpoints"


def make_run_folder(choice: RunFolder, task_name: str) -> Path:
    """Make the folder of a new run and return it.

    Without a name it is called after the task and the time; a number is added where that exists, so that two runs that
    start in the same second do not share one. In a folder that is overwritten, the checkpoints of the run before are
    set aside.

    Raises:
        ValueError: a named folder exists and may not be overwritten.
        PermissionError: it cannot be written; names the folder.
    """
    root = Path(choice.root)
    name = choice.name or f"{_slug(task_name)}-{datetime.now():%Y%m%d-%H%M%S}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in range(10_000):
            folder = root / (name if not number else f"{name}-{number}")
            try:
                folder.mkdir(exist_ok=choice.overwrite)
            except FileExistsError:
                if choice.name is not None:
                    raise ValueError(
                        explain(
                            f"The run folder {folder} exists already",
                            fix="choose another name, pass ckpt_path='last' to continue it, or "
                            "RunFolder(overwrite=True)",
                        )
                    ) from None
                continue
            _set_aside(folder / CHECKPOINTS)
            return folder
    except OSError as error:
        raise PermissionError(
            explain(
                f"The run folder {root / name} cannot be written",
                got=str(error),
                fix="choose another place with run_dir=..., or correct the permissions",
            )
        ) from error
    raise ValueError(explain(f"No free name for a run was found in {root}", got=name))


def _set_aside(checkpoints: Path) -> None:
    """Rename what an overwritten run has saved, to `checkpoints-1` and so on: overwriting destroys no checkpoint."""
    if checkpoints.exists():
        free = (checkpoints.with_name(f"{CHECKPOINTS}-{number}") for number in range(1, 10_000))
        checkpoints.rename(next(path for path in free if not path.exists()))


def find_checkpoint(wanted: str | Path, choice: RunFolder, current: Path | None) -> Path:
    """Return the checkpoint that `ckpt_path` names.

    Args:
        wanted: `"last"` or `"best"` of the run in hand, else of the newest run below the root; a checkpoint; or a
            run's folder.
        choice: where runs are.
        current: folder of the run in hand, if there is one.

    Raises:
        CheckpointError: there is none that verifies; says what was looked at.
    """
    if wanted in ("last", "best"):
        runs = [current] if current is not None else _runs(Path(choice.root) / (choice.name or ""))
        if not runs:
            raise CheckpointError(
                explain(
                    f"ckpt_path={str(wanted)!r} finds no run with a checkpoint in {choice.root}",
                    fix="check run_dir, or pass the path of a checkpoint",
                )
            )
        folder = runs[0] / CHECKPOINTS
        return best_checkpoint(folder) if wanted == "best" else _latest(folder)
    path = Path(wanted)
    if (path / CHECKPOINTS).is_dir():
        return _latest(path / CHECKPOINTS)
    return path


def run_folder_of(checkpoint: Path) -> Path | None:
    """Return the run folder that a checkpoint lies in, None when it was saved elsewhere."""
    return checkpoint.parent.parent if checkpoint.parent.name == CHECKPOINTS else None


def _latest(folder: Path) -> Path:
    found, skipped = latest_checkpoint(folder)
    if found is None:
        raise CheckpointError(
            explain(
                f"No checkpoint in {folder} verifies",
                got=skipped or "none was written",
                fix="pass the path of another checkpoint, or start anew without ckpt_path",
            )
        )
    return found


def _runs(root: Path) -> list[Path]:
    """Return run folders that hold checkpoints, the one that was written to last first."""
    found = [
        path.parent
        for path in (root / CHECKPOINTS, *root.glob(f"*/{CHECKPOINTS}"))
        if path.is_dir() and any(path.glob("step-*"))
    ]
    return sorted(found, key=lambda run: _written_at(run / CHECKPOINTS), reverse=True)


def _written_at(folder: Path) -> float:
    pointer = folder / "last.json"
    return pointer.stat().st_mtime if pointer.exists() else folder.stat().st_mtime


def _slug(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
