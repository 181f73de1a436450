"""A deterministic injector: at the n-th change that a process makes to a disk, something goes wrong.

A change is a folder made, a name moved or removed, a call of fsync, or a piece of a file written. What goes wrong
happens in a process of its own, forked from the test, so that a kill is a real SIGKILL.
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskloom.checkpoint.files import HashedFile

CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")
Fault = Callable[[int, Callable[[], Any], "HashedFile | None", Any], Any]
"""Called with the number of the change, what makes it, and for a write the file and its data."""


class Faults:
    """Counts changes, and lets a fault take the place of each.

    Args:
        fault: decides what happens; None lets everything happen.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.count, self._fault = 0, fault
        self.writes: list[int] = []

    def _change(self, make: Callable[[], Any], file: HashedFile | None = None, data: Any = None) -> Any:
        self.count += 1
        if file is not None:
            self.writes.append(self.count)
        if self._fault is None:
            return make()
        return self._fault(self.count, make, file, data)

    @contextmanager
    def injected(self) -> Iterator[Faults]:
        """Watch the changes that happen within."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGES:
                patch.setattr(os, name, self._guarded(getattr(os, name)))
            original = HashedFile.write

            def write(file: HashedFile, data: Any) -> None:
                self._change(lambda: original(file, data), file, data)

            patch.setattr(HashedFile, "write", write)
            yield self

    def _guarded(self, original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **keywords: self._change(lambda: original(*arguments, **keywords))


def kill() -> None:
    """End this process as the system's out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # a signal to oneself arrives soon, and nothing may happen until it does


def killed_at(number: int, *, half: bool = False) -> Fault:
    """Kill the process before a change, which is after the one before it, or with only half of a write done."""

    def fault(count: int, make: Callable[[], Any], file: HashedFile | None, data: Any) -> Any:
        if count != number:
            return make()
        if half and file is not None:
            file._file.write(bytes(memoryview(data)[: len(data) // 2]))
            file._file.flush()
        return kill()

    return fault


def full_from(number: int) -> Fault:
    """Let the disk be full from a change on: nothing can be made or written, but things can be removed."""

    def fault(count: int, make: Callable[[], Any], file: HashedFile | None, data: Any) -> Any:
        if count >= number and file is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return make()

    return fault


def slowed(seconds: float) -> Fault:
    """Let every change take longer."""

    def fault(count: int, make: Callable[[], Any], file: HashedFile | None, data: Any) -> Any:
        time.sleep(seconds)
        return make()

    return fault


def in_a_process(action: Callable[[], Any], result: Path) -> Any:
    """Run an action in a forked process; return what it returned, or the number of the signal that killed it.

    Raises:
        AssertionError: the action raised; with its traceback.
    """
    result.unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks in processes with threads, such as pytest-xdist's
        child = os.fork()
    if child == 0:
        try:
            result.write_bytes(pickle.dumps((True, action())))
        except BaseException:
            result.write_bytes(pickle.dumps((False, traceback.format_exc())))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    fine, value = pickle.loads(result.read_bytes())
    assert fine, value
    return value
