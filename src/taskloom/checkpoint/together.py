"""Several processes write one checkpoint: each its part of the tensors, the first of them everything else.

Who writes what is planned by torch (`checkpoint/planning.py`): what several processes hold is written once, and the
work is spread evenly. The folder must be one that all of them see; a process that does not see it says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from taskloom.checkpoint.files import disk_errors, make_folder, sync_folder, to_json, write_file
from taskloom.checkpoint.index import TensorIndex, index_name, stored_key
from taskloom.checkpoint.manifest import FileRecord, Manifest
from taskloom.checkpoint.place import Place, as_path, has_folders, is_folder
from taskloom.checkpoint.planning import ShardSavePlanner
from taskloom.checkpoint.reader import problems_of
from taskloom.checkpoint.shard import Shard, without_aliases
from taskloom.checkpoint.staging import stage
from taskloom.checkpoint.tensor_file import write_tensor_file
from taskloom.checkpoint.writer import (
    LARGEST_FILE,
    CheckpointContent,
    check_target,
    encoded_state,
    manifest_of,
    write_rest,
)
from taskloom.core.errors import CheckpointError, explain

Made = TypeVar("Made")


def write_together(
    target: str | PurePath,
    content: CheckpointContent,
    group: dist.ProcessGroup | None = None,
    *,
    fsync: bool = True,
    weights_only: bool = False,
    largest_file: int = LARGEST_FILE,
) -> Manifest:
    """Write a checkpoint with all processes of a group; every one of them calls this.

    Args:
        target: folder to make, the same for all.
        content: of this process: the pieces that it holds. What is no tensor, and the name of the run, are taken from
            the first process.
        group: of the processes; all by default. Objects travel over it, so its backend has to serve the CPU.
        fsync: as of `write_checkpoint`.
        weights_only: leave out the optimizer and the training state.
        largest_file: bytes of tensors per file.

    Returns:
        The manifest, on every process.

    Raises:
        CheckpointError: any process failed; on all of them, naming the first that did. What was at `target` is
            untouched.
    """
    target, first = as_path(target).absolute(), dist.get_rank(group) == 0
    sets = {"model": without_aliases(content.model, content.aliases)}
    if not weights_only:
        sets["optimizer"] = list(content.optimizer)
    sets.update(content.further)
    staging = stage(target, _from_first(content.run_id, group), fsync=fsync)
    own = content if first else replace(content, state={}, encoded=None)
    encoded = _agreed(group, lambda: encoded_state(own, weights_only=weights_only))

    def begin() -> None:
        if first:
            with disk_errors(target):
                check_target(target)
                staging.__enter__()
                for kind in sets:
                    make_folder(staging.folder / kind)

    def finish() -> Manifest | None:
        if not first:
            return None
        with disk_errors(target):
            files = {**records, **write_rest(staging.folder, encoded, content.config, fsync=fsync)}
            manifest = manifest_of(content, files, weights_only=weights_only)
            if content.before is not None:
                content.before()
            staging.publish(manifest, lambda folder, known: problems_of(folder, hashes=fsync, manifest=known))
        return manifest

    records: dict[str, FileRecord] = {}
    failure: BaseException | None = None
    try:
        _agreed(group, begin)
        staged = _from_first(staging.folder, group)
        for kind, shards in sets.items():
            records.update(_write_set(staged / kind, kind, shards, group, fsync=fsync, largest_file=largest_file))
        manifest = _agreed(group, finish)
    except BaseException as error:
        failure = error
        raise
    finally:
        if first:
            staging.__exit__(type(failure) if failure else None, failure, None)
    return _from_first(manifest, group)  # type: ignore[return-value]  # the first process has one


def _write_set(
    folder: Place,
    kind: str,
    shards: list[Shard],
    group: dist.ProcessGroup | None,
    *,
    fsync: bool,
    largest_file: int,
) -> Mapping[str, FileRecord]:
    writer = CheckpointStorageWriter(folder, kind, fsync=fsync, largest_file=largest_file)
    _agreed(group, lambda: _check_seen(folder))
    planner = _agreed(group, lambda: ShardSavePlanner(shards))
    try:
        save({}, storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:
        rank, cause = min(error.failures.items())
        raise CheckpointError(
            explain(f"The {kind} of {folder.parent} could not be saved", got=f"rank {rank}: {cause[0]}")
        ) from cause[0]
    return {f"{kind}/{name}": record for name, record in writer.records.items()}


class CheckpointStorageWriter(StorageWriter):
    """One set of tensors for `torch.distributed.checkpoint.save`: a safetensors file or more per process, and an index.

    Args:
        folder: of the set, made already.
        kind: name of the set.
        fsync: have the disk confirm every file.
        largest_file: bytes of tensors per file.

    Attributes:
        records: sizes and hashes by file name, on the first process once everything is written.
    """

    def __init__(self, folder: Place, kind: str, *, fsync: bool, largest_file: int = LARGEST_FILE) -> None:
        self._folder, self._kind, self._fsync, self._largest = folder, kind, fsync, largest_file
        self.records: dict[str, FileRecord] = {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Forget what an earlier save has written."""
        self.records = {}

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Leave the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give every process names for its files, numbered over all of them."""
        cut = [self._cut(plan.items) for plan in plans]
        total, number, named = sum(map(len, cut)), 0, []
        for plan, parts in zip(plans, cut, strict=True):
            files: dict[str, list[WriteItem]] = {}
            for part in parts:
                number += 1
                files[f"{self._kind}-{number:05d}-of-{total:05d}.safetensors"] = part
            named.append(replace(plan, storage_data=files))
        return named

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the files of this process."""
        results = []
        files: Mapping[str, list[WriteItem]] = plan.storage_data or {}
        for name, items in files.items():
            keyed: dict[str, Tensor] = {}
            for item in items:
                tensor = planner.resolve_data(item)
                assert isinstance(tensor, Tensor)
                keyed[stored_key(_shard_of(item, tensor))] = tensor
            record = write_tensor_file(self._folder / name, keyed, fsync=self._fsync)
            results += [WriteResult(item.index, item.tensor_storage_size() or 0, (name, record)) for item in items]
        if self._fsync and has_folders(self._folder):
            sync_folder(self._folder)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, in the order of the names."""
        files: dict[str, list[Shard]] = {}
        size = 0
        for result in sorted((each for part in results for each in part), key=lambda each: each.index.fqn):
            name, record = result.storage_data
            described = metadata.state_dict_metadata[result.index.fqn]
            assert isinstance(described, TensorStorageMetadata)
            assert result.index.offset is not None
            shape = next(chunk.sizes for chunk in described.chunks if chunk.offsets == result.index.offset)
            dtype = described.properties.dtype
            files.setdefault(name, []).append(
                Shard(
                    result.index.fqn,
                    torch.empty(tuple(shape), dtype=dtype, device="meta"),
                    tuple(described.size),
                    tuple(result.index.offset),
                )
            )
            size += math.prod(shape) * dtype.itemsize
            self.records[name] = record
        index = to_json(TensorIndex.of(dict(sorted(files.items()))).to_json(size))
        self.records[index_name(self._kind)] = write_file(
            self._folder / index_name(self._kind), index, fsync=self._fsync
        )
        if self._fsync and has_folders(self._folder):
            sync_folder(self._folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """A folder is given when this is made."""
        return False

    def _cut(self, items: list[WriteItem]) -> list[list[WriteItem]]:
        parts: list[list[WriteItem]] = []
        size = self._largest + 1
        for item in items:
            bytes_of_item = item.tensor_storage_size() or 0
            if size + bytes_of_item > self._largest:
                parts.append([])
                size = 0
            parts[-1].append(item)
            size += bytes_of_item
        return parts


def _shard_of(item: WriteItem, tensor: Tensor) -> Shard:
    assert item.tensor_data is not None
    return Shard(item.index.fqn, tensor, tuple(item.tensor_data.size), tuple(item.tensor_data.chunk.offsets))


def _check_seen(folder: Place) -> None:
    if has_folders(folder) and not is_folder(folder):
        raise CheckpointError(
            explain(
                f"{folder} was made by the first process, and this one does not see it",
                why="the processes write one checkpoint, and do not share this file system",
                fix="choose a folder that all nodes mount, or a store, with run_dir",
            )
        )


def _from_first(value: Made, group: dist.ProcessGroup | None) -> Made:
    values = [value]
    dist.broadcast_object_list(values, group=group, group_src=0)
    return values[0]


def _agreed(group: dist.ProcessGroup | None, action: Callable[[], Made]) -> Made:
    """Do something on every process; where one fails, all do.

    Raises:
        CheckpointError: another process failed.
        BaseException: what this one raised.
    """
    problem: Exception | None = None
    try:
        made = action()
    except Exception as error:
        problem = error
    told: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(told, None if problem is None else f"{type(problem).__name__}: {problem}", group=group)
    if problem is not None:
        raise problem
    for rank, text in enumerate(told):
        if text is not None:
            raise CheckpointError(explain(f"Rank {rank} could not save its part", got=text))
    return made
