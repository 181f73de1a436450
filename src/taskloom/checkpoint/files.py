"""Every change that a checkpoint makes to a disk: hashed files, synced folders, atomic replacement, removal.

Kept in one place because the order of these few operations is what makes a save survive being killed. A file's xxh3-64
hash is computed from the bytes on their way out, in pieces small enough that the processor's cache serves the hash and
the write at once; a second read would cost as much as the hash itself. The hash tells accidents apart from what was
written. It is no signature: whoever can write the file can write the manifest.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from taskloom.checkpoint.manifest import FileRecord
from taskloom.core.errors import CheckpointError, explain

_CHUNK = 1 << 22


class HashedFile:
    """A new file that is hashed while it is written.

    Args:
        path: must not exist yet.
        fsync: have the disk confirm the content before `close` returns.
    """

    def __init__(self, path: Path, *, fsync: bool) -> None:
        self._file = path.open("xb", buffering=1 << 20)
        self._fsync = fsync
        self._hash = xxhash.xxh3_64()
        self._bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. A memoryview is not copied on its way to the operating system."""
        view = memoryview(data)
        for start in range(0, len(view), _CHUNK):
            chunk = view[start : start + _CHUNK]
            self._hash.update(chunk)
            self._file.write(chunk)
        self._bytes += len(view)

    def close(self) -> FileRecord:
        """Finish the file and return its size and hash."""
        with self._file as file:
            file.flush()
            if self._fsync:
                os.fsync(file.fileno())
        return FileRecord(self._bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close without finishing, after a failure."""
        self._file.close()


def write_file(path: Path, data: bytes, *, fsync: bool) -> FileRecord:
    """Write a whole new file."""
    file = HashedFile(path, fsync=fsync)
    try:
        file.write(data)
    except BaseException:
        file.abandon()
        raise
    return file.close()


def to_json(data: Any, *, indent: int | None = 1) -> bytes:
    """Encode standard JSON (no NaN) in insertion order, indented for people unless it is large."""
    return (json.dumps(data, indent=indent, allow_nan=False) + "\n").encode()


def replace_json(path: Path, data: Any, *, fsync: bool) -> None:
    """Put a JSON file in place of an older one; a reader sees either the old or the new, whole."""
    fresh = path.with_name(f".{path.name}.writing")
    fresh.unlink(missing_ok=True)
    write_file(fresh, to_json(data), fsync=fsync)
    os.replace(fresh, path)
    if fsync:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk confirm the names in a folder (what POSIX asks for after creating or renaming files in it)."""
    if os.name == "nt":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(staged: Path, target: Path, aside: Path, *, fsync: bool) -> None:
    """Rename a finished folder to its final name, putting what was there `aside` and removing it last.

    A folder cannot be renamed over a non-empty one, so there is an instant in which the old folder exists only as
    `aside` and the new one only as `staged`. Both are whole, and a search for checkpoints finds the one set aside.
    """
    replaces = target.exists()
    if replaces:
        remove_tree(aside)
        os.rename(target, aside)
    try:
        os.rename(staged, target)
    except OSError:
        if replaces:
            os.rename(aside, target)
        raise
    if fsync:
        sync_folder(target.parent)
    if replaces:
        remove_tree(aside)


def remove_tree(path: Path) -> None:
    """Remove a folder with all it holds, if it is there; a link is removed, what it leads to is not."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn an error of the operating system while `target` is saved into one that says what to do.

    Raises:
        CheckpointError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = f"free space on the file system of {target.parent}, or keep fewer checkpoints (save_top_k, keep_last)"
        else:
            fix = f"make {target.parent} a folder that this user can write to, or choose another with run_dir"
        what = f"{target} could not be written; earlier checkpoints are untouched"
        raise CheckpointError(explain(what, got=str(error), fix=fix)) from error
