"""`task ckpt unpin`: let policies and `task ckpt prune` delete checkpoints again."""

from __future__ import annotations

from collections.abc import Sequence

from taskloom.cli.ckpt.pin import set_pinned


def run(args: Sequence[str]) -> int:
    """Unpin."""
    return set_pinned(args, "unpin", "Let policies and `task ckpt prune` delete checkpoints again.", pinned=False)
