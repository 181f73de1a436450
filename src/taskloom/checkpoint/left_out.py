"""Weights that a checkpoint leaves out because everybody who goes on from it has them: those that are not trained.

A checkpoint of adapters is a hundredth of the model that they adapt, and means nothing beside another one. So it keeps
a hash of every tensor that it leaves out, and is refused where one of them is not what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import xxhash
from torch import Tensor, nn

from taskloom.checkpoint.shard import Shard
from taskloom.checkpoint.tensor_file import raw_bytes
from taskloom.core.errors import explain

STATE = "left_out"
"""The entry of a checkpoint's state that tells of them."""


def frozen_names(module: nn.Module) -> frozenset[str]:
    """Return the names of parameters that do not require gradients, each under all of its names."""
    return frozenset(
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad and not parameter.is_meta
    )


class TensorHashes:
    """Hashes of tensors, computed again only for one that has changed.

    A change is noticed by torch's count of in-place operations, which does not see writes through `tensor.data`.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int, str]] = {}

    def of(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        """Return the xxh3-64 hash of dtype, shape and bytes of each tensor, by its name."""
        found: dict[str, str] = {}
        for name, tensor in tensors:
            place, version = tensor.data_ptr(), tensor._version
            known = self._known.get(name)
            if known is None or known[:2] != (place, version):
                known = self._known[name] = (place, version, tensor_hash(tensor))
            found[name] = known[2]
        return found


def tensor_hash(tensor: Tensor) -> str:
    """Return the xxh3-64 hash of dtype, shape and bytes of a tensor, as 16 hexadecimal digits."""
    digest = xxhash.xxh3_64(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(raw_bytes(tensor.detach()))
    return digest.hexdigest()


def without_frozen(
    shards: Iterable[Shard], module: nn.Module, hashes: TensorHashes
) -> tuple[list[Shard], dict[str, Any]]:
    """Split off what is not trained.

    Args:
        shards: whole tensors or pieces of them.
        module: that they are of.
        hashes: remembers those of tensors that stay the same.

    Returns:
        The other shards (those of buffers too), and data that tells what was left out.
    """
    frozen = frozen_names(module)
    tensors = dict(module.named_parameters(remove_duplicate=False))
    found = hashes.of((name, tensors[name]) for name in sorted(frozen))
    base = xxhash.xxh3_64_hexdigest("\n".join(f"{name} {value}" for name, value in found.items()).encode())
    return [shard for shard in shards if shard.name not in frozen], {"xxh3_64": base, "tensors": found}


def base_problems(left_out: Mapping[str, str], here: Mapping[str, Tensor], where: str) -> list[str]:
    """Return why the weights that are there are not those that a checkpoint was trained beside.

    Args:
        left_out: hashes by the names of now.
        here: tensors by name.
        where: the checkpoint, for the text.
    """
    other = [name for name, value in left_out.items() if name not in here or tensor_hash(here[name]) != value]
    if not other:
        return []
    more = f" and {len(other) - 5} more" if len(other) > 5 else ""
    return [
        explain(
            f"{where} holds only what was trained, and {len(other)} of the {len(left_out)} tensors beside it are not "
            f"those that it was trained with: {', '.join(other[:5])}{more}",
            fix="load the same base weights into the task before, or restore.missing='allow' to go on with these",
        )
    ]
