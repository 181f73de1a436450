"""`task ckpt pin`: keep checkpoints whatever the policies of their run say."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from taskloom.cli.ckpt.places import add_path, checkpoint_at
from taskloom.cli.ckpt.text import say
from taskloom.core.errors import CheckpointError, explain


def run(args: Sequence[str]) -> int:
    """Pin."""
    return set_pinned(
        args, "pin", "Keep checkpoints: neither their run nor `task ckpt prune` deletes them.", pinned=True
    )


def set_pinned(args: Sequence[str], name: str, description: str, *, pinned: bool) -> int:
    """Pin or unpin."""
    parser = ArgumentParser(prog=f"task ckpt {name}", description=description)
    add_path(parser, several=True)
    options = parser.parse_args(args)

    from taskloom.checkpoint.files import disk_errors
    from taskloom.checkpoint.folder import PINNED, KeptRecord
    from taskloom.checkpoint.manifest import MANIFEST
    from taskloom.checkpoint.place import is_file

    for text in options.path:
        path = checkpoint_at(text)
        if not is_file(path / MANIFEST):
            raise CheckpointError(explain(f"There is no checkpoint at {path}", fix="task ckpt ls lists what there is"))
        with disk_errors(path.parent / PINNED):
            KeptRecord(path.parent).set_pinned(path.name, pinned=pinned)
        say(f"{path}: {'pinned' if pinned else 'no longer pinned'}")
    return 0
