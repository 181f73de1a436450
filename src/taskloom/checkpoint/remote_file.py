"""Reading a safetensors file in a store by byte ranges: one tensor at a time, never the whole file.

The header is parsed here, because the library reads local files only. It is checked as strictly as the library does
(github.com/huggingface/safetensors, "Format"): known dtypes, sizes that fit shapes, ranges that lie side by side within
the file. A large tensor is fetched straight into its own memory, several ranges at once; small ones share blocks that
are kept for a while, since neighbours in a file are mostly asked for one after another.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from taskloom.checkpoint.place import Place, read_bytes, read_ranges, size_of
from taskloom.checkpoint.tensor_file import DTYPES, TensorLayout

_BLOCK = 8 << 20
_BLOCKS_KEPT = 4
_RANGES_AT_ONCE = 4
_LONGEST_HEADER = 100_000_000  # bytes, the library's own limit


@dataclass(frozen=True)
class _Entry:
    layout: TensorLayout
    start: int  # in the file
    end: int


class RemoteTensorFile:
    """A safetensors file in a store. What `safetensors.safe_open` gives, as far as a reader of checkpoints uses it.

    Args:
        path: of the file.

    Raises:
        OSError: the store cannot be asked, or there is no such file.
        ValueError: it is no valid safetensors file.
    """

    def __init__(self, path: Place) -> None:
        self._path = path
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._size = size_of(path)
        if self._size < 8:
            raise ValueError(f"a safetensors file has at least 8 bytes, this one {self._size}")
        length = int.from_bytes(self._read(0, 8), "little")
        if length > min(_LONGEST_HEADER, self._size - 8):
            raise ValueError(f"its header would be {length} bytes long")
        self._entries = _parse(bytes(self._read(8, 8 + length)), 8 + length, self._size)

    def keys(self) -> list[str]:
        """Return the names of the tensors."""
        return list(self._entries)

    def get_tensor(self, key: str) -> Tensor:
        """Read one tensor into memory of its own.

        Raises:
            OSError: the store cannot be asked, or the file ends early.
            ValueError: there is no such tensor.
        """
        entry = self._entry(key)
        return self._tensor(entry.layout.dtype, entry.layout.shape, entry.start)

    def get_slice(self, key: str) -> RemoteSlice:
        """Return a tensor of which a part can be read.

        Raises:
            ValueError: there is no such tensor.
        """
        entry = self._entry(key)
        return RemoteSlice(
            entry.layout, lambda shape, skipped: self._tensor(entry.layout.dtype, shape, entry.start + skipped)
        )

    def _tensor(self, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
        size = TensorLayout(dtype, shape).nbytes
        if not size:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._read(start, start + size), dtype=torch.uint8).view(dtype).reshape(shape)

    def _entry(self, key: str) -> _Entry:
        if key not in self._entries:
            raise ValueError(f"it has no tensor {key!r}")
        return self._entries[key]

    def _read(self, start: int, end: int) -> bytearray:
        return self._read_straight(start, end) if end - start >= _BLOCK else self._read_from_blocks(start, end)

    def _read_straight(self, start: int, end: int) -> bytearray:
        data = bytearray(end - start)
        starts = range(start, end, _BLOCK)
        for first in range(0, len(starts), _RANGES_AT_ONCE):
            ranges = [(each, min(each + _BLOCK, end)) for each in starts[first : first + _RANGES_AT_ONCE]]
            for (each, stop), part in zip(ranges, read_ranges(self._path, ranges), strict=True):
                if len(part) != stop - each:
                    raise OSError(f"{self._path} ends at byte {each + len(part)} of {self._size}")
                data[each - start : stop - start] = part
        return data

    def _read_from_blocks(self, start: int, end: int) -> bytearray:
        data = bytearray()
        for number in range(start // _BLOCK, -(-end // _BLOCK)):
            offset = number * _BLOCK
            data += memoryview(self._block(number))[max(start - offset, 0) : end - offset]
        if len(data) != end - start:
            raise OSError(f"{self._path} ends early: {len(data)} of the {end - start} bytes from {start} are there")
        return data

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        block = read_bytes(self._path, number * _BLOCK, min((number + 1) * _BLOCK, self._size))
        self._blocks[number] = block
        if len(self._blocks) > _BLOCKS_KEPT:
            self._blocks.popitem(last=False)
        return block


@dataclass(frozen=True)
class RemoteSlice:
    """A tensor in a store of which a part can be read.

    Args:
        layout: its dtype and shape.
        read: reads a tensor of a shape that begins so many bytes after this one.
    """

    layout: TensorLayout
    read: Callable[[tuple[int, ...], int], Tensor]

    def get_shape(self) -> list[int]:
        """Return the shape of the whole tensor."""
        return list(self.layout.shape)

    def get_dtype(self) -> str:
        """Return the dtype as the format names it."""
        return DTYPES[self.layout.dtype]

    def __getitem__(self, slices: tuple[slice, ...]) -> Tensor:
        """Read a part; of the first dimension only the rows that are asked for travel."""
        if not slices:
            return self.read(self.layout.shape, 0)
        rows, *others = slices
        first, last, step = rows.indices(self.layout.shape[0])
        if step != 1:
            raise ValueError(f"a part is read in steps of 1, not {step}")
        shape = (max(last - first, 0), *self.layout.shape[1:])
        skipped = first * TensorLayout(self.layout.dtype, self.layout.shape[1:]).nbytes
        index = (slice(None), *others)
        return self.read(shape, skipped)[index]


def _parse(text: bytes, data_start: int, size: int) -> dict[str, _Entry]:
    """Read the header of a safetensors file whose data begins at `data_start`.

    Raises:
        ValueError: it is not what the format allows.
    """
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")  # noqa: TRY004 - the file is at fault, not the caller
    header.pop("__metadata__", None)
    entries = {name: _entry(name, value) for name, value in header.items()}
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != end:
            raise ValueError(f"the bytes of {name!r} do not begin where those before it end")
        end = entry.end
    if data_start + end != size:
        raise ValueError(f"its tensors end at byte {data_start + end} and the file at byte {size}")
    return {
        name: replace(each, start=data_start + each.start, end=data_start + each.end) for name, each in entries.items()
    }


def _entry(name: str, value: Any) -> _Entry:
    try:
        layout = TensorLayout.stored(value["dtype"], value["shape"])
        start, end = value["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the entry of {name!r} is not what the format asks for: {error}") from error
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*layout.shape, start, end)):
        raise ValueError(f"the entry of {name!r} has numbers that are not allowed")
    if end - start != layout.nbytes:
        raise ValueError(f"the bytes of {name!r} do not fit its shape {layout.shape}")
    return _Entry(layout, start, end)
