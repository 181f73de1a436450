"""A pseudo-terminal to run programs on, and what a person would see there."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from types import TracebackType


class Terminal:
    """A terminal of 100 columns with one program on it: use it in a `with` block."""

    def __init__(self, *arguments: str) -> None:
        self._primary, self._secondary = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), self._secondary)
        self.process = subprocess.Popen([sys.executable, *arguments], env=environment, **streams)  # type: ignore[call-overload]
        self.written = ""
        self._bytes = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._primary)
        os.close(self._secondary)

    def read_until(self, text: str) -> str:
        """Wait until `text` was written, and return everything up to now."""
        while text not in self.written:
            if not self._read() and self.process.poll() is not None:
                raise AssertionError(f"the program ended without writing {text!r}:\n{self.written}")
        return self.written

    def read_to_end(self) -> str:
        """Wait until the program has ended, and return everything it wrote."""
        while self._read() or self.process.poll() is None:
            pass
        return self.written

    def _read(self) -> bool:
        ready, _, _ = select.select([self._primary], [], [], 0.05)
        if ready:
            self._bytes += os.read(self._primary, 65536)
            self.written = self._bytes.decode(errors="ignore")
        return bool(ready)


def screen(written: str) -> list[str]:
    """Return the lines a terminal shows in the end: the few control sequences of rich's live display, carried out."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif part.startswith("\x1b["):
            count = int(part[2:-1]) if part[2:-1].isdigit() else 1
            if part.endswith("A"):
                row -= count
            elif part.endswith("K"):
                rows[row] = ""
        else:
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
            column += len(part)
    return [text.rstrip() for text in rows if text.strip()]
