"""A text file that grows by whole lines, survives a kill at any moment, and can be cut back to a known length."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from io import FileIO
from pathlib import Path


class LineFile:
    """Lines are appended with one unbuffered write each, so what was logged is with the operating system at once.

    A line without its end, which only a full disk or a power cut can leave, is removed when the file is opened again.

    Args:
        path: of the file; it is created with the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines = 0
        self._size = 0
        self._file: FileIO | None = None

    def open(self, keep: int | None) -> str:
        """Open the file and return its first line, empty when there is none.

        Args:
            keep: cut the file back to this many lines; `None` keeps them all.
        """
        self.close()
        first, self.lines, self._size = b"", 0, 0
        self._file = FileIO(self.path, "a")
        with self.path.open("rb") as existing:
            for line in existing:
                if not line.endswith(b"\n") or self.lines == keep:
                    break
                first = first or line
                self.lines += 1
                self._size += len(line)
        self._file.truncate(self._size)
        return first.decode()

    def append(self, line: str) -> None:
        """Add a line, given with its end.

        Raises:
            OSError: it could not be written; the file then holds what it held before.
        """
        if self._file is not None:
            self._write(self._file, line.encode())
            return
        with FileIO(self.path, "a") as file:  # a line after the end of the run, such as a test's, leaves nothing open
            self._write(file, line.encode())

    def _write(self, file: FileIO, data: bytes) -> None:
        try:
            written = file.write(data)
            if written != len(data):
                raise OSError(f"only {written} of {len(data)} bytes fit into {self.path}")
        except OSError:
            file.truncate(self._size)
            raise
        self._size += len(data)
        self.lines += 1

    def rewrite(self, first: str, change: Callable[[bytes], bytes]) -> None:
        """Replace the first line, and every other by what `change` makes of it, as one atomic step."""
        was_open = self._file is not None
        self.close()
        beside = self.path.with_name(f".{self.path.name}.new")
        with self.path.open("rb") as old, beside.open("wb") as new:
            new.write(first.encode())
            old.readline()
            new.writelines(map(change, old))
        if os.name == "posix":
            shutil.copymode(self.path, beside)
        beside.replace(self.path)
        self.open(keep=None)
        if not was_open:
            self.close()

    def close(self) -> None:
        """Close the file; further lines open it for themselves."""
        if self._file is not None:
            self._file.close()
            self._file = None
