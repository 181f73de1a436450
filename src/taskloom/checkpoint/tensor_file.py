"""Writing tensors in the safetensors format, hashed on the way.

The format (github.com/huggingface/safetensors, "Format") is an 8-byte little-endian length, a JSON header that gives
every tensor's dtype, shape and byte range, and the raw little-endian data without gaps. The library's own writer
cannot be hashed while it writes, so writing is done here; reading is left to the library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskloom.checkpoint.files import HashedFile
from taskloom.checkpoint.manifest import FileRecord
from taskloom.checkpoint.place import Place
from taskloom.core.errors import CheckpointError, explain

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.uint16: "U16",
    torch.uint32: "U32",
    torch.uint64: "U64",
    torch.bool: "BOOL",
}
"""What every safetensors reader of a supported version understands."""

_ALIGNMENT = 64  # the data begins on a cache line, so memory-mapped tensors suit vector loads


@dataclass(frozen=True)
class TensorLayout:
    """Element type and shape of a tensor, all that a file says of it before its values."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> TensorLayout:
        """Return that of a tensor at hand."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @classmethod
    def stored(cls, dtype: str, shape: Iterable[int]) -> TensorLayout:
        """Return what the header of a file says.

        Raises:
            ValueError: the format knows this dtype and torch, or this package, does not.
        """
        for known, name in DTYPES.items():
            if name == dtype:
                return cls(known, tuple(shape))
        raise ValueError(f"the dtype {dtype!r} is unknown")

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.shape))}]"


def storable_problem(tensor: Tensor) -> str:
    """Say why the elements of a tensor cannot be written as they are, and what to do; an empty text if they can."""
    if tensor.is_meta:
        return "it is on the meta device and has no values; materialise it first"
    if tensor.layout != torch.strided:
        return f"its layout is {tensor.layout}; save tensor.to_dense()"
    if tensor.is_quantized:
        return "it is quantized; save tensor.int_repr() with its scale and zero point"
    return ""


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the elements as bytes in row-major order. Contiguous CPU tensors are not copied.

    Args:
        tensor: dense, of any dtype, shape and device.
    """
    here = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return here.reshape(-1).view(torch.uint8).numpy().data


def write_tensor_file(path: Place, tensors: Mapping[str, Tensor], *, fsync: bool) -> FileRecord:
    """Write one safetensors file in a single pass; at most one tensor at a time is copied from a device.

    Args:
        path: a new file.
        tensors: by name. Tensors may share storage; each is written in full.
        fsync: have the disk confirm the content.

    Raises:
        CheckpointError: a tensor has no dense values or a dtype that the format lacks.
    """
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
    layouts = {name: TensorLayout.of(tensor) for name, tensor in tensors.items()}
    return stream_tensor_file(path, layouts, tensors.__getitem__, fsync=fsync)


def stream_tensor_file(
    path: Place,
    layouts: Mapping[str, TensorLayout],
    read: Callable[[str], Tensor],
    *,
    metadata: Mapping[str, str] | None = None,
    fsync: bool,
) -> FileRecord:
    """Write one safetensors file whose tensors are asked for one by one, when the file is ready for them.

    Args:
        path: a new file.
        layouts: of every tensor, by name.
        read: returns the tensor of a name, in its layout; nothing keeps it afterwards.
        metadata: entries of the header beside `format`.
        fsync: have the disk confirm the content.

    Raises:
        CheckpointError: a dtype that the format lacks.
    """
    # widest elements first, as the library does: without gaps, this keeps every tensor aligned to its own element size
    ordered = sorted(layouts, key=lambda name: (-layouts[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {**(metadata or {}), "format": "pt"}}
    end = 0
    for name in ordered:
        layout = layouts[name]
        _check_layout(name, layout)
        start, end = end, end + layout.nbytes
        header[name] = {"dtype": DTYPES[layout.dtype], "shape": list(layout.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file = HashedFile(path, fsync=fsync)
    try:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            file.write(_bytes_of(name, layouts[name], read))
    except BaseException:
        file.abandon()
        raise
    return file.close()


def _bytes_of(name: str, layout: TensorLayout, read: Callable[[str], Tensor]) -> memoryview:
    tensor = read(name)
    if TensorLayout.of(tensor) != layout:
        raise CheckpointError(
            explain(
                f"The tensor {name!r} is not what the header of its file says",
                got=f"{TensorLayout.of(tensor)} for {layout}",
                fix="give the layouts of the tensors that are read",
            )
        )
    return raw_bytes(tensor)


def check_tensor(name: str, tensor: Tensor) -> None:
    """Refuse what a safetensors file cannot hold.

    Raises:
        CheckpointError: a tensor has no dense values or a dtype that the format lacks.
    """
    problem = storable_problem(tensor)
    if problem:
        raise _unstorable(name, problem)
    _check_layout(name, TensorLayout.of(tensor))


def _check_layout(name: str, layout: TensorLayout) -> None:
    if layout.dtype.is_complex:
        raise _unstorable(
            name,
            "it is complex, which few safetensors readers know; keep torch.view_as_real(tensor) in the model instead",
        )
    if layout.dtype not in DTYPES:
        raise _unstorable(name, f"safetensors has no dtype for {layout.dtype}; convert the tensor")
    if name == "__metadata__":
        raise _unstorable(name, "this name is reserved by the safetensors format; rename the tensor")


def _unstorable(name: str, problem: str) -> CheckpointError:
    return CheckpointError(explain(f"The tensor {name!r} cannot be saved", why=problem))
