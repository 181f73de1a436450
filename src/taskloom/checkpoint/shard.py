"""Named pieces of tensors: all that a checkpoint knows about how a model is spread over processes.

A strategy hands over `Shard`s, each saying which tensor it belongs to and which part of it. Two ways of cutting cover
every strategy: rectangular blocks (FSDP2, tensor parallel, whole tensors) and ranges of the flattened tensor (ZeRO,
whose ranks own flat slices; a padded slice is trimmed by the strategy first). A block and a flat range are the same
thing in two coordinate systems, the tensor's dimensions and its single flattened one, so `Region` treats them alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from taskloom.checkpoint.tensor_file import raw_bytes
from taskloom.core.errors import CheckpointError, explain


@dataclass(frozen=True)
class Region:
    """Which part of a tensor a piece is.

    Args:
        global_shape: shape of the whole tensor.
        offset: where the piece starts, one number per dimension; one number in all for a flat range.
        shape: extent of the piece, in the same coordinates as `offset`.
        flat: the coordinates are those of the tensor flattened in row-major order.

    Raises:
        ValueError: the piece does not lie inside the tensor.
    """

    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    flat: bool = False

    def __post_init__(self) -> None:
        space = self.space
        ranks_agree = len(self.offset) == len(self.shape) == len(space)
        if not ranks_agree or any(
            start < 0 or extent < 0 or start + extent > size
            for start, extent, size in zip(self.offset, self.shape, space, strict=True)
        ):
            raise ValueError(
                explain(
                    f"A piece of {self.shape} at offset {self.offset} is not inside a tensor of {self.global_shape}",
                    why="a flat piece has one dimension and one offset" if self.flat else "",
                    fix="trim padding and give one offset per dimension of the piece",
                )
            )

    @property
    def space(self) -> tuple[int, ...]:
        """Shape of the whole tensor in the coordinates of this region."""
        return (math.prod(self.global_shape),) if self.flat else self.global_shape

    @property
    def numel(self) -> int:
        """Number of elements of the piece."""
        return math.prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether the piece is the tensor itself, in its own shape."""
        return not self.flat and self.shape == self.global_shape

    @property
    def slices(self) -> tuple[slice, ...]:
        """Index of the piece in the whole tensor (flattened first when `flat`)."""
        return tuple(slice(start, start + extent) for start, extent in zip(self.offset, self.shape, strict=True))

    def overlaps(self, other: Region) -> bool:
        """Whether two regions in the same coordinates share an element."""
        return (
            self.numel > 0
            and other.numel > 0
            and all(
                mine.start < theirs.stop and theirs.start < mine.stop
                for mine, theirs in zip(self.slices, other.slices, strict=True)
            )
        )


@dataclass(frozen=True)
class Shard:
    """One named piece of a tensor.

    Args:
        name: fully qualified name of the parameter or buffer, or `<parameter name>.<slot>` for optimizer state.
        tensor: the piece itself, on any device.
        global_shape: shape of the whole tensor.
        offset: where the piece starts, one number per dimension; a single number for a flat range.
        flat: the piece is a range of the flattened tensor; `tensor` then has one dimension.

    Raises:
        ValueError: the piece does not lie inside the tensor.
    """

    name: str
    tensor: Tensor
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]
    flat: bool = False

    def __post_init__(self) -> None:
        _ = self.region

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> Shard:
        """Make the only piece of an unsharded tensor."""
        return cls(name, tensor, tuple(tensor.shape), (0,) * tensor.dim())

    @classmethod
    def flat_range(cls, name: str, tensor: Tensor, global_shape: Sequence[int], start: int) -> Shard:
        """Make the piece of a flattened tensor that begins at element `start`; `tensor` has one dimension."""
        return cls(name, tensor, tuple(global_shape), (start,), flat=True)

    @property
    def region(self) -> Region:
        """Where the piece lies."""
        return Region(tuple(self.global_shape), tuple(self.offset), tuple(self.tensor.shape), self.flat)

    @property
    def nbytes(self) -> int:
        """Size of the piece in bytes."""
        return self.tensor.numel() * self.tensor.element_size()


def coverage_problem(regions: Sequence[Region]) -> str:
    """Say why pieces do not make up one whole tensor, each element exactly once; an empty text if they do."""
    first = regions[0]
    if any(region.global_shape != first.global_shape for region in regions):
        return f"its pieces disagree about its shape: {sorted({region.global_shape for region in regions})}"
    if any(region.flat != first.flat for region in regions):
        return "it has flat ranges and blocks at the same time"
    ordered = sorted((region for region in regions if region.numel), key=lambda region: region.offset)
    for position, region in enumerate(ordered):
        for other in ordered[position + 1 :]:
            if other.offset and other.offset[0] >= region.offset[0] + region.shape[0]:
                break  # sorted by their first coordinate, so none of the rest can touch this one
            if region.overlaps(other):
                return f"its pieces at {region.offset} and {other.offset} overlap"
    found, expected = sum(region.numel for region in regions), math.prod(first.global_shape)
    return "" if found == expected else f"its pieces hold {found} of {expected} elements"


def find_aliases(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return `{alias: stored name}` for names that share one tensor (tied weights); the first name is the stored one.

    Args:
        tensors: pairs of name and tensor, as `module.named_parameters(remove_duplicate=False)` gives them. Only names
            for the same elements in the same layout are aliases; overlapping views are different tensors and are
            stored separately.
    """
    stored: dict[object, str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in tensors:
        if not tensor.numel() or tensor.is_meta:
            continue
        layout = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        first = stored.setdefault(layout, name)
        if first != name:
            aliases[name] = first
    return aliases


def without_aliases(shards: Iterable[Shard], aliases: Mapping[str, str]) -> list[Shard]:
    """Drop the pieces that are stored under another name.

    Raises:
        CheckpointError: an alias names a tensor that is not there, or one with other values.
    """
    kept: list[Shard] = []
    aliased: list[Shard] = []
    for shard in shards:
        (aliased if shard.name in aliases else kept).append(shard)
    stored = {(shard.name, shard.offset, shard.flat): shard.tensor for shard in kept}
    names = {shard.name for shard in kept}
    for alias, name in aliases.items():
        if name not in names:
            raise CheckpointError(
                explain(
                    f"{alias!r} is to be stored as {name!r}, which is not among the tensors",
                    fix="give the shards of the stored name",
                )
            )
    for shard in aliased:
        twin = stored.get((aliases[shard.name], shard.offset, shard.flat))
        if twin is None or not _same(twin, shard.tensor):
            raise CheckpointError(
                explain(
                    f"{shard.name!r} was declared to be tied to {aliases[shard.name]!r}, but their values differ",
                    fix="declare as aliases only names of one and the same tensor; find_aliases() does",
                )
            )
    return kept


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return raw_bytes(one) == raw_bytes(other)


def region_to_json(region: Region) -> dict[str, Any]:
    """Return the form that the index keeps for a partial piece."""
    return {
        "global_shape": list(region.global_shape),
        "offset": list(region.offset),
        "shape": list(region.shape),
        "flat": region.flat,
    }


def region_from_json(data: Mapping[str, Any]) -> Region:
    """Read `region_to_json` back.

    Raises:
        KeyError: a field is missing.
        TypeError: a field is of another type.
        ValueError: the piece does not lie inside the tensor.
    """
    sizes = {name: data[name] for name in ("global_shape", "offset", "shape")}
    for name, value in sizes.items():
        if not isinstance(value, list) or any(type(number) is not int for number in value):
            raise TypeError(f"{name} is not a list of whole numbers")
    if type(data["flat"]) is not bool:
        raise TypeError("flat is not a boolean")
    return Region(tuple(sizes["global_shape"]), tuple(sizes["offset"]), tuple(sizes["shape"]), data["flat"])
