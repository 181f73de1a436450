"""Writing tensors in the safetensors format, hashed on the way.

The format (github.com/huggingface/safetensors, "Format") is an 8-byte little-endian length, a JSON header that gives
every tensor's dtype, shape and byte range, and the raw little-endian data without gaps. The library's own writer
cannot be hashed while it writes, so writing is done here; reading is left to the library.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from taskloom.checkpoint.files import HashedFile
from taskloom.checkpoint.manifest import FileRecord
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


def write_tensor_file(path: Path, tensors: Mapping[str, Tensor], *, fsync: bool) -> FileRecord:
    """Write one safetensors file in a single pass; at most one tensor at a time is copied from a device.

    Args:
        path: a new file.
        tensors: by name. Tensors may share storage; each is written in full.
        fsync: have the disk confirm the content.

    Raises:
        CheckpointError: a tensor has no dense values or a dtype that the format lacks.
    """
    # widest elements first, as the library does: without gaps, this keeps every tensor aligned to its own element size
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        _check(name, tensor)
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file = HashedFile(path, fsync=fsync)
    try:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            file.write(raw_bytes(tensor))
    except BaseException:
        file.abandon()
        raise
    return file.close()


def _check(name: str, tensor: Tensor) -> None:
    problem = storable_problem(tensor)
    if not problem and tensor.is_complex():
        problem = (
            "it is complex, which few safetensors readers know; keep torch.view_as_real(tensor) in the model instead"
        )
    if not problem and tensor.dtype not in DTYPES:
        problem = f"safetensors has no dtype for {tensor.dtype}; convert the tensor"
    if name == "__metadata__":
        problem = "this name is reserved by the safetensors format; rename the tensor"
    if problem:
        raise CheckpointError(explain(f"The tensor {name!r} cannot be saved", why=problem))
