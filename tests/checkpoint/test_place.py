"""Paths and URLs that users type."""

from __future__ import annotations

import sys
from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskloom.checkpoint.place import (
    StoreError,
    as_path,
    children,
    files_below,
    is_file,
    is_folder,
    is_remote,
    kind_of,
    read_bytes,
    same_store,
    size_of,
    store_errors,
)
from taskloom.core.errors import MissingPackageError

NAMES = st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@pytest.mark.holds("CK-01")
def test_text_without_a_protocol_is_a_local_path(tmp_path: Path) -> None:
    assert as_path("runs/a b") == Path("runs/a b")
    assert as_path(tmp_path) is tmp_path
    assert not is_remote(as_path("runs"))
    assert as_path("C:\\runs") == Path("C:\\runs")  # one letter is a drive
    assert as_path("notes: old/x") == Path("notes: old/x")


@pytest.mark.parametrize("text", ["file:///data/a b", "file://localhost/data/a b", "local:///data/a%20b"])
def test_a_file_url_is_a_local_path(text: str) -> None:
    assert as_path(text) == Path("/data/a b")


def test_a_file_url_of_a_drive() -> None:
    assert as_path("file:///C:/data").parts == Path("C:/data").parts


@pytest.mark.holds("CK-01")
def test_a_url_keeps_its_parts() -> None:
    path = as_path("s3://bucket/runs/a b/ünï/", {"endpoint_url": "http://x"})
    assert is_remote(path)
    assert str(path) == "s3://bucket/runs/a b/ünï"
    assert (path.name, path.parent.name) == ("ünï", "a b")
    assert str(path / "x" / "y") == "s3://bucket/runs/a b/ünï/x/y"
    assert str(as_path("memory://")) == "memory://"
    assert as_path("memory:///x") == as_path("memory://x/")


def test_a_upath_keeps_its_options() -> None:
    upath = pytest.importorskip("upath")
    given = upath.UPath("s3://bucket/x", endpoint_url="http://here")
    path: Any = as_path(given)
    assert path.storage_options == {"endpoint_url": "http://here", "use_listings_cache": False}
    assert as_path(path) is path
    assert as_path(upath.UPath("file:///tmp/x")) == Path("/tmp/x")


def test_options_go_with_the_protocol() -> None:
    root = as_path("s3://bucket/runs")
    assert same_store(root, "s3://other/x")
    assert not same_store(root, "memory://x")
    assert not same_store(root, "runs")
    assert not same_store(Path("runs"), "s3://other/x")


@pytest.mark.parametrize("path", [Path("s3://bucket/x"), "s3:/bucket/x", PureWindowsPath("s3://bucket/x")])
def test_a_url_that_lost_a_slash_is_told(path: Any) -> None:
    with pytest.raises(ValueError, match=r"has lost a slash.*'s3://bucket/x'"):
        as_path(path)


def test_an_unknown_protocol_is_told() -> None:
    with pytest.raises(ValueError, match=r"protocol that nobody knows.*Did you mean 's3'"):
        as_path("s33://bucket/x")


def test_a_missing_package_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def absent(protocol: str) -> Any:
        raise ImportError(f"Install it to access {protocol}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(MissingPackageError, match=r"needs 's3fs'.*pip install 'taskloom\[s3\]'"):
        as_path("s3://bucket/x")
    with pytest.raises(MissingPackageError, match=r"needs 'gcsfs'.*pip install gcsfs"):
        as_path("gs://bucket/x")
    with pytest.raises(MissingPackageError, match=r"sftp://host/x cannot be opened.*Install it"):
        as_path("sftp://host/x")
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'taskloom\[remote\]'"):
        as_path("memory://x")


def test_errors_of_clients_become_ones_of_the_operating_system() -> None:
    class NoCredentialsError(Exception):
        """As botocore has it: no OSError."""

    path = as_path("s3://data/x")
    with pytest.raises(StoreError, match=r"s3://data/x could not be reached.*aws configure"), store_errors(path):
        raise NoCredentialsError
    with pytest.raises(StoreError, match=r"check the network and the endpoint"), store_errors(path):
        raise RuntimeError("gone")
    with pytest.raises(PermissionError, match=r"may not be read or written with the credentials"), store_errors(path):
        raise PermissionError("Forbidden")
    with pytest.raises(FileNotFoundError, match=r"make the bucket first"), store_errors(path):
        raise FileNotFoundError("The specified bucket does not exist")
    with pytest.raises(FileNotFoundError, match=r"^data/x$"), store_errors(path):
        raise FileNotFoundError("data/x")
    with pytest.raises(RuntimeError, match="ours"), store_errors(Path("x")):
        raise RuntimeError("ours")


@pytest.mark.usefixtures("memory")
@given(folder=NAMES, name=NAMES)
def test_looking_at_a_store_is_like_looking_at_a_disk(folder: str, name: str) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    root = as_path("memory://root")
    if folder in (".", "..") or name in (".", ".."):
        return
    store = MemoryFileSystem()
    store.store["/root/" + folder + "/" + name] = _file(store, b"12345")
    path = root / folder / name
    assert (kind_of(path), kind_of(root / folder), kind_of(root / "no" / "where")) == ("file", "folder", "")
    assert is_file(path)
    assert is_folder(root)
    assert size_of(path) == 5
    assert read_bytes(path) == b"12345"
    assert read_bytes(path, 1, 3) == b"23"
    assert [(child.name, is_a_folder) for child, is_a_folder in children(root)] == [(folder, True)]
    assert children(root / folder) == [(path, False)]
    assert files_below(root) == [path]
    assert children(root / "no") == [] == files_below(root / "no")
    with pytest.raises(IsADirectoryError):
        size_of(root)
    with pytest.raises(FileNotFoundError):
        size_of(root / "no")


def _file(store: Any, data: bytes) -> Any:
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(store, "", data)


def test_a_disk_answers_the_same_questions(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"123")
    assert [(path.name, is_a_folder) for path, is_a_folder in children(tmp_path)] == [("file", False), ("folder", True)]
    assert children(tmp_path / "no") == []
    assert [kind_of(tmp_path / name) for name in ("file", "folder", "no")] == ["file", "folder", ""]
    assert size_of(tmp_path / "file") == 3
    with pytest.raises(IsADirectoryError):
        size_of(tmp_path / "folder")
