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

from typing import TYPE_CHECKING

from taskloom.core.lazy import on_first_use

if TYPE_CHECKING:
    from taskloom.checkpoint.difference import Difference, compare_checkpoints
    from taskloom.checkpoint.export import export_weights
    from taskloom.checkpoint.folder import best_checkpoint, latest_checkpoint
    from taskloom.checkpoint.foreign import import_weights
    from taskloom.checkpoint.keeper import CheckpointKeeper
    from taskloom.checkpoint.manifest import FileRecord, Manifest
    from taskloom.checkpoint.policy import CheckpointPolicy
    from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint, verify_checkpoint
    from taskloom.checkpoint.restore import RestorePolicy
    from taskloom.checkpoint.rewrite import merge_checkpoint, upgrade_checkpoint
    from taskloom.checkpoint.shard import Region, Shard, find_aliases
    from taskloom.checkpoint.state import EncodedState, decode_state, encode_state
    from taskloom.checkpoint.task import load_task
    from taskloom.checkpoint.weight_files import WeightFiles
    from taskloom.checkpoint.writer import CheckpointContent, write_checkpoint
    from taskloom.core.errors import CheckpointError

# Loaded on first use: a list of checkpoints, or the check of their hashes, needs no torch.
_HOME = {
    "CheckpointContent": "taskloom.checkpoint.writer",
    "CheckpointError": "taskloom.core.errors",
    "CheckpointKeeper": "taskloom.checkpoint.keeper",
    "CheckpointPolicy": "taskloom.checkpoint.policy",
    "CheckpointReader": "taskloom.checkpoint.reader",
    "Difference": "taskloom.checkpoint.difference",
    "EncodedState": "taskloom.checkpoint.state",
    "FileRecord": "taskloom.checkpoint.manifest",
    "Manifest": "taskloom.checkpoint.manifest",
    "Region": "taskloom.checkpoint.shard",
    "RestorePolicy": "taskloom.checkpoint.restore",
    "Shard": "taskloom.checkpoint.shard",
    "WeightFiles": "taskloom.checkpoint.weight_files",
    "best_checkpoint": "taskloom.checkpoint.folder",
    "compare_checkpoints": "taskloom.checkpoint.difference",
    "decode_state": "taskloom.checkpoint.state",
    "encode_state": "taskloom.checkpoint.state",
    "export_weights": "taskloom.checkpoint.export",
    "find_aliases": "taskloom.checkpoint.shard",
    "import_weights": "taskloom.checkpoint.foreign",
    "latest_checkpoint": "taskloom.checkpoint.folder",
    "load_task": "taskloom.checkpoint.task",
    "merge_checkpoint": "taskloom.checkpoint.rewrite",
    "open_checkpoint": "taskloom.checkpoint.reader",
    "upgrade_checkpoint": "taskloom.checkpoint.rewrite",
    "verify_checkpoint": "taskloom.checkpoint.reader",
    "write_checkpoint": "taskloom.checkpoint.writer",
}

__all__ = [
    "CheckpointContent",
    "CheckpointError",
    "CheckpointKeeper",
    "CheckpointPolicy",
    "CheckpointReader",
    "Difference",
    "EncodedState",
    "FileRecord",
    "Manifest",
    "Region",
    "RestorePolicy",
    "Shard",
    "WeightFiles",
    "best_checkpoint",
    "compare_checkpoints",
    "decode_state",
    "encode_state",
    "export_weights",
    "find_aliases",
    "import_weights",
    "latest_checkpoint",
    "load_task",
    "merge_checkpoint",
    "open_checkpoint",
    "upgrade_checkpoint",
    "verify_checkpoint",
    "write_checkpoint",
]

__getattr__ = on_first_use(__name__, _HOME)
