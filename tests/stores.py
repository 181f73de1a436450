"""Stores that tests write to: one in memory, and an S3 server on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest


class Killed(BaseException):
    """The process is gone: not an error that cleaning up could follow."""


class MemoryStore:
    """`memory://`, which is one for the whole process; empty at the start of a test.

    Attributes:
        log: the changes that were made, in order, each as (operation, name).
        survives: so many more changes happen and none after them, as SIGKILL has it; None for all.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []
        self.survives: int | None = None

    def change(self, operation: str, name: str) -> None:
        if self.survives is not None:
            if not self.survives:
                raise Killed
            self.survives -= 1
        self.log.append((operation, name))

    def killed_after(self, survives: int | None, action: Callable[[], Any]) -> int:
        """Run an action with the process killed after that many changes; return how many there were."""
        begun, self.survives = len(self.log), survives
        try:
            with contextlib.suppress(Killed):
                action()
        finally:
            self.survives = None
        return len(self.log) - begun


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryStore]:
    """The store in memory, whose changes are counted and can be cut off."""
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    store = MemoryStore()

    def guarded(operation: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def change(self: Any, *arguments: Any, **keywords: Any) -> Any:
            name = self.path if isinstance(self, MemoryFile) else arguments[0]
            if operation != "open" or "r" not in keywords.get("mode", arguments[1] if len(arguments) > 1 else "rb"):
                store.change(operation, str(name))
            return original(self, *arguments, **keywords)

        return change

    for name in ("pipe_file", "rm_file", "cp_file", "open"):
        monkeypatch.setattr(MemoryFileSystem, name, guarded(name, getattr(MemoryFileSystem, name)))
    monkeypatch.setattr(MemoryFile, "write", guarded("write", MemoryFile.write), raising=False)
    _empty(MemoryFileSystem)
    yield store
    store.survives = None
    _empty(MemoryFileSystem)


def _empty(kind: Any) -> None:
    kind.store.clear()
    kind.pseudo_dirs[:] = [""]


@dataclass(frozen=True)
class Bucket:
    """A bucket of the S3 server.

    Attributes:
        url: of it.
        options: for fsspec.
    """

    url: str
    options: dict[str, Any]

    def names(self) -> list[str]:
        """Return what is in it."""
        import s3fs

        store = s3fs.S3FileSystem(**self.options, use_listings_cache=False)
        return [name.partition("/")[2] for name in store.find(self.url.removeprefix("s3://"))]


@pytest.fixture(scope="session")
def s3_options() -> Iterator[dict[str, Any]]:
    """An S3 server on this machine, for the whole session, as options for fsspec."""
    server_module = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    s3fs.S3FileSystem(**options).ls("")  # starts the thread that all clients of fsspec share
    yield options
    server.stop()


@pytest.fixture
def bucket(s3_options: dict[str, Any]) -> Bucket:
    """A new bucket."""
    import s3fs

    name = f"test-{uuid4().hex[:12]}"
    s3fs.S3FileSystem(**s3_options, use_listings_cache=False).mkdir(name)
    return Bucket(f"s3://{name}", s3_options)
