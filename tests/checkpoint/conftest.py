"""What the tests of checkpoints share: small contents, and a process that can be killed at any change to the disk."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint.contents import make_content

from taskloom.checkpoint import CheckpointContent
from taskloom.checkpoint.files import HashedFile


@pytest.fixture
def content() -> Callable[..., CheckpointContent]:
    return make_content


class Killed(BaseException):
    """The process is gone: not an error that cleaning up could follow."""


class Killer:
    """Let the first `survives` changes to the disk happen and none after them, as SIGKILL does."""

    def __init__(self, survives: int | None) -> None:
        self.survives = survives
        self.changes = 0

    def __call__(self) -> None:
        if self.survives is not None and self.changes >= self.survives:
            raise Killed
        self.changes += 1


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, Callable[[], Any]], int]:
    """Run an action with the process killed after that many changes; return how many there were."""

    def run(survives: int | None, action: Callable[[], Any]) -> int:
        killer = Killer(survives)

        def guarded(original: Callable[..., Any]) -> Callable[..., Any]:
            def change(*arguments: Any, **keywords: Any) -> Any:
                killer()
                return original(*arguments, **keywords)

            return change

        with monkeypatch.context() as patch:
            for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync"):
                patch.setattr(os, name, guarded(getattr(os, name)))
            patch.setattr(HashedFile, "write", guarded(HashedFile.write))
            with contextlib.suppress(Killed):
                action()
        return killer.changes

    return run


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process cannot write to, also when the tests run as root."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    folder.chmod(0o500)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)
