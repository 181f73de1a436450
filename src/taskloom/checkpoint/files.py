"""Every change that a checkpoint makes to a disk or a store: hashed files, synced folders, replacement, removal.

Kept in one place because the order of these few operations is what makes a save survive being killed. A file's xxh3-64
hash is computed from the bytes on their way out, in pieces small enough that the processor's cache serves the hash and
the write at once; a second read would cost as much as the hash itself. The hash tells accidents apart from what was
written. It is no signature: whoever can write the file can write the manifest.

Every function takes a local path or one in a store (`checkpoint/place.py`). A store knows no rename and no fsync: a
small file is one PUT, which readers see whole or not at all; a large one is a streamed upload that is there once it is
closed; both are as durable as the store promises when the call returns. How a whole checkpoint becomes visible with so
little is in `checkpoint/staging.py`.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from taskloom.checkpoint.manifest import MANIFEST, FileRecord
from taskloom.checkpoint.place import (
    Place,
    StoreError,
    files_below,
    has_folders,
    is_remote,
    kind_of,
    store_errors,
    store_of,
)
from taskloom.core.errors import CheckpointError, explain

_CHUNK = 1 << 22


class HashedFile:
    """A new file that is hashed while it is written.

    Args:
        path: must not exist yet. In a store it is uploaded in parts and appears when it is closed.
        fsync: have the disk confirm the content before `close` returns.
    """

    def __init__(self, path: Place, *, fsync: bool) -> None:
        self._path, self._remote = path, is_remote(path)
        self._file: Any = self._open()
        self._fsync = fsync and not self._remote
        self._hash = xxhash.xxh3_64()
        self._bytes = 0

    def _open(self) -> Any:
        if not self._remote:
            # Unbuffered, so that a worker process that is forked while another thread writes inherits no bytes of it.
            return self._path.open("xb", buffering=0)
        store, name = store_of(self._path)
        with store_errors(self._path):
            return store.open(name, "wb")

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. A memoryview is not copied on its way to the operating system."""
        view = memoryview(data)
        with store_errors(self._path):
            for start in range(0, len(view), _CHUNK):
                chunk = view[start : start + _CHUNK]
                self._hash.update(chunk)
                if self._remote:
                    self._file.write(bytes(chunk))
                else:
                    _write_all(self._file, chunk)
        self._bytes += len(view)

    def close(self) -> FileRecord:
        """Finish the file and return its size and hash."""
        with store_errors(self._path), self._file as file:
            if self._fsync:
                os.fsync(file.fileno())
        return FileRecord(self._bytes, self._hash.hexdigest())

    def abandon(self) -> None:
        """Close without finishing, after a failure; nothing of it appears in a store."""
        if not self._remote:
            self._file.close()
            return
        from fsspec.spec import AbstractBufferedFile

        if isinstance(self._file, AbstractBufferedFile):
            with suppress(Exception):  # the failure that led here is the one to tell; parts left behind expire
                self._file.discard()
            self._file.closed = True  # closing would upload the rest


def _write_all(file: Any, data: memoryview) -> None:
    """Write bytes with as many system calls as it takes; a disk that is nearly full takes a part of them first."""
    while len(data):
        data = data[file.write(data) :]


def write_file(path: Place, data: bytes, *, fsync: bool) -> FileRecord:
    """Write a whole new file; in a store with a single PUT."""
    if is_remote(path):
        put_bytes(path, data)
        return FileRecord(len(data), xxhash.xxh3_64_hexdigest(data))
    file = HashedFile(path, fsync=fsync)
    try:
        file.write(data)
    except BaseException:
        file.abandon()
        raise
    return file.close()


def put_bytes(path: Place, data: bytes) -> None:
    """Put a file into a store in one step; what was there is replaced in the same instant."""
    store, name = store_of(path)
    with store_errors(path):
        if has_folders(path):
            store.makedirs(name.rpartition("/")[0], exist_ok=True)
        store.pipe_file(name, data)


def claim_file(path: Place, data: bytes) -> bool:
    """Write a new file unless there is one already; return whether it was written.

    Of several processes that try, one succeeds. A store that has no exclusive PUT is asked first whether the file is
    there, which leaves an instant in which two may succeed.
    """
    if not is_remote(path):
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
        return True
    store, name = store_of(path)
    if kind_of(path):
        return False
    with store_errors(path):
        try:
            store.pipe_file(name, data, mode="create")
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError, ValueError):
            store.pipe_file(name, data)
    return True


def make_folder(path: Place, *, exist_ok: bool = True) -> None:
    """Make a folder with those above it; nothing where folders are but the beginnings of names."""
    if has_folders(path):
        with store_errors(path):
            path.mkdir(parents=True, exist_ok=exist_ok)


def to_json(data: Any, *, indent: int | None = 1) -> bytes:
    """Encode standard JSON (no NaN) in insertion order, indented for people unless it is large."""
    return (json.dumps(data, indent=indent, allow_nan=False) + "\n").encode()


def replace_json(path: Place, data: Any, *, fsync: bool) -> None:
    """Put a JSON file in place of an older one; a reader sees either the old or the new, whole."""
    replace_file(path, to_json(data), fsync=fsync)


def replace_file(path: Place, data: bytes, *, fsync: bool) -> None:
    """Put a file in place of an older one, if there is one; a reader sees either the old or the new, whole."""
    if is_remote(path):
        put_bytes(path, data)
        return
    fresh = path.with_name(f".{path.name}.writing")
    fresh.unlink(missing_ok=True)
    write_file(fresh, data, fsync=fsync)
    os.replace(fresh, path)
    if fsync:
        sync_folder(path.parent)


def sync_folder(folder: Place) -> None:
    """Have the disk confirm the names in a folder (what POSIX asks for after creating or renaming files in it)."""
    if os.name == "nt" or is_remote(folder):
        return  # folders cannot be opened there, or are not there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(staged: Path, target: Path, aside: Path, *, fsync: bool) -> None:
    """Rename a finished local folder to its final name, putting what was there `aside` and removing it last.

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


def move_folder(path: Place, new: Place) -> None:
    """Give a folder another name, which must be free.

    In a store its files are copied, manifests last, and then removed, manifests first, so that what is whole can be
    told at any instant.
    """
    if not is_remote(path):
        os.rename(path, new)
        return
    copy_folder(path, new)
    remove_tree(path)


def copy_folder(path: Place, new: Place) -> None:
    """Copy files within a store, manifests last."""
    files = sorted(files_below(path), key=lambda file: file.name == MANIFEST)
    for file in files:
        _copy_file(file, new.joinpath(str(file.relative_to(path))))


def _copy_file(path: Place, new: Place) -> None:
    store, name = store_of(path)
    _, new_name = store_of(new)
    with store_errors(new):
        if has_folders(new):
            store.makedirs(new_name.rpartition("/")[0], exist_ok=True)
        try:
            store.cp_file(name, new_name)
        except NotImplementedError:
            with store.open(name, "rb") as source, store.open(new_name, "wb") as copy:
                shutil.copyfileobj(source, copy, _CHUNK)


def upload_file(file: Path, path: Place) -> None:
    """Copy a local file into a store, in parts if it is large; it appears there whole."""
    store, name = store_of(path)
    with store_errors(path):
        if has_folders(path):
            store.makedirs(name.rpartition("/")[0], exist_ok=True)
        store.put_file(str(file), name)


def download_file(path: Place, file: Path) -> None:
    """Copy a file of a store to a local one, replacing that in one step."""
    store, name = store_of(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.writing")
    with store_errors(path):
        store.get_file(name, str(fresh))
    os.replace(fresh, file)


def remove_file(path: Place) -> None:
    """Remove a file, if it is there."""
    if not is_remote(path):
        path.unlink(missing_ok=True)
        return
    store, name = store_of(path)
    with store_errors(path), suppress(FileNotFoundError):
        store.rm_file(name)


def remove_tree(path: Place, *, keep: str = "") -> None:
    """Remove a folder with all it holds, if it is there; a link is removed, what it leads to is not.

    Args:
        path: the folder. In a store manifests go first, so that what is half removed is no checkpoint.
        keep: name of a file in it that stays, in a store.
    """
    if is_remote(path):
        for file in sorted(files_below(path), key=lambda file: file.name != MANIFEST):
            if file.name != keep:
                remove_file(file)
        if not keep and has_folders(path) and kind_of(path):
            store, name = store_of(path)
            with store_errors(path):
                store.rm(name, recursive=True)
    elif path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


@contextmanager
def disk_errors(target: Place) -> Iterator[None]:
    """Turn an error of the operating system or a store while `target` is saved into one that says what to do.

    Raises:
        CheckpointError: instead of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        what = f"{target} could not be written; earlier checkpoints are untouched"
        if isinstance(error, StoreError) or (is_remote(target) and "Fix:" in str(error)):
            raise CheckpointError(explain(what, why=str(error))) from error  # says itself what to do
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = f"free space on the file system of {target.parent}, or keep fewer checkpoints (save_top_k, keep_last)"
        else:
            fix = f"make {target.parent} a folder that this user can write to, or choose another with run_dir"
        raise CheckpointError(explain(what, got=str(error), fix=fix)) from error
