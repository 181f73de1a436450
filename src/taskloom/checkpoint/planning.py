"""Resharding by torch's distributed-checkpoint planner, over our files.

torch knows how to lay pieces of tensors over other pieces, to leave out what several ranks hold, and to check that a
plan is whole. It plans in rectangular blocks; a range of a flattened tensor (ZeRO's ranks own such) is a few blocks
that follow one another in memory, so it takes part like any other piece. What torch would store as a pickle, its
metadata, is built from the index.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from taskloom.checkpoint.index import StoredPiece
from taskloom.checkpoint.reader import CheckpointReader
from taskloom.checkpoint.shard import Region, Shard
from taskloom.core.errors import CheckpointError, explain, nearest


@dataclass(frozen=True)
class Block:
    """A rectangular part of a tensor that is contiguous in a piece.

    Args:
        offset: of the block in the tensor.
        shape: of the block.
        start: element of the flattened piece that it begins at; a rectangular piece is one block and begins at 0.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]
    start: int = 0

    @property
    def chunk(self) -> ChunkStorageMetadata:
        """The block as the planner knows it."""
        return ChunkStorageMetadata(torch.Size(self.offset), torch.Size(self.shape))

    def of(self, piece: Tensor, *, flat: bool) -> Tensor:
        """Return the block as a view of its piece."""
        return piece.narrow(0, self.start, math.prod(self.shape)).view(self.shape) if flat else piece


def blocks_of(region: Region) -> list[Block]:
    """Return the blocks that make up a region: one, or for a flat range up to two per dimension."""
    if not region.flat:
        return [Block(region.offset, region.shape)]
    first = region.offset[0]
    return [
        Block(offset, shape, start - first)
        for offset, shape, start in _ranges(region.global_shape, first, first + region.shape[0])
    ]


def _ranges(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Yield (offset, shape, first element) of the blocks that a range of a flattened tensor consists of, in order."""
    if start == stop:
        return
    if not shape:
        yield (), (), start
        return
    row = math.prod(shape[1:])
    first, within = divmod(start, row)
    rows = 0 if within else (stop - start) // row
    if rows:
        following = start + rows * row
        yield (first, *(0,) * (len(shape) - 1)), (rows, *shape[1:]), start
    else:
        following = min(stop, (first + 1) * row)
        for offset, extent, begin in _ranges(shape[1:], within, following - first * row):
            yield (first, *offset), (1, *extent), begin + first * row
    yield from _ranges(shape, following, stop)


def read_shards(reader: CheckpointReader, kind: str, targets: Iterable[Shard]) -> None:
    """Fill pieces in place with what a checkpoint holds of them, however it was cut when it was saved.

    Only the parts that overlap are read, one at a time.

    Args:
        reader: an open checkpoint.
        kind: set of tensors, such as `model`.
        targets: pieces to fill, on any device; values are converted to their dtype.

    Raises:
        CheckpointError: a tensor is not there, or has another shape.
    """
    targets = list(targets)
    storage = CheckpointStorageReader(reader, kind)
    planner = _ShardLoadPlanner(targets)
    metadata = storage.read_metadata()
    for target in targets:
        _check(reader, kind, target, metadata)
    planner.set_up_planner({}, metadata)
    storage.set_up_storage_reader(metadata, is_coordinator=True)
    storage.read_data(planner.finish_plan(planner.create_local_plan()), planner).wait()


class CheckpointStorageReader(StorageReader):
    """One set of tensors of a checkpoint for `torch.distributed.checkpoint.load`, DTensors and all.

    `torch.distributed.checkpoint.load(model.state_dict(), storage_reader=CheckpointStorageReader(reader, "model"))`

    Args:
        reader: an open checkpoint.
        kind: set of tensors.
    """

    def __init__(self, reader: CheckpointReader, kind: str) -> None:
        self._reader, self._kind = reader, kind
        self._stored: dict[MetadataIndex, tuple[StoredPiece, Block]] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept from one load to the next."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Describe every tensor; built from the index and the headers of the files."""
        described: dict[str, TensorStorageMetadata] = {}
        for name in self._reader.names(self._kind):
            pieces = self._reader.pieces(self._kind, name)
            dtype, shape = self._reader.dtype_and_shape(self._kind, name)
            chunks = []
            for piece in pieces:
                for block in blocks_of(piece.region or Region(shape, (0,) * len(shape), shape)):
                    chunks.append(block.chunk)
                    self._stored[MetadataIndex(name, block.offset)] = piece, block
            described[name] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks)
        for alias, name in self._reader.aliases.items() if self._kind == "model" else ():
            described[alias] = described[name]
        return Metadata(described)  # type: ignore[arg-type]  # a dict of one of the two kinds of entries

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Leave the plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for, part by part."""
        for item in plan.items:
            target = planner.resolve_tensor(item)
            target.copy_(self._read(item))
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Only an open reader is taken."""
        return False

    def _read(self, item: ReadItem) -> Tensor:
        aliases = self._reader.aliases if self._kind == "model" else {}
        name = aliases.get(item.storage_index.fqn, item.storage_index.fqn)
        piece, block = self._stored[MetadataIndex(name, item.storage_index.offset)]
        parts = tuple(
            slice(start, start + length) for start, length in zip(item.storage_offsets, item.lengths, strict=True)
        )
        if piece.region is None or not piece.region.flat:
            return self._reader.part(self._kind, piece, parts)
        stored = slice(block.start, block.start + math.prod(block.shape))
        return self._reader.part(self._kind, piece, (stored,)).view(block.shape)[parts]


class ShardSavePlanner(DefaultSavePlanner):
    """Plans which rank writes which of the pieces that all of them hold together.

    torch leaves out what several ranks hold, spreads the rest evenly, and checks that it is whole.

    Args:
        shards: pieces of this rank.
    """

    def __init__(self, shards: Iterable[Shard]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._items: list[WriteItem] = []
        self._tensors: dict[MetadataIndex, Tensor] = {}
        for shard in shards:
            for block in blocks_of(shard.region):
                index = MetadataIndex(shard.name, block.offset)
                tensor = block.of(shard.tensor.detach(), flat=shard.flat)
                properties, size = TensorProperties(dtype=tensor.dtype), torch.Size(shard.global_shape)
                if tensor.numel() or math.prod(size) == 0:
                    written = TensorWriteData(block.chunk, properties, size)
                    self._items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=written))
                    self._tensors[index] = tensor

    def create_local_plan(self) -> SavePlan:
        """Return what this rank holds."""
        self.plan = SavePlan(self._items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """Return the tensor of a piece."""
        return self._tensors[write_item.index]


class _ShardLoadPlanner(DefaultLoadPlanner):
    """Plans how `Shard`s are filled."""

    def __init__(self, targets: Iterable[Shard]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._targets: dict[MetadataIndex, Tensor] = {}
        self._chunks: dict[str, list[ChunkStorageMetadata]] = {}
        for shard in targets:
            for block in blocks_of(shard.region):
                if math.prod(block.shape):
                    self._targets[MetadataIndex(shard.name, block.offset)] = block.of(
                        shard.tensor.detach(), flat=shard.flat
                    )
                    self._chunks.setdefault(shard.name, []).append(block.chunk)

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        described = self.metadata.state_dict_metadata
        return LoadPlan(
            [
                item
                for name, chunks in self._chunks.items()
                for item in create_read_items_for_chunk_list(name, described[name], chunks)  # type: ignore[arg-type]
            ]
        )

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._targets[index]


def _check(reader: CheckpointReader, kind: str, target: Shard, metadata: Metadata) -> None:
    described = metadata.state_dict_metadata
    found = described.get(target.name)
    if not isinstance(found, TensorStorageMetadata):
        raise CheckpointError(
            explain(
                f"{reader.path} has no {kind} tensor {target.name!r}",
                fix=f"use one of its {len(described)} names.{nearest(target.name, described)}",
            )
        )
    if tuple(found.size) != tuple(target.global_shape):
        raise CheckpointError(
            explain(
                f"{reader.path} holds {target.name!r} in the shape {tuple(found.size)}, not {target.global_shape}",
                fix="build the model as it was when it was saved",
            )
        )
