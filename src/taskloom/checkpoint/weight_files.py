"""Safetensors files in the convention of Transformers: which tensor goes where, and how they come to their place.

Local files are written beside their place, read back and renamed; in a store, which has no rename, the index is written
last. Where older weights are replaced, their order is such that a reader finds the old ones or the new ones whole. The
exception is a sharded model that is replaced by one in as many files, whose names are the same: there the old index
goes first, so that a reader in between finds none rather than a mixture.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor

from taskloom.checkpoint.file_checks import hash_of
from taskloom.checkpoint.files import make_folder, remove_file, remove_tree, replace_json, sync_folder
from taskloom.checkpoint.manifest import MANIFEST
from taskloom.checkpoint.place import Place, StoreError, as_path, children, is_remote, kind_of
from taskloom.checkpoint.tensor_file import TensorLayout, stream_tensor_file
from taskloom.core.errors import CheckpointError, explain

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
LARGEST_FILE: Final = 5_000_000_000
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class WeightFiles:
    """What was written.

    Args:
        files: the safetensors files.
        index: the file that says which of them holds which tensor, where there are several.
        tensors: how many, without tied ones.
        total_size: bytes of their values.
        aliases: names of tied weights that are not stored, and the name that each is stored under.
    """

    files: tuple[Path, ...]
    index: Path | None
    tensors: int
    total_size: int
    aliases: Mapping[str, str]


def write_weight_files(
    out: str | Path,
    layouts: Mapping[str, TensorLayout],
    read: Callable[[str], Tensor],
    *,
    aliases: Mapping[str, str],
    max_shard_size: int | None = None,
    overwrite: bool = False,
) -> WeightFiles:
    """Write tensors, reading them one by one.

    Args:
        out: a folder, or a file whose name ends in `.safetensors`.
        layouts: of every tensor, in order.
        read: returns the tensor of a name.
        aliases: names that are not stored, and the names of `layouts` they are tied to.
        max_shard_size: bytes of tensors in a file of a folder; a larger tensor has a file of its own. 5 GB by default.
        overwrite: replace weights that are there.

    Raises:
        CheckpointError: they cannot be written; what was there is untouched.
        ValueError: a size is given for a single file.
    """
    place = as_path(out)
    single = place.name.endswith(".safetensors")
    if single and max_shard_size is not None:
        raise ValueError(
            explain("A single file has no shards", got=str(out), fix="pass a folder, or leave out max_shard_size")
        )
    with _disk_errors(place):
        old = _checked(place, single=single, overwrite=overwrite)
        folder = place.parent if single else place
        groups = [list(layouts)] if single else grouped(layouts, max_shard_size or LARGEST_FILE)
        names = [place.name] if single else _file_names(len(groups))
        plan = dict(zip(names, groups, strict=True))
        _require_space(folder, sum(layout.nbytes for layout in layouts.values()))
        replaced = {path.name for path in old}
        mixes = INDEX in replaced and not replaced.isdisjoint(plan)
        with _staged(folder, f".{place.name}.writing") as staged:
            if mixes and staged == folder:
                remove_file(folder / INDEX)
            for name, tensors in plan.items():
                _write_file(staged / name, {each: layouts[each] for each in tensors}, read, aliases)
            if mixes:
                remove_file(folder / INDEX)
            if staged != folder:
                for name in plan:
                    os.replace(staged / name, folder / name)
                sync_folder(folder)
        if len(plan) > 1:
            _write_index(folder / INDEX, plan, layouts)
        for path in old:
            if path.name not in plan and not (len(plan) > 1 and path.name == INDEX):
                remove_file(path)
    return WeightFiles(
        files=tuple(folder / name for name in plan),
        index=folder / INDEX if len(plan) > 1 else None,
        tensors=len(layouts),
        total_size=sum(layout.nbytes for layout in layouts.values()),
        aliases=dict(aliases),
    )


def grouped(layouts: Mapping[str, TensorLayout], largest: int) -> list[list[str]]:
    """Fill one file after the other, in order; a tensor that is larger than a file has one of its own."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, layout in layouts.items():
        if groups[-1] and size + layout.nbytes > largest:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += layout.nbytes
    return groups


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_file(
    path: Place, layouts: Mapping[str, TensorLayout], read: Callable[[str], Tensor], aliases: Mapping[str, str]
) -> None:
    tied = {alias: name for alias, name in aliases.items() if name in layouts}
    record = stream_tensor_file(path, layouts, read, metadata=tied, fsync=True)
    if hash_of(path) != record.xxh3_64:
        raise CheckpointError(
            explain(
                f"{path} does not read back as it was written",
                fix="check the disk; what was there before is untouched",
            )
        )


def _write_index(path: Place, plan: Mapping[str, list[str]], layouts: Mapping[str, TensorLayout]) -> None:
    weight_map = {name: file for file, names in plan.items() for name in names}
    total = sum(layout.nbytes for layout in layouts.values())
    replace_json(path, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}, fsync=True)


@contextmanager
def _staged(folder: Place, name: str) -> Iterator[Place]:
    """Yield where to write before renaming: a hidden folder inside, or in a store the folder itself."""
    if is_remote(folder):
        make_folder(folder)
        yield folder
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        remove_tree(folder / name)  # left by an export that was killed
        make_folder(folder / name, exist_ok=False)
        yield folder / name
    except BaseException:
        with suppress(OSError):
            remove_tree(folder / name)
            for path in made:
                path.rmdir()
        raise
    remove_tree(folder / name)


def _checked(place: Place, *, single: bool, overwrite: bool) -> list[Place]:
    """Return the weights that are there and will be replaced.

    Raises:
        CheckpointError: they may not be, or something else is there.
    """
    for folder in (place, *place.parents[:2]):
        if kind_of(folder / MANIFEST):
            raise CheckpointError(
                explain(
                    f"{place} is in the checkpoint {folder}, which an export would damage", fix="choose another place"
                )
            )
    found = kind_of(place)
    if found == ("folder" if single else "file"):
        raise CheckpointError(
            explain(
                f"{place} is a {found}",
                fix="pass the name of a folder, or of a file that ends in .safetensors, that is not there yet",
            )
        )
    if single:
        old = [place] if found else []
    else:
        old = [path for path, is_folder in children(place) if not is_folder and _WEIGHTS.fullmatch(path.name)]
    if old and not overwrite:
        names = ", ".join(path.name for path in old[:3]) + (", ..." if len(old) > 3 else "")
        what = f"{place} exists" if single else f"{place} holds weights already: {names}"
        raise CheckpointError(explain(what, fix="choose another place, or pass overwrite (--overwrite)"))
    return old


def _require_space(folder: Place, size: int) -> None:
    if is_remote(folder):
        return
    there = next(path for path in (folder, *folder.parents) if path.exists())
    disk = shutil.disk_usage(there)
    if disk.total and disk.free < size:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are needed and {disk.free:,} are free")


@contextmanager
def _disk_errors(place: Place) -> Iterator[None]:
    """Turn an error of the operating system or a store into one that says what to do."""
    try:
        yield
    except OSError as error:
        what = f"The weights could not be written to {place}; what was there is untouched"
        if isinstance(error, StoreError):
            raise CheckpointError(explain(what, why=str(error))) from error  # says itself what to do
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = f"free space on the file system of {place}, or choose another place"
        else:
            fix = f"make {place.parent} a folder that this user can write to, or choose another place"
        raise CheckpointError(explain(what, got=str(error), fix=fix)) from error
