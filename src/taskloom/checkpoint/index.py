"""Which file holds which tensor: `model.safetensors.index.json`, in the convention of Transformers.

`weight_map` gives the file of every stored key. A whole tensor is stored under its own name, so any reader of that
convention (and `safetensors.torch.load_file` on each file) sees ordinary weights. A partial piece is stored as
`name@offset` and described under `shards`, which other readers ignore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from taskloom.checkpoint.manifest import is_inside
from taskloom.checkpoint.shard import Region, Shard, coverage_problem, region_from_json, region_to_json


def index_name(kind: str) -> str:
    """Return the file name of the index of `model` or `optimizer` tensors."""
    return f"{kind}.safetensors.index.json"


def stored_key(shard: Shard) -> str:
    """Return the name that a piece has in its file."""
    if shard.region.is_whole:
        return shard.name
    start = ",".join(map(str, shard.offset))
    return f"{shard.name}@{'flat:' if shard.flat else ''}{start}"


@dataclass(frozen=True)
class StoredPiece:
    """Where one piece is: the file beside the index, its key there, and its part of the tensor (`None`: all of it)."""

    file: str
    key: str
    region: Region | None


@dataclass(frozen=True)
class TensorIndex:
    """The pieces of every tensor, by tensor name, in the order they were saved."""

    pieces: Mapping[str, Sequence[StoredPiece]]

    @classmethod
    def of(cls, files: Mapping[str, Sequence[Shard]]) -> TensorIndex:
        """Build the index of shards that are about to be written, by file name.

        Raises:
            ValueError: a tensor is incomplete, or stored twice.
        """
        pieces: dict[str, list[StoredPiece]] = {}
        for file, shards in files.items():
            for shard in shards:
                region = None if shard.region.is_whole else shard.region
                pieces.setdefault(shard.name, []).append(StoredPiece(file, stored_key(shard), region))
        return cls(pieces)._checked()

    def to_json(self, total_size: int) -> dict[str, Any]:
        """Return the JSON form; `total_size` is the number of bytes of all tensors."""
        every = [(name, piece) for name, pieces in self.pieces.items() for piece in pieces]
        data: dict[str, Any] = {
            "metadata": {"total_size": total_size},
            "weight_map": {piece.key: piece.file for _, piece in every},
        }
        shards = {piece.key: {"name": name, **region_to_json(piece.region)} for name, piece in every if piece.region}
        return {**data, "shards": shards} if shards else data

    @classmethod
    def from_json(cls, data: Any) -> TensorIndex:
        """Read an index.

        Raises:
            KeyError: a field is missing.
            TypeError: a field is of another type.
            ValueError: a file name leads out of the checkpoint, or a tensor is incomplete or stored twice.
        """
        if not isinstance(data, dict) or not isinstance(data.get("weight_map"), dict):
            raise TypeError("weight_map is missing")
        shards = data.get("shards", {})
        pieces: dict[str, list[StoredPiece]] = {}
        for key, file in data["weight_map"].items():
            if not isinstance(file, str) or not is_inside(file):
                raise ValueError(f"the file name {file!r} is not allowed")
            name, region = key, None
            if key in shards:
                name, region = shards[key]["name"], region_from_json(shards[key])
                if not isinstance(name, str):
                    raise TypeError("the name of a tensor is no text")
            pieces.setdefault(name, []).append(StoredPiece(file, key, region))
        return cls(pieces)._checked()

    def _checked(self) -> TensorIndex:
        keys = [piece.key for pieces in self.pieces.values() for piece in pieces]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{twice!r} is stored twice")
        for name, pieces in self.pieces.items():
            regions = [piece.region for piece in pieces if piece.region]
            if not regions:
                continue
            problem = (
                coverage_problem(regions) if len(regions) == len(pieces) else "it is stored both whole and in pieces"
            )
            if problem:
                raise ValueError(f"the tensor {name!r} is not complete: {problem}")
        return self
