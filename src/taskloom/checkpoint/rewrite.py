"""Writing a checkpoint anew from what is in it: pieces made whole, or an older format brought to the present one.

Nothing is decoded and no model is needed: tensors stream from file to file, JSON goes through the steps of
`checkpoint/upgrade.py`, everything else is copied. Every byte that is read is compared with its hash, and what was
written is read back before it counts.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import PurePath, PurePosixPath

from taskloom.checkpoint.export import NamedTensors
from taskloom.checkpoint.file_checks import blocks_of, changed, file_problems
from taskloom.checkpoint.files import HashedFile, disk_errors, make_folder, sync_folder, to_json, write_file
from taskloom.checkpoint.index import StoredPiece, TensorIndex, index_name
from taskloom.checkpoint.manifest import ANOTHER_ONE, VERSION, FileRecord, Manifest
from taskloom.checkpoint.place import Place, as_path, kind_of, read_bytes
from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint, problems_of
from taskloom.checkpoint.staging import stage
from taskloom.checkpoint.tensor_file import stream_tensor_file
from taskloom.checkpoint.upgrade import upgraded_file
from taskloom.checkpoint.weight_files import grouped
from taskloom.checkpoint.writer import LARGEST_FILE
from taskloom.core.errors import CheckpointError, explain


def merge_checkpoint(path: str | PurePath, out: str | PurePath, *, largest_file: int = LARGEST_FILE) -> Manifest:
    """Write a copy of a checkpoint in which every tensor is whole, whatever pieces it was saved in.

    Everything else stays as it is, so training can be resumed from the copy, and other safetensors readers see ordinary
    weights and moments.

    Args:
        path: a checkpoint; every file is compared with its hash.
        out: a folder that is not there yet.
        largest_file: bytes of tensors per file.

    Raises:
        CheckpointError: it is damaged, or the copy cannot be written.
    """
    target = as_path(out).absolute()
    if kind_of(target):
        raise CheckpointError(explain(f"{target} exists", fix="choose another place, or remove it"))
    with open_checkpoint(path, verify=True) as reader:
        manifest = replace(reader.manifest, save_id=secrets.token_hex(8))
        with disk_errors(target), stage(target, f"merging {manifest.run_id}", fsync=True) as staging:
            records: dict[str, FileRecord] = {}
            for kind in reader.kinds:
                records.update(_write_whole(reader, kind, staging.folder / kind, largest_file))
            for name in manifest.files:
                if PurePosixPath(name).parts[0] not in reader.kinds:
                    records[name] = _copy(reader, name, staging.folder / name)
            made = replace(manifest, files=records, stored_version=VERSION)
            staging.publish(made, _verified)
    return made


def upgrade_checkpoint(path: str | PurePath) -> int | None:
    """Rewrite a checkpoint of an older format in the present one.

    The old one stays as it is until the new one is whole and has been read back.

    Args:
        path: a checkpoint; every file is compared with its hash.

    Returns:
        The version that it had, or `None` if it is of the present one and was left alone.

    Raises:
        CheckpointError: it is damaged, of a format that cannot be read, or cannot be written.
    """
    target = as_path(path).absolute()
    with open_checkpoint(target) as reader:
        manifest = reader.manifest
        if manifest.stored_version == VERSION:
            return None
        problems = file_problems(target, manifest, hashes=True)
        if problems:
            raise CheckpointError(explain(" ".join(problems).rstrip("."), fix=ANOTHER_ONE))
        with disk_errors(target), stage(target, manifest.run_id, fsync=True) as staging:
            records = {name: _copy(reader, name, staging.folder / name) for name in manifest.files}
            for kind in reader.kinds:
                sync_folder(staging.folder / kind)
            staging.publish(replace(manifest, files=records, stored_version=VERSION), _verified)
    return manifest.stored_version


def _verified(folder: Place, manifest: Manifest | None) -> list[str]:
    return problems_of(folder, hashes=True, manifest=manifest)


def _write_whole(reader: CheckpointReader, kind: str, folder: Place, largest_file: int) -> dict[str, FileRecord]:
    """Write one set of tensors whole; return the records of its files."""
    tensors = NamedTensors.of_kind(reader, kind)
    groups = grouped(tensors.layouts, largest_file) if tensors.layouts else []
    names = [f"{kind}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    make_folder(folder)
    records = {}
    for file, group in zip(names, groups, strict=True):
        layouts = {name: tensors.layouts[name] for name in group}
        records[f"{kind}/{file}"] = stream_tensor_file(folder / file, layouts, tensors.read, fsync=True)
    homes = {name: [StoredPiece(file, name, None)] for file, group in zip(names, groups, strict=True) for name in group}
    index = TensorIndex(homes).to_json(sum(layout.nbytes for layout in tensors.layouts.values()))
    records[f"{kind}/{index_name(kind)}"] = write_file(folder / index_name(kind), to_json(index), fsync=True)
    sync_folder(folder)
    return records


def _copy(reader: CheckpointReader, name: str, new: Place) -> FileRecord:
    """Copy a file of a checkpoint; JSON of an older format is brought to the present one."""
    manifest, source = reader.manifest, reader.path / name
    make_folder(new.parent)
    if name.endswith(".json") and manifest.stored_version != VERSION:
        content = upgraded_file(name, json.loads(read_bytes(source)), manifest.stored_version, VERSION)
        return write_file(new, to_json(content, indent=None if name == "state.json" else 1), fsync=True)
    file = HashedFile(new, fsync=True)
    try:
        for block in blocks_of(source):
            file.write(block)
    except BaseException:
        file.abandon()
        raise
    record = file.close()
    if record != manifest.files[name]:
        raise CheckpointError(explain(changed(source), fix=ANOTHER_ONE))
    return record
