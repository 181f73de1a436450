"""Checkpoints: one format for every strategy, whole or not there at all, and nothing in it that can run.

`docs/checkpoint.md` describes the files.
"""

from taskloom.checkpoint.folder import best_checkpoint, latest_checkpoint
from taskloom.checkpoint.keeper import CheckpointKeeper
from taskloom.checkpoint.manifest import FileRecord, Manifest
from taskloom.checkpoint.policy import CheckpointPolicy
from taskloom.checkpoint.reader import CheckpointReader, open_checkpoint, verify_checkpoint
from taskloom.checkpoint.shard import Region, Shard, find_aliases
from taskloom.checkpoint.state import EncodedState, decode_state, encode_state
from taskloom.checkpoint.writer import CheckpointContent, write_checkpoint
from taskloom.core.errors import CheckpointError

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
    "Shard",
    "best_checkpoint",
    "decode_state",
    "encode_state",
    "find_aliases",
    "latest_checkpoint",
    "open_checkpoint",
    "verify_checkpoint",
    "write_checkpoint",
]
