"""Places: where a user typed that something is or goes, as a path, and looking at what is there.

A local folder is a `pathlib.Path`. Anything else that fsspec knows (`s3://`, `gs://`, `az://`, `memory://`, `sftp://`)
is a `upath.UPath`, which has the same methods; packages that this needs are imported when the first such place is
named. The functions here take either, ask a store itself rather than what its client remembers, and turn what clients
raise into `OSError`, so that callers handle one kind of error and nothing is taken for absent because the network was.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeAlias
from urllib.parse import unquote

from taskloom.core.errors import MissingPackageError, explain, missing_package, nearest
from taskloom.core.policies import RunFolder

Place: TypeAlias = Path
"""A `pathlib.Path`, or a `upath.UPath` that is used as one."""

_URL = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.\-]+)://")
_FLATTENED = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.\-]+):[/\\]")
_NO_BUCKET = re.compile(r"(bucket|container) (does not|doesn't) exist", re.IGNORECASE)
_EXTRAS = {"s3": "s3", "s3a": "s3"}


class StoreError(OSError):
    """What the client of a store raised; names the address and what to do."""


def as_path(place: str | PurePath, options: Mapping[str, Any] | None = None) -> Place:
    """Return what a user typed as a path.

    Args:
        place: a folder or file; a URL of a protocol that fsspec knows; or a `UPath`, whose own options stay.
            `file://` means a local path.
        options: for the file system of a URL (`endpoint_url`, `key`, ...); what is not given comes from fsspec's own
            configuration and from the environment, as the store's client reads them.

    Raises:
        MissingPackageError: the package for a protocol is not installed; names what to install.
        ValueError: nobody knows the protocol, or a URL lost a slash on its way through a `pathlib.Path`.
    """
    if isinstance(place, Path):
        _refuse_flattened(place)
        return place
    text = str(place)
    match = _URL.match(text)
    if match is None:
        _refuse_flattened(Path(text))
        return Path(text)
    protocol = match["protocol"].lower()
    if protocol in ("file", "local"):
        return _local_path(text[match.end() :])
    _require_protocol(protocol, text)
    from upath import UPath
    from upath.implementations.cloud import CloudPath

    given: Any = place
    trimmed = match[0] + text[match.end() :].rstrip("/")
    path = UPath(trimmed, **(options or {})) if isinstance(place, str) else given
    if isinstance(path, CloudPath) and "use_listings_cache" not in path.storage_options:
        # other processes write to a bucket too, and what a client remembers of a listing would hide that
        path = UPath(path, use_listings_cache=False)
    found: Place = path
    return found


def is_remote(path: Place) -> bool:
    """Whether a path leads to a store, which has no rename, no links and no fsync."""
    return not isinstance(path, Path)


def has_folders(path: Place) -> bool:
    """Whether folders exist by themselves there, rather than being the beginnings of names as in an object store."""
    if not is_remote(path):
        return True
    from upath.implementations.cloud import CloudPath
    from upath.implementations.memory import MemoryPath

    return not isinstance(path, (CloudPath, MemoryPath))


def same_store(path: Place, text: str | PurePath) -> bool:
    """Whether what a user typed is of the protocol of `path`, so that the same options open both."""
    match = _URL.match(str(text))
    remote: Any = path
    return is_remote(path) and match is not None and match["protocol"].lower() == remote.protocol


def run_root(choice: RunFolder) -> Place:
    """Return the folder of all runs as a path."""
    return as_path(choice.root, choice.storage_options)


def place_of(path: str | PurePath, choice: RunFolder) -> Place:
    """Return a path that a user typed; in a store of the kind that runs go to, with the options for that."""
    return as_path(path, choice.storage_options if same_store(run_root(choice), path) else None)


def store_of(path: Place) -> tuple[Any, str]:
    """Return the fsspec file system of a remote path, and its name there.

    Raises:
        StoreError: the client cannot be made.
    """
    remote: Any = path
    with store_errors(path):
        return remote.fs, remote.path


@contextmanager
def store_errors(path: Place) -> Generator[None, None, None]:
    """Turn whatever a store's client raises into an `OSError` that names the address and the remedy.

    Raises:
        FileNotFoundError: the client says that it, or its bucket, is not there.
        PermissionError: the client says that it may not.
        StoreError: everything else.
    """
    if not is_remote(path):
        yield
        return
    try:
        yield
    except StoreError:
        raise
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if not _NO_BUCKET.search(str(error)):
            raise
        raise _no_bucket(path, error) from error
    except PermissionError as error:
        raise PermissionError(
            explain(
                f"{path} may not be read or written with the credentials in use",
                got=_text(error),
                fix="check them and the permissions of the bucket; RunFolder(storage_options={...}) passes others",
            )
        ) from error
    except Exception as error:  # clients of stores have error classes of their own, which are not OSError
        raise StoreError(
            explain(f"{path} could not be reached", got=_text(error), fix=_remedy(type(error).__name__))
        ) from error


def kind_of(path: Place) -> str:
    """Return what is there: `"file"`, `"folder"`, or an empty text for nothing.

    Raises:
        OSError: a store could not be asked, or there is no such bucket.
    """
    if not is_remote(path):
        return "file" if path.is_file() else "folder" if path.is_dir() else ""
    store, name = store_of(path)
    with store_errors(path):
        try:
            return "folder" if store.info(name)["type"] == "directory" else "file"
        except (FileNotFoundError, NotADirectoryError) as error:
            if _NO_BUCKET.search(str(error)):
                raise  # a mistake in the address, rather than something that is not there yet
            return ""


def is_file(path: Place) -> bool:
    """Whether there is a file; raises `OSError` if a store could not be asked."""
    return kind_of(path) == "file"


def is_folder(path: Place) -> bool:
    """Whether there is a folder, or in an object store anything whose name begins so."""
    return kind_of(path) == "folder"


def size_of(path: Place) -> int:
    """Return the bytes of a file.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it is no file, or a store could not be asked.
    """
    if not is_remote(path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise IsADirectoryError(f"{path} is no file")
        return found.st_size
    store, name = store_of(path)
    with store_errors(path):
        info = store.info(name)
    if info["type"] == "directory":
        raise IsADirectoryError(f"{path} is no file")
    return int(info["size"])


def read_bytes(path: Place, start: int | None = None, end: int | None = None) -> bytes:
    """Read a file, or the bytes from `start` to `end`, which a store need not be asked the size for.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_remote(path):
        return path.read_bytes()[start:end]
    store, name = store_of(path)
    with store_errors(path):
        data: bytes = store.cat_file(name, start=start, end=end)
    return data


def read_ranges(path: Place, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read byte ranges of a file in a store, all at once where its client can.

    Raises:
        OSError: one of them cannot be read.
    """
    store, name = store_of(path)
    with store_errors(path):
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        parts: list[bytes] = store.cat_ranges([name] * len(ranges), starts, ends, on_error="raise")
    return parts


def children(folder: Place) -> list[tuple[Place, bool]]:
    """Return what lies in a folder with whether it is a folder itself, by name; nothing where there is no folder.

    Raises:
        OSError: it cannot be listed.
    """
    if not is_remote(folder):
        return [(path, path.is_dir()) for path in sorted(folder.iterdir())] if folder.is_dir() else []
    store, name = store_of(folder)
    with store_errors(folder):
        try:
            entries = store.ls(name, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
    found = {}
    for entry in entries:
        child = entry["name"].rstrip("/").rpartition("/")[2]
        if entry["name"].strip("/") != name.strip("/"):  # some stores list the folder's own marker with it
            found[child] = (folder / child, entry["type"] == "directory")
    return [found[child] for child in sorted(found)]


def files_below(folder: Place) -> list[Place]:
    """Return every file below a folder of a store, at any depth.

    Raises:
        OSError: it cannot be listed.
    """
    store, name = store_of(folder)
    with store_errors(folder):
        try:
            names = store.find(name)
        except (FileNotFoundError, NotADirectoryError):
            return []
    beginning = name.strip("/") + "/"
    inside = [each.strip("/") for each in names]
    return [folder.joinpath(each[len(beginning) :]) for each in inside if each.startswith(beginning)]


def modified_at(path: Place) -> float:
    """Return when a file was written last, in seconds since 1970; 0 where a store does not say."""
    if not is_remote(path):
        return path.stat().st_mtime
    store, name = store_of(path)
    with store_errors(path):
        try:
            when: float = store.modified(name).timestamp()
        except NotImplementedError:
            return 0.0
    return when


def _local_path(rest: str) -> Path:
    path = unquote(rest.removeprefix("localhost"))
    return Path(path[1:] if re.match(r"/[A-Za-z]:", path) else path)


def _refuse_flattened(path: Path) -> None:
    """Tell a URL that lost a slash on its way through a `pathlib.Path` from a folder whose name ends in a colon."""
    match = _FLATTENED.match(str(path))
    if match is None:
        return
    rest = str(path)[match.end() :].replace("\\", "/")
    raise ValueError(
        explain(
            f"{path} is a URL that has lost a slash",
            why="a pathlib.Path holds local paths only, and joins slashes that follow each other",
            fix=f"pass the text {match['protocol'] + '://' + rest!r}, or a upath.UPath",
        )
    )


def _require_protocol(protocol: str, text: str) -> None:
    try:
        import fsspec
        import upath as upath  # noqa: PLC0414 - only whether it is there
    except ImportError as error:
        raise missing_package(text, "universal-pathlib", extra=_EXTRAS.get(protocol, "remote")) from error
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        from fsspec.registry import known_implementations

        package = str(known_implementations[protocol]["class"]).partition(".")[0]
        if package == "fsspec":  # the file system is fsspec's own and needs something else, which its text names
            raise MissingPackageError(explain(f"{text} cannot be opened", got=str(error))) from error
        raise missing_package(text, package, extra=_EXTRAS.get(protocol)) from error
    except ValueError as error:
        known = fsspec.available_protocols()
        raise ValueError(
            explain(
                f"{text} has a protocol that nobody knows",
                got=protocol,
                fix=f"use s3://, gs://, az://, memory:// or a path.{nearest(protocol, known)}",
            )
        ) from error


def _no_bucket(path: Place, error: Exception) -> FileNotFoundError:
    return FileNotFoundError(
        explain(
            f"{path} is in a bucket that does not exist",
            got=_text(error),
            fix="make the bucket first, or correct its name: buckets are never made for you",
        )
    )


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _remedy(kind: str) -> str:
    if "Credential" in kind or "Auth" in kind:
        return (
            "give the store's client credentials the way it reads them (for S3: aws configure, or AWS_PROFILE), or "
            "RunFolder(storage_options={...})"
        )
    return "check the network and the endpoint (storage_options={'endpoint_url': ...}); then run again"
