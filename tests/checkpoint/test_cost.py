"""What a save costs in bytes moved; its time is measured in benchmarks."""

from __future__ import annotations

import os
from typing import Any

import torch
import xxhash
from torch.utils._python_dispatch import TorchDispatchMode

from taskloom.checkpoint import CheckpointContent, Shard, files, write_checkpoint
from taskloom.checkpoint.files import HashedFile
from taskloom.checkpoint.snapshot import SnapshotBuffers


def large_content(megabytes: int = 8) -> tuple[CheckpointContent, int]:
    """Tensors beside which headers, indexes and JSON are nothing."""
    tensors = {f"layer{number}.weight": torch.randn(512, 512) for number in range(megabytes)}
    return CheckpointContent(
        model=[Shard.whole(name, tensor) for name, tensor in tensors.items()],
        optimizer=[Shard.whole(f"{name}.exp_avg", tensor) for name, tensor in tensors.items()],
    ), 2 * sum(tensor.nbytes for tensor in tensors.values())


def test_a_save_hashes_and_writes_every_byte_once(tmp_path, monkeypatch):
    hashed = written = read = 0

    class Hash:
        def __init__(self) -> None:
            self._hash = real_hash()

        def update(self, data: Any) -> None:
            nonlocal hashed
            hashed += len(data)
            self._hash.update(data)

        def hexdigest(self) -> str:
            return self._hash.hexdigest()

    def write(file: HashedFile, data: Any) -> None:
        nonlocal written
        written += memoryview(data).nbytes
        real_write(file, data)

    real_hash, real_write = xxhash.xxh3_64, HashedFile.write
    monkeypatch.setattr(files.xxhash, "xxh3_64", Hash)
    monkeypatch.setattr(HashedFile, "write", write)
    content, size = large_content()
    before = _read_characters()
    write_checkpoint(tmp_path / "step-00000001", content, fsync=False)
    read = _read_characters() - before
    assert size <= written <= size * 1.01
    assert size <= hashed <= size * 1.01
    assert read <= size * 0.01  # without fsync nothing is read back but headers


class Moved(TorchDispatchMode):
    """Counts the bytes that operations of torch copy or make."""

    def __init__(self) -> None:
        super().__init__()
        self.copied = self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name == "aten::copy_":
            self.copied += result.nbytes
        elif not func.is_view and not func._schema.is_mutable and isinstance(result, torch.Tensor):
            self.made += result.nbytes
        return result


def test_a_snapshot_copies_every_byte_once():
    content, size = large_content()
    buffers = SnapshotBuffers()
    with Moved() as first:
        buffers.take(content)
    with Moved() as second:
        buffers.take(content)
    assert (first.copied, first.made) == (size, size)
    assert (second.copied, second.made) == (size, 0)


def _read_characters() -> int:
    """Bytes that this process has read by system calls (Linux; elsewhere 0)."""
    path = f"/proc/{os.getpid()}/io"
    if not os.path.exists(path):  # noqa: PTH110
        return 0
    with open(path) as stream:  # noqa: PTH123
        return int(next(line for line in stream if line.startswith("rchar")).split()[1])
