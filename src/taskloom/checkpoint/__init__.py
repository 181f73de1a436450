"""Checkpoints: one format for every strategy, whole or not there at all, and nothing in it that can run.

A folder per checkpoint, in the order its files are written:

    model/model-00001-of-0000N.safetensors           weights under their own names, readable by any safetensors library
    model/model.safetensors.index.json               which file holds which tensor, as Transformers writes it
    optimizer/optimizer-00001-of-0000N.safetensors   moments under "<parameter name>.<slot>", with an index too
    state.json, state.safetensors                    everything else as typed JSON, and the tensors in it
    config.yaml                                      the resolved configuration
    manifest.json                                    written last: version, run, files with sizes and hashes, metrics

Beside the checkpoints lie `last.json` and `best.json`, which move only to one that has verified, `kept.json`, by which
policies know of what others keep, and `pinned.json`, by which people say what is to stay.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskloom.checkpoint.folder import best_checkpoint, latest_checkpoint
    from taskloom.checkpoint.keeper import CheckpointKeeper
    from taskloom.checkpoint.manifest import FileRecord, Manifest
    from taskloom.checkpoint.policy import CheckpointPolicy
    from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint, verify_checkpoint
    from taskloom.checkpoint.restore import RestorePolicy
    from taskloom.checkpoint.shard import Region, Shard, find_aliases
    from taskloom.checkpoint.state import EncodedState, decode_state, encode_state
    from taskloom.checkpoint.task import load_task
    from taskloom.checkpoint.writer import CheckpointContent, write_checkpoint
    from taskloom.core.errors import CheckpointError

# Loaded on first use: a list of checkpoints, or the check of their hashes, needs no torch.
_HOME = {
    "CheckpointContent": "taskloom.checkpoint.writer",
    "CheckpointError": "taskloom.core.errors",
    "CheckpointKeeper": "taskloom.checkpoint.keeper",
    "CheckpointPolicy": "taskloom.checkpoint.policy",
    "CheckpointReader": "taskloom.checkpoint.reader",
    "EncodedState": "taskloom.checkpoint.state",
    "FileRecord": "taskloom.checkpoint.manifest",
    "Manifest": "taskloom.checkpoint.manifest",
    "Region": "taskloom.checkpoint.shard",
    "RestorePolicy": "taskloom.checkpoint.restore",
    "Shard": "taskloom.checkpoint.shard",
    "best_checkpoint": "taskloom.checkpoint.folder",
    "decode_state": "taskloom.checkpoint.state",
    "encode_state": "taskloom.checkpoint.state",
    "find_aliases": "taskloom.checkpoint.shard",
    "latest_checkpoint": "taskloom.checkpoint.folder",
    "load_task": "taskloom.checkpoint.task",
    "open_checkpoint": "taskloom.checkpoint.reader",
    "verify_checkpoint": "taskloom.checkpoint.reader",
    "write_checkpoint": "taskloom.checkpoint.writer",
}

__all__ = [
    "CheckpointContent",
    "CheckpointError",
    "CheckpointKeeper",
    "CheckpointPolicy",
    "CheckpointReader",
    "EncodedState",
    "FileRecord",
    "Manifest",
    "Region",
    "RestorePolicy",
    "Shard",
    "best_checkpoint",
    "decode_state",
    "encode_state",
    "find_aliases",
    "latest_checkpoint",
    "load_task",
    "open_checkpoint",
    "verify_checkpoint",
    "write_checkpoint",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'taskloom.checkpoint' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
