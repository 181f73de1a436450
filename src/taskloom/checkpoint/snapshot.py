"""A copy of everything that a checkpoint holds, in host memory that is used again from save to save.

Training may change its tensors as soon as the copy is there, while a background thread writes it. Memory that has been
used before is copied into at the speed of the memory; new memory must first be handed out page by page.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from taskloom.checkpoint.shard import Shard, without_aliases
from taskloom.checkpoint.state import EncodedState, encode_state
from taskloom.checkpoint.tensor_file import check_tensor
from taskloom.checkpoint.writer import CheckpointContent
from taskloom.core.errors import TaskloomWarning, explain

_Key = tuple[str, str, tuple[int, ...], tuple[int, ...], torch.dtype]


class SnapshotBuffers:
    """Host memory for one snapshot. The next one overwrites it, so the save before must have ended by then.

    Pinned where a tensor comes from a CUDA device, so that the copies of all tensors run one after another without the
    processor waiting for each.
    """

    def __init__(self) -> None:
        self._buffers: dict[_Key, Tensor] = {}
        self._pieces: dict[int, Shard] = {}  # by the identity of their buffers
        self._from_device = False

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def take(self, content: CheckpointContent) -> CheckpointContent:
        """Return a content that nothing changes any more, until the next snapshot.

        Args:
            content: with tensors on any device. Tied weights are copied once.

        Raises:
            CheckpointError: a value is not data, or a tensor cannot be stored; names it.
        """
        state = content.encoded or encode_state(content.state)
        used: dict[_Key, Tensor] = {}
        taken = replace(
            content,
            model=self._copies("model", without_aliases(content.model, content.aliases), used),
            optimizer=self._copies("optimizer", content.optimizer, used),
            further={kind: self._copies(kind, shards, used) for kind, shards in content.further.items()},
            encoded=EncodedState(
                state.data,
                {
                    name: self._copy(("state", name, (), tuple(each.shape), each.dtype), each, used)
                    for name, each in state.tensors.items()
                },
            ),
        )
        self._buffers = used
        held = {id(buffer) for buffer in used.values()}
        self._pieces = {identity: piece for identity, piece in self._pieces.items() if identity in held}
        if self._from_device:
            torch.cuda.synchronize()  # the copies are complete before anything trains on
        return taken

    def release(self) -> None:
        """Give the memory back."""
        self._buffers, self._pieces = {}, {}

    def _copies(self, kind: str, shards: Iterable[Shard], used: dict[_Key, Tensor]) -> list[Shard]:
        copied = []
        for shard in shards:
            check_tensor(shard.name, shard.tensor)
            key = (kind, shard.name, tuple(shard.offset), tuple(shard.tensor.shape), shard.tensor.dtype)
            buffer = self._copy(key, shard.tensor, used)
            piece = self._pieces.get(id(buffer))
            if piece is None or (piece.global_shape, piece.flat) != (shard.global_shape, shard.flat):
                piece = replace(shard, tensor=buffer)  # checks itself anew, which costs as much as a small copy
                self._pieces[id(buffer)] = piece
            copied.append(piece)
        return copied

    def _copy(self, key: _Key, tensor: Tensor, used: dict[_Key, Tensor]) -> Tensor:
        source = tensor.detach()
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = _host_memory_like(source)
        buffer.copy_(source, non_blocking=source.is_cuda)
        self._from_device |= source.is_cuda
        used[key] = buffer
        return buffer


def _host_memory_like(tensor: Tensor) -> Tensor:
    """Return memory for a copy, in the tensor's own layout, so that copying need not reorder it."""
    if tensor.is_cuda:
        try:
            return torch.empty_like(tensor, device="cpu", pin_memory=True)
        except RuntimeError as error:  # the system limits how much may be locked
            warnings.warn(
                explain(
                    "A checkpoint's copy in host memory could not be pinned, so taking it is slower",
                    got=str(error),
                    fix="raise the limit of locked memory (ulimit -l), or the memory of the container",
                ),
                TaskloomWarning,
                stacklevel=5,
            )
    return torch.empty_like(tensor, device="cpu")
