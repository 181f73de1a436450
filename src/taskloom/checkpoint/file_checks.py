"""Comparing the files of a checkpoint with its manifest. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import xxhash

from taskloom.checkpoint.manifest import FileRecord, Manifest
from taskloom.checkpoint.place import Place, StoreError, is_remote, read_ranges, size_of

_BLOCK = 1 << 22
_BLOCKS_AT_ONCE = 8  # that are fetched from a store together


def file_problems(
    path: Place, manifest: Manifest, *, hashes: bool, wanted: Callable[[str], bool] = lambda name: True
) -> list[str]:
    """Return what is wrong with the files of a checkpoint.

    Args:
        path: its folder.
        manifest: what it should hold.
        hashes: read every file and compare its hash; otherwise only sizes are compared.
        wanted: which files to look at, by their path relative to the checkpoint.

    Raises:
        StoreError: the store that it is in cannot be reached.
    """
    found = (
        file_problem(path / name, record, hashes=hashes) for name, record in manifest.files.items() if wanted(name)
    )
    return [problem for problem in found if problem]


def file_problem(file: Place, record: FileRecord, *, hashes: bool) -> str:
    """Return what is wrong with one file, as a sentence; an empty text if nothing is."""
    try:
        size = size_of(file)
        if size != record.bytes:
            what = "is truncated" if size < record.bytes else "has grown"
            return f"{file} {what}: it has {size} bytes, the manifest says {record.bytes}."
        if hashes and hash_of(file, size) != record.xxh3_64:
            return f"{changed(file)}."
    except StoreError:
        raise
    except IsADirectoryError:
        return f"{file} is no regular file."
    except OSError as error:
        return f"{file} is missing or unreadable ({error})."
    return ""


def changed(file: Place) -> str:
    """Return the words for a file whose content is not what was written."""
    return f"{file} was damaged or changed: its xxh3-64 hash is not the manifest's"


def hash_of(file: Place, size: int | None = None) -> str:
    """Return the xxh3-64 hash of a file, read in blocks; a store is asked for its size unless that is given."""
    digest = xxhash.xxh3_64()
    for block in blocks_of(file, size):
        digest.update(block)
    return digest.hexdigest()


def blocks_of(file: Place, size: int | None = None) -> Iterator[bytes | memoryview]:
    """Yield a file in blocks; each is valid until the next one."""
    if is_remote(file):
        size = size_of(file) if size is None else size
        starts = range(0, size, _BLOCK)
        for first in range(0, len(starts), _BLOCKS_AT_ONCE):
            ranges = [(each, min(each + _BLOCK, size)) for each in starts[first : first + _BLOCKS_AT_ONCE]]
            yield from read_ranges(file, ranges)
        return
    block = memoryview(bytearray(_BLOCK))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            yield block[:count]
