"""Reading a checkpoint: checked first, memory-mapped, and unable to run code.

Only JSON and safetensors are parsed. Files that the manifest does not list are never opened.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import PurePath, PurePosixPath
from types import TracebackType
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from taskloom.checkpoint.file_checks import changed, file_problems
from taskloom.checkpoint.index import StoredPiece, TensorIndex, index_name
from taskloom.checkpoint.manifest import ANOTHER_ONE, MANIFEST, VERSION, FileRecord, Manifest
from taskloom.checkpoint.place import Place, StoreError, as_path, children, is_file, is_remote, kind_of, read_bytes
from taskloom.checkpoint.remote_file import RemoteTensorFile
from taskloom.checkpoint.state import decode_state
from taskloom.checkpoint.tensor_file import TensorLayout
from taskloom.checkpoint.upgrade import upgraded_file
from taskloom.core.errors import CheckpointError, explain, nearest


def open_checkpoint(path: str | PurePath, *, verify: bool = False) -> CheckpointReader:
    """Open a checkpoint for reading.

    Args:
        path: its folder, or the URL of one (`s3://bucket/runs/a/checkpoints/step-00001000`).
        verify: read every file once and compare its hash. Without it, the sizes of all files and the hashes of the
            JSON files are compared.

    Raises:
        CheckpointError: there is none, it is foreign, of a newer format, incomplete, truncated or changed. Names the
            file.
        StoreError: the store that it is in cannot be reached.
    """
    return CheckpointReader(as_path(path), verify=verify)


def verify_checkpoint(path: str | PurePath) -> list[str]:
    """Read a whole checkpoint and return what is wrong with it; an empty list if nothing is.

    Raises:
        StoreError: the store that it is in cannot be reached.
    """
    return problems_of(as_path(path), hashes=True)


def problems_of(path: Place, *, hashes: bool, manifest: Manifest | None = None) -> list[str]:
    """Return what is wrong with a checkpoint, comparing the hashes of the tensor files too if asked.

    Args:
        path: its folder.
        hashes: read everything.
        manifest: that the folder will have, if it has none yet.

    Raises:
        StoreError: the store that it is in cannot be reached, which says nothing about the checkpoint.
    """
    try:
        found = Manifest.read(_checked_folder(path)) if manifest is None else manifest
    except CheckpointError as error:
        return [str(error)]
    problems = file_problems(path, found, hashes=hashes)
    if problems:
        return problems
    try:
        with CheckpointReader(path, manifest=found) as reader:
            reader.check()
    except CheckpointError as error:
        return [str(error)]
    return []


class CheckpointReader:
    """An open checkpoint.

    Tensors are memory-mapped copies-on-write: reading one loads only its pages, and writing to it never reaches the
    file. From a store each is fetched by itself. A context manager; closing it lets go of the files, tensors that were
    read stay valid.

    Args:
        path: folder of the checkpoint.
        verify: compare the hash of every file.
        manifest: that it has or will have, if that is at hand; files are then looked at when they are read.

    Raises:
        CheckpointError: it cannot be read.
    """

    def __init__(self, path: Place, *, verify: bool = False, manifest: Manifest | None = None) -> None:
        self.path = path if manifest is not None else _checked_folder(path)
        self.manifest = manifest or Manifest.read(path)
        self._open_files: dict[str, Any] = {}
        self._indexes: dict[str, TensorIndex] = {}
        problems = file_problems(path, self.manifest, hashes=verify) if verify or manifest is None else []
        if problems:
            raise CheckpointError(explain(" ".join(problems).rstrip("."), fix=ANOTHER_ONE))

    @property
    def aliases(self) -> Mapping[str, str]:
        """Tied weights: alias to the name it is stored under."""
        return self.manifest.aliases

    @cached_property
    def state(self) -> dict[str, Any]:
        """The training state, decoded."""
        data = self._json("state.json")
        tensors: dict[str, Tensor] = {}
        if "state.safetensors" in self.manifest.files:
            with _reading(self.path / "state.safetensors"):
                file = self._file("state.safetensors")
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        state = decode_state(data, tensors, where=str(self.path / "state.json"))
        if not isinstance(state, dict):
            raise CheckpointError(
                explain(f"{self.path / 'state.json'} does not hold a training state", fix=ANOTHER_ONE)
            )
        return state

    @cached_property
    def config(self) -> str | None:
        """YAML text of the configuration that the run was made from."""
        if "config.yaml" not in self.manifest.files:
            return None
        return self._read("config.yaml").decode(errors="replace")

    @property
    def kinds(self) -> list[str]:
        """The sets of tensors in it: `model`, `optimizer` unless it holds weights only, and what callbacks added."""
        indexes = (PurePosixPath(name) for name in self.manifest.files)
        return [path.parent.name for path in indexes if path.name == index_name(path.parent.name)]

    def names(self, kind: str) -> list[str]:
        """Return the names of the tensors that are stored in a set."""
        return list(self._index(kind).pieces)

    def model_names(self) -> list[str]:
        """Return the names of all parameters and buffers, aliases last."""
        return [*self.names("model"), *self.aliases]

    def optimizer_names(self) -> list[str]:
        """Return the names of all optimizer tensors, `<parameter name>.<slot>`."""
        return self.names("optimizer")

    def tensor(self, kind: str, name: str) -> Tensor:
        """Read one whole tensor, put together from its pieces if it was saved in several.

        Args:
            kind: `model`, `optimizer`, or another of `kinds`.
            name: one of `names(kind)`; for `model` an alias too.

        Raises:
            CheckpointError: there is no such tensor, or its file is damaged.
        """
        pieces = self._index(kind).pieces
        stored = self.aliases.get(name, name) if kind == "model" else name
        if stored not in pieces:
            raise CheckpointError(
                explain(
                    f"{self.path} has no {kind} tensor {name!r}",
                    fix=f"use one of its {len(pieces)} names.{nearest(name, pieces)}",
                )
            )
        return self._assemble(kind, pieces[stored])

    def model_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) one by one; an alias yields the tensor that it is tied to."""
        for name in self.model_names():
            yield name, self.tensor("model", name)

    def optimizer_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor) of the optimizer state one by one."""
        for name in self.optimizer_names():
            yield name, self.tensor("optimizer", name)

    def pieces(self, kind: str, name: str) -> Sequence[StoredPiece]:
        """Return where the pieces of a tensor are stored; `name` is one of `names(kind)`."""
        return self._index(kind).pieces[name]

    def dtype_and_shape(self, kind: str, name: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return dtype and shape of a whole tensor from the headers, without reading it."""
        first = self.pieces(kind, name)[0]
        with _reading(self.path / kind / first.file):
            header = self._file(f"{kind}/{first.file}").get_slice(first.key)
            layout = TensorLayout.stored(header.get_dtype(), header.get_shape())
        return layout.dtype, layout.shape if first.region is None else first.region.global_shape

    def part(self, kind: str, piece: StoredPiece, slices: Sequence[slice]) -> Tensor:
        """Read a part of a piece: one slice per dimension, in the coordinates of the piece."""
        self._check_shape(kind, piece)
        with _reading(self.path / kind / piece.file):
            if not slices:
                return self._part(kind, piece)
            part: Tensor = self._file(f"{kind}/{piece.file}").get_slice(piece.key)[tuple(slices)]
        return part

    def check(self) -> None:
        """Check what sizes and hashes cannot show: that indexes, headers and state fit together.

        Raises:
            CheckpointError: they do not.
        """
        required = {"model"} if self.manifest.weights_only else {"model", "optimizer"}
        for kind in sorted(required.union(self.kinds)):
            for pieces in self._index(kind).pieces.values():
                for piece in pieces:
                    self._check_shape(kind, piece)
        for alias, name in self.aliases.items():
            if name not in self._index("model").pieces:
                raise CheckpointError(
                    explain(f"{self.path / MANIFEST} ties {alias!r} to {name!r}, which is not stored", fix=ANOTHER_ONE)
                )
        _ = self.state, self.config

    def verify(self, kinds: Collection[str]) -> None:
        """Read every file of some sets of tensors and compare its hash.

        Raises:
            CheckpointError: one was damaged or changed; names it.
        """
        problems = file_problems(
            self.path, self.manifest, hashes=True, wanted=lambda name: PurePosixPath(name).parts[0] in kinds
        )
        if problems:
            raise CheckpointError(explain(" ".join(problems).rstrip("."), fix=ANOTHER_ONE))

    def close(self) -> None:
        """Let go of the files; what is read afterwards opens them again."""
        self._open_files.clear()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assemble(self, kind: str, pieces: Sequence[StoredPiece]) -> Tensor:
        for piece in pieces:
            self._check_shape(kind, piece)
        parts = [self._part(kind, piece) for piece in pieces]
        first = pieces[0].region
        if first is None:
            return parts[0]
        if any(part.dtype != parts[0].dtype for part in parts):
            raise CheckpointError(
                explain(f"{self.path} holds pieces of different dtypes of {pieces[0].key!r}", fix=ANOTHER_ONE)
            )
        with _reading(self.path / kind):
            whole = torch.empty(first.global_shape, dtype=parts[0].dtype)
            for piece, part in zip(pieces, parts, strict=True):
                if piece.region is not None:
                    (whole.view(-1) if piece.region.flat else whole)[piece.region.slices] = part
        return whole

    def _part(self, kind: str, piece: StoredPiece) -> Tensor:
        name = f"{kind}/{piece.file}"
        with _reading(self.path / name):
            part: Tensor = self._file(name).get_tensor(piece.key)
        return part

    def _check_shape(self, kind: str, piece: StoredPiece) -> None:
        name = f"{kind}/{piece.file}"
        with _reading(self.path / name):
            shape = tuple(self._file(name).get_slice(piece.key).get_shape())
        if piece.region is not None and piece.region.shape != shape:
            raise CheckpointError(
                explain(
                    f"{self.path / name} holds {piece.key!r} in the shape {shape}, the index says {piece.region.shape}",
                    fix=ANOTHER_ONE,
                )
            )

    def _index(self, kind: str) -> TensorIndex:
        if kind == "optimizer" and self.manifest.weights_only:
            raise CheckpointError(
                explain(
                    f"{self.path} was saved with weights_only=True and has no optimizer state",
                    fix="resume from a full checkpoint",
                )
            )
        if kind not in self._indexes:
            self._indexes[kind] = self._read_index(kind)
        return self._indexes[kind]

    def _read_index(self, kind: str) -> TensorIndex:
        name = f"{kind}/{index_name(kind)}"
        try:
            return TensorIndex.from_json(self._json(name))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                explain(f"{self.path / name} is not what was written", got=str(error), fix=ANOTHER_ONE)
            ) from error

    def _json(self, name: str) -> Any:
        try:
            data = json.loads(self._read(name))
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                explain(f"{self.path / name} is not JSON", got=str(error), fix=ANOTHER_ONE)
            ) from error
        try:
            return upgraded_file(name, data, self.manifest.stored_version, VERSION)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                explain(f"{self.path / name} is not what was written", got=str(error), fix=ANOTHER_ONE)
            ) from error

    def _read(self, name: str) -> bytes:
        """Read a listed file that is small enough to be hashed every time."""
        record = self._record(name)
        with _reading(self.path / name):
            data = read_bytes(self.path / name, *((0, record.bytes) if record.bytes else ()))
        if xxhash.xxh3_64_hexdigest(data) != record.xxh3_64:
            raise CheckpointError(explain(changed(self.path / name), fix=ANOTHER_ONE))
        return data

    def _record(self, name: str) -> FileRecord:
        record = self.manifest.files.get(name)
        if record is None:
            raise CheckpointError(
                explain(f"{self.path / MANIFEST} does not list {name}, which the checkpoint needs", fix=ANOTHER_ONE)
            )
        return record

    def _file(self, name: str) -> Any:
        if name not in self._open_files:
            self._record(name)
            path = self.path / name
            self._open_files[name] = (
                RemoteTensorFile(path) if is_remote(path) else safe_open(path, framework="pt", device="cpu")
            )
        return self._open_files[name]


@contextmanager
def _reading(path: Place) -> Iterator[None]:
    """Turn the errors of the operating system, safetensors and torch into one that names the file.

    That a store could not be reached stays what it is: a search must not pass over good checkpoints because of it.
    """
    try:
        yield
    except (CheckpointError, StoreError):
        raise
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise CheckpointError(explain(f"{path} cannot be read", got=str(error), fix=ANOTHER_ONE)) from error


def _checked_folder(path: Place) -> Place:
    """Return the path if a manifest is there, or say what is there instead."""
    if is_file(path / MANIFEST):
        return path
    kind = kind_of(path)
    if kind == "file":
        raise CheckpointError(
            explain(
                f"{path} is a file, and a checkpoint is a folder",
                why="taskloom unpickles nothing, so a .ckpt or .pt file of another framework cannot be opened",
                fix="pass the folder of a taskloom checkpoint, or bring the weights over: "
                f"task ckpt import {path.name} OUT",
            )
        )
    if not kind:
        found = _checkpoints_in(path.parent)
        there = f"beside it there is {', '.join(found)}" if found else "pass the folder of an existing checkpoint"
        raise CheckpointError(explain(f"There is no checkpoint at {path}", fix=there))
    inside = _checkpoints_in(path)
    if inside:
        raise CheckpointError(
            explain(
                f"{path} is a folder of checkpoints", fix=f"pass one of them, {', '.join(inside)}, or ckpt_path='last'"
            )
        )
    raise CheckpointError(
        explain(
            f"{path} is not a checkpoint: it has no {MANIFEST}",
            why="it was written by something else, or its manifest, which is written last, is gone",
            fix="pass the folder of a taskloom checkpoint",
        )
    )


def _checkpoints_in(folder: Place) -> list[str]:
    return [path.name for path, is_folder in children(folder) if is_folder and is_file(path / MANIFEST)]
