"""`LogMirror`: the files that loggers write, where the folder of a run lies in a store.

A store cannot append to a file, so loggers write to a folder of this machine, and what has changed there is copied to
the run before each checkpoint becomes visible and at the end. A resumed run gets the copies back first, on whichever
machine: a checkpoint is never ahead of the logs beside it, and loggers remove what it does not know of.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any
from warnings import warn

from taskloom.checkpoint.files import download_file, replace_json, upload_file
from taskloom.checkpoint.manifest import is_inside
from taskloom.checkpoint.place import Place, read_bytes
from taskloom.core.errors import TaskloomWarning, explain

_ORIGIN = "copied-to.json"
_LIST = "logs.json"


class LogMirror:
    """Copies log files of a run between this machine and the run's folder in a store.

    Args:
        run: the run's folder.
        root: folder of this machine; the logs go to a folder of the run's name below it.

    Attributes:
        local: that folder.
        is_complete: the last copy succeeded.
    """

    def __init__(self, run: Place, root: Path) -> None:
        self._run = run
        self.local = self._own_folder(root)
        self._copied: dict[str, tuple[int, int]] = {}  # size and time of change when it was copied
        self._listed: list[str] = []
        self._lock = Lock()
        self.is_complete = True

    def _own_folder(self, root: Path) -> Path:
        """Return the folder for this run: one that is its own already, or a new one."""
        number = 0
        while True:
            folder = root / (f"{self._run.name}-{number}" if number else self._run.name)
            if not folder.exists():
                folder.mkdir(parents=True)
                replace_json(folder / _ORIGIN, {"copied_to": str(self._run)}, fsync=False)
                return folder
            if _json(folder / _ORIGIN).get("copied_to") == str(self._run):
                return folder
            number += 1

    def fetch(self) -> None:
        """Bring the copies of the run to this machine, in place of what is here.

        Raises:
            OSError: one cannot be read.
        """
        self._listed = [name for name in _json(self._run / _LIST).get("files", []) if is_inside(name)]
        for name in self._listed:
            download_file(self._run.joinpath(name), self.local / name)

    def copy(self) -> bool:
        """Copy what has changed to the run; return whether all is there.

        A copy that fails costs no training: it is told once, and tried again the next time.
        """
        with self._lock:
            try:
                self._copy()
            except OSError as error:
                if self.is_complete:
                    warn(
                        explain(
                            f"The logs in {self.local} could not be copied to {self._run}; training goes on",
                            got=str(error),
                            why="they are copied again at the next checkpoint and at the end",
                        ),
                        TaskloomWarning,
                        stacklevel=3,
                    )
                self.is_complete = False
                return False
            self.is_complete = True
            return True

    def _copy(self) -> None:
        names = []
        for name, file in self._files():
            found = file.stat()
            seen = (found.st_size, found.st_mtime_ns)
            if self._copied.get(name) != seen:
                upload_file(file, self._run.joinpath(name))
                self._copied[name] = seen
            names.append(name)
        if names != self._listed:
            replace_json(self._run / _LIST, {"files": names}, fsync=False)
            self._listed = names

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self.local.rglob("*")):
            name = str(PurePosixPath(*path.relative_to(self.local).parts))
            if path.is_file() and name != _ORIGIN and not path.name.startswith("."):
                yield name, path


def _json(path: Place) -> dict[str, Any]:
    try:
        data = json.loads(read_bytes(path))
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
