"""Weights for others: plain safetensors files, as `from_pretrained`-style loaders expect them.

A folder holds `model.safetensors`, or, where that would be larger than wanted, `model-00001-of-0000N.safetensors` and
`model.safetensors.index.json`, whose `weight_map` names the file of every tensor (the convention of Transformers,
huggingface.co/docs/transformers, "Sharded checkpoints"). A weight that is tied to another is stored once; the header
names it, as the `save_model` of safetensors does, and its `load_model` and Transformers tie it again.

Headers are made of shapes alone and tensors are read one by one while their file is written, so that a model of any
size takes the memory of its largest tensor, whatever pieces it was saved in. Files are written beside their place, read
back, compared with what was sent to them, and renamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint
from taskloom.checkpoint.shard import Shard
from taskloom.checkpoint.tensor_file import TensorLayout
from taskloom.checkpoint.weight_files import WeightFiles, write_weight_files
from taskloom.core.errors import CheckpointError, explain, nearest

DTYPES: Final = {
    "fp64": torch.float64,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""What floating-point weights can be converted to, by the names of precisions."""

LARGEST_SHARD = "5GB"
_MAPPED = 1 << 25  # bytes of a memory-mapped file that may be resident before it is let go of and mapped anew
_SIZE = re.compile(r"\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)(?P<binary>i?)B?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class NamedTensors:
    """Named tensors that are read one by one.

    Args:
        layouts: dtype and shape of every tensor, in the order of the model.
        read: returns the tensor of a name.
        aliases: tied weights, alias to a name of `layouts`.
    """

    layouts: Mapping[str, TensorLayout]
    read: Callable[[str], Tensor]
    aliases: Mapping[str, str]

    @classmethod
    def of_checkpoint(cls, reader: CheckpointReader, kind: str = "model") -> NamedTensors:
        """Return a set of tensors of an open checkpoint as weights.

        Averaged weights stand in for those of the model: what was not averaged, such as buffers, is the model's.

        Args:
            reader: stays open while tensors are read.
            kind: one of `reader.kinds`.

        Raises:
            CheckpointError: there is no such set.
        """
        if kind not in reader.kinds:
            raise CheckpointError(
                explain(
                    f"{reader.path} holds no tensors of the kind {kind!r}",
                    fix=f"use one of {', '.join(reader.kinds)}.{nearest(kind, reader.kinds)}",
                )
            )
        model, own = cls.of_kind(reader, "model"), cls.of_kind(reader, kind)
        if not own.layouts.keys() <= model.layouts.keys():
            return own
        homes = {name: own if name in own.layouts else model for name in model.layouts}
        return cls(
            {name: home.layouts[name] for name, home in homes.items()},
            lambda name: homes[name].read(name),
            {alias: name for alias, name in reader.aliases.items() if alias not in own.layouts},
        )

    @classmethod
    def of_kind(cls, reader: CheckpointReader, kind: str) -> NamedTensors:
        """Return just the tensors of one set, without tied names."""
        layouts = {name: TensorLayout(*reader.dtype_and_shape(kind, name)) for name in reader.names(kind)}
        mapped = 0

        def read(name: str) -> Tensor:
            nonlocal mapped
            if mapped + layouts[name].nbytes > _MAPPED:
                reader.close()  # lets go of the pages of what was read; files are opened again as needed
                mapped = 0
            mapped += layouts[name].nbytes
            return reader.tensor(kind, name)

        return cls(layouts, read, {})

    @classmethod
    def of_shards(cls, shards: Iterable[Shard], aliases: Mapping[str, str]) -> NamedTensors:
        """Return the tensors of a module, as its strategy hands them over.

        Raises:
            CheckpointError: a tensor is in pieces, so that this process does not have all of it.
        """
        tensors: dict[str, Tensor] = {}
        for shard in shards:
            if not shard.region.is_whole:
                raise CheckpointError(
                    explain(
                        f"{shard.name!r} is spread over processes",
                        fix="save a checkpoint, which keeps the pieces apart, and export that: "
                        "task ckpt export PATH OUT",
                    )
                )
            if shard.name not in aliases:
                tensors[shard.name] = shard.tensor
        layouts = {name: TensorLayout.of(tensor) for name, tensor in tensors.items()}
        return cls(layouts, tensors.__getitem__, aliases)

    def chosen(self, include: Sequence[str], exclude: Sequence[str]) -> NamedTensors:
        """Return those whose names match one of the patterns `include` (empty: all) and none of `exclude`.

        A tied weight is chosen by each of its names.

        Raises:
            CheckpointError: a pattern matches nothing, or nothing is left.
        """
        names = [*self.layouts, *self.aliases]
        for pattern in (*include, *exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise CheckpointError(
                    explain(
                        f"No tensor matches {pattern!r}",
                        fix=f"patterns are like 'encoder.*'; there is {', '.join(names[:8])}"
                        f"{' and more' * (len(names) > 8)}.{nearest(pattern, names)}",
                    )
                )
        kept = [
            name
            for name in names
            if (not include or any(fnmatchcase(name, pattern) for pattern in include))
            and not any(fnmatchcase(name, pattern) for pattern in exclude)
        ]
        if not kept:
            raise CheckpointError(
                explain("The patterns leave no tensor", got=[*include, *exclude], fix="choose others")
            )
        return self._renamed({name: name for name in kept})

    def without_prefix(self, prefix: str) -> NamedTensors:
        """Return them with `prefix` taken off the names that begin with it.

        Raises:
            CheckpointError: no name begins with it, or two names become one.
        """
        names = [*self.layouts, *self.aliases]
        if not any(name.startswith(prefix) and name != prefix for name in names):
            first = {name.partition(".")[0] + "." for name in names}
            raise CheckpointError(
                explain(
                    f"No tensor's name begins with {prefix!r}",
                    fix=f"names begin with {', '.join(sorted(first)[:8])}.{nearest(prefix, first)}",
                )
            )
        return self._renamed({name: name.removeprefix(prefix) or name for name in names})

    def without_task_prefix(self) -> NamedTensors:
        """Return them without the attribute that holds the whole model in its task, such as `net.`.

        Raises:
            CheckpointError: the task holds tensors in several attributes.
        """
        first = sorted({name.partition(".")[0] for name in [*self.layouts, *self.aliases]})
        if len(first) > 1 or first[0] in self.layouts:
            raise CheckpointError(
                explain(
                    "The task does not hold all its tensors in one attribute",
                    got=first[:8],
                    fix=f"choose those of the model, and its prefix: --include '{first[0]}.*' "
                    f"--strip_prefix {first[0]}.",
                )
            )
        return self.without_prefix(f"{first[0]}.")

    def _renamed(self, names: Mapping[str, str]) -> NamedTensors:
        """Keep and rename: of a tied weight whose stored name is not kept, the first kept alias takes its place."""
        homes: dict[str, str] = {}  # new name to stored name
        aliases: dict[str, str] = {}
        stored_as: dict[str, str] = {}
        for name, new in names.items():
            home = self.aliases.get(name, name)
            if new in homes or new in aliases:
                raise CheckpointError(
                    explain(f"Two tensors would be called {new!r}", fix="leave one out: --exclude PATTERN")
                )
            if home in stored_as:
                aliases[new] = stored_as[home]
            else:
                homes[new], stored_as[home] = home, new
        return NamedTensors(
            {new: self.layouts[home] for new, home in homes.items()}, lambda name: self.read(homes[name]), aliases
        )

    def converted(self, dtype: torch.dtype) -> NamedTensors:
        """Return them with floating-point tensors of 16 bits and more in another dtype; others stay as they are."""
        kept = set(DTYPES.values())
        layouts = {
            name: TensorLayout(dtype if layout.dtype in kept else layout.dtype, layout.shape)
            for name, layout in self.layouts.items()
        }
        return NamedTensors(layouts, lambda name: _converted(name, self.read(name), layouts[name].dtype), self.aliases)


def export_weights(
    path: str | Path,
    out: str | Path,
    *,
    weights: str = "model",
    dtype: str | torch.dtype | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    strip_prefix: str = "",
    remove_task_prefix: bool = False,
    max_shard_size: str | int | None = None,
    overwrite: bool = False,
) -> WeightFiles:
    """Write the weights of a checkpoint as plain safetensors files.

    Tensors are read and written one by one, whole or from any pieces; no process group and no strategy is needed.

    Args:
        path: a checkpoint. Every file that is read is compared with its hash first.
        out: a folder for `model.safetensors`, in several files with an index where it is larger than `max_shard_size`;
            or a name that ends in `.safetensors` for one file of any size.
        weights: which set of tensors: `model`, or another of the checkpoint's kinds such as `average`.
        dtype: `bf16`, `fp16`, `fp32` or `fp64` for floating-point tensors; by default each keeps its own.
        include: patterns of names (`encoder.*`); by default all.
        exclude: patterns of names to leave out.
        strip_prefix: taken off the names that begin with it, after the choice.
        remove_task_prefix: take off the attribute that holds the whole model in its task.
        max_shard_size: of a file in a folder, in bytes or as `"5GB"` (10^9) or `"5GiB"` (2^30), which is the default.
        overwrite: replace weights that are there.

    Returns:
        The files that were written.

    Raises:
        CheckpointError: the checkpoint is damaged, holds no such tensors, or `out` cannot be written.
        ValueError: a size or a dtype cannot be understood, or both ways to take off a prefix are asked for.
    """
    if strip_prefix and remove_task_prefix:
        raise ValueError(explain("strip_prefix and remove_task_prefix exclude each other", fix="pass one of them"))
    wanted = DTYPES[_dtype_name(dtype)] if isinstance(dtype, str) else dtype
    with open_checkpoint(path) as reader:
        source = NamedTensors.of_checkpoint(reader, weights)
        reader.verify({"model", weights})
        if include or exclude:
            source = source.chosen(include, exclude)
        if strip_prefix:
            source = source.without_prefix(strip_prefix)
        if remove_task_prefix:
            source = source.without_task_prefix()
        if wanted is not None:
            source = source.converted(wanted)
        return write_weights(source, out, max_shard_size=max_shard_size, overwrite=overwrite)


def write_weights(
    source: NamedTensors, out: str | Path, *, max_shard_size: str | int | None = None, overwrite: bool = False
) -> WeightFiles:
    """Write tensors as plain safetensors files; see `export_weights`."""
    return write_weight_files(
        out,
        source.layouts,
        source.read,
        aliases=source.aliases,
        max_shard_size=None if max_shard_size is None else parse_size(max_shard_size),
        overwrite=overwrite,
    )


def parse_size(size: str | int) -> int:
    """Return bytes: of a number, `"5GB"` (5·10^9), `"200MB"`, or `"5GiB"` (5·2^30).

    Raises:
        ValueError: it is none of these, or not positive.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match is not None:
            power = " KMGT".index(match["unit"].upper() or " ")
            size = round(float(match["number"]) * (1024 if match["binary"] else 1000) ** power)
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise ValueError(explain("A size is a number of bytes, or text such as '5GB'", got=size, fix="'5GB'"))
    return size


def _dtype_name(name: str) -> str:
    short = {str(dtype).removeprefix("torch."): known for known, dtype in DTYPES.items()}
    found = short.get(name, name)
    if found not in DTYPES:
        raise ValueError(explain("Weights cannot be converted to this dtype", got=name, fix=f"use {', '.join(DTYPES)}"))
    return found


def _converted(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype == dtype:
        return tensor
    made = tensor.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max and bool((made.isinf() & tensor.isfinite()).any()):
        raise CheckpointError(
            explain(
                f"{name!r} holds values that are too large for {str(dtype).removeprefix('torch.')}",
                got=tensor.abs().max().item(),
                fix="convert to bf16, which has the range of fp32, or keep the dtype",
            )
        )
    return made
