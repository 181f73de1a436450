"""Writing a checkpoint so that it is there whole or not at all.

Files are written where `checkpoint/staging.py` says, hashed on the way, and read back; the checkpoint appears at its
place only then. A process killed at any point leaves the earlier checkpoints as they were.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePath

import torch

from taskloom.checkpoint.files import disk_errors, make_folder, sync_folder, to_json, write_file
from taskloom.checkpoint.index import TensorIndex, index_name, stored_key
from taskloom.checkpoint.manifest import FileRecord, Manifest
from taskloom.checkpoint.place import Place, as_path, children, is_remote, kind_of
from taskloom.checkpoint.reader import problems_of
from taskloom.checkpoint.shard import Shard, without_aliases
from taskloom.checkpoint.staging import is_unfinished, stage
from taskloom.checkpoint.state import EncodedState, encode_state
from taskloom.checkpoint.tensor_file import write_tensor_file
from taskloom.core.errors import CheckpointError, explain

LARGEST_FILE = 5_000_000_000
"""Bytes of tensors that go into one file, as Transformers cuts them; a larger tensor has a file of its own."""

KEPT_WITH_WEIGHTS = ("task_class", "hyper_parameters", "data_hyper_parameters", "custom", "left_out", "setup")
"""The entries of `CheckpointContent.state` that a weights-only checkpoint keeps: what rebuilds the task."""


@dataclass
class CheckpointContent:
    """What goes into a checkpoint.

    Args:
        model: pieces of parameters and buffers.
        optimizer: pieces of optimizer state, named `<parameter name>.<slot>`.
        state: everything else, as nested data (see `encode_state`).
        config: YAML text of the resolved configuration.
        metrics: name to (value, step it was measured at).
        step: optimizer steps done.
        epoch: epochs done.
        run_id: the run that writes.
        aliases: tied weights, alias to stored name; see `find_aliases`. Pieces of aliases may be among `model`.
        save_id: identifies this content, so that policies which save it at the same step share one checkpoint.
        further: pieces of more sets of tensors by the name of their folder, such as averaged weights of a callback.
        encoded: `state`, encoded already; `state` itself is then not looked at.
        before: called when everything is written and verified and the checkpoint is about to appear, for what must not
            lag behind it, such as copies of logs.
    """

    model: Iterable[Shard]
    optimizer: Iterable[Shard] = ()
    state: dict[str, object] = field(default_factory=dict)
    config: str | None = None
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    run_id: str = ""
    aliases: dict[str, str] = field(default_factory=dict)
    save_id: str = field(default_factory=lambda: secrets.token_hex(8))
    further: dict[str, list[Shard]] = field(default_factory=dict)
    encoded: EncodedState | None = None
    before: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        self.model, self.optimizer = list(self.model), list(self.optimizer)  # several policies may read them


def write_checkpoint(
    target: str | PurePath,
    content: CheckpointContent,
    *,
    fsync: bool = True,
    weights_only: bool = False,
    largest_file: int = LARGEST_FILE,
) -> Manifest:
    """Write a checkpoint, verify it and put it in place.

    Args:
        target: folder to make, or the URL of one. An older checkpoint there is replaced once the new one has verified;
            anything else is refused.
        content: what to save. Tensors are read as they are; nothing may change them until this returns.
        fsync: have the disk confirm everything, so that a power cut cannot lose it either, and read it all back before
            it counts as saved. Without it only a crash of the process is survived, and what is checked before the
            rename is sizes, headers and indexes; hashes are written in either case.
        weights_only: leave out the optimizer and the training state, all but what rebuilds the task.
        largest_file: bytes of tensors per file.

    Raises:
        CheckpointError: a value is not data, a tensor cannot be stored, the folder cannot be written, or the disk is
        full.
            What was at `target` is untouched.
    """
    target = as_path(target).absolute()
    state = encoded_state(content, weights_only=weights_only)
    shards = {"model": without_aliases(content.model, content.aliases)}
    if not weights_only:
        shards["optimizer"] = list(content.optimizer)
    shards.update(content.further)
    plans = {kind: _plan(kind, pieces, largest_file) for kind, pieces in shards.items()}
    staging = stage(target, content.run_id, fsync=fsync)
    with disk_errors(target):
        check_target(target)
        with staging:
            files = _write_files(staging.folder, plans, state, content.config, fsync=fsync)
            manifest = manifest_of(content, files, weights_only=weights_only)
            if content.before is not None:
                content.before()
            staging.publish(manifest, lambda folder, known: problems_of(folder, hashes=fsync, manifest=known))
    return manifest


def encoded_state(content: CheckpointContent, *, weights_only: bool) -> EncodedState:
    """Return what is to be written beside the tensors.

    Raises:
        CheckpointError: a value is not data; names its field.
    """
    if content.encoded is not None:
        return content.encoded.only(KEPT_WITH_WEIGHTS) if weights_only else content.encoded
    kept = {name: value for name, value in content.state.items() if not weights_only or name in KEPT_WITH_WEIGHTS}
    return encode_state(kept)


def manifest_of(content: CheckpointContent, files: Mapping[str, FileRecord], *, weights_only: bool) -> Manifest:
    """Describe what has been written."""
    return Manifest(
        run_id=content.run_id,
        save_id=content.save_id,
        saved_at=datetime.now(timezone.utc).isoformat(timespec="microseconds"),
        step=content.step,
        epoch=content.epoch,
        weights_only=weights_only,
        metrics={name: (float(value), int(step)) for name, (value, step) in content.metrics.items()},
        aliases=dict(content.aliases),
        files=dict(files),
    )


def check_target(target: Place) -> None:
    """Refuse to replace anything but a checkpoint.

    Raises:
        CheckpointError: something else is there.
    """
    kind = kind_of(target)
    if kind == "file" or (not is_remote(target) and target.is_symlink()):
        raise CheckpointError(
            explain(f"{target} exists and is not a checkpoint folder", fix="choose another path, or remove it")
        )
    if kind == "folder" and children(target) and not is_unfinished(target):
        try:
            Manifest.read(target)
        except CheckpointError as error:
            raise CheckpointError(
                explain(
                    f"{target} exists and is not a checkpoint that may be replaced",
                    why=str(error),
                    fix="choose another path, or empty the folder",
                )
            ) from error


def _plan(kind: str, shards: list[Shard], largest_file: int) -> dict[str, list[Shard]]:
    """Assign shards to files, in order, and check that they make up whole tensors."""
    groups: list[list[Shard]] = []
    dtypes: dict[str, torch.dtype] = {}
    size = largest_file + 1
    for shard in shards:
        if shard.tensor.numel() == 0 and not shard.region.is_whole:
            continue  # a rank that owns nothing of this tensor
        if size + shard.nbytes > largest_file:
            groups.append([])
            size = 0
        if dtypes.setdefault(shard.name, shard.tensor.dtype) != shard.tensor.dtype:
            raise CheckpointError(
                explain(f"The pieces of {shard.name!r} have different dtypes", fix="convert them to one")
            )
        groups[-1].append(shard)
        size += shard.nbytes
    files = {f"{kind}-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}
    try:
        TensorIndex.of(files)
    except ValueError as error:
        raise CheckpointError(
            explain(
                f"The {kind} cannot be saved: {error}",
                fix="give every tensor once, whole or in pieces that make it up exactly",
            )
        ) from error
    return files


def _write_files(
    staged: Place, plans: Mapping[str, dict[str, list[Shard]]], state: EncodedState, config: str | None, *, fsync: bool
) -> dict[str, FileRecord]:
    """Write everything but the manifest; return the records by path."""
    records: dict[str, FileRecord] = {}
    for kind, files in plans.items():
        folder = staged / kind
        make_folder(folder)
        for name, shards in files.items():
            tensors = {stored_key(shard): shard.tensor for shard in shards}
            records[f"{kind}/{name}"] = write_tensor_file(folder / name, tensors, fsync=fsync)
        total_size = sum(shard.nbytes for shards in files.values() for shard in shards)
        index = to_json(TensorIndex.of(files).to_json(total_size))
        records[f"{kind}/{index_name(kind)}"] = write_file(folder / index_name(kind), index, fsync=fsync)
        if fsync:
            sync_folder(folder)
    return {**records, **write_rest(staged, state, config, fsync=fsync)}


def write_rest(staged: Place, state: EncodedState, config: str | None, *, fsync: bool) -> dict[str, FileRecord]:
    """Write what is beside the sets of tensors; return the records by path."""
    records: dict[str, FileRecord] = {}
    records["state.json"] = write_file(staged / "state.json", to_json(state.data, indent=None), fsync=fsync)
    if state.tensors:
        records["state.safetensors"] = write_tensor_file(staged / "state.safetensors", state.tensors, fsync=fsync)
    if config is not None:
        records["config.yaml"] = write_file(staged / "config.yaml", config.encode(), fsync=fsync)
    return records
