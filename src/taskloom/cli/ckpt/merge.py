"""`task ckpt merge`: a copy of a checkpoint with every tensor in one piece."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from taskloom.cli.ckpt.places import add_path, checkpoint_at
from taskloom.cli.ckpt.text import format_bytes, say


def run(args: Sequence[str]) -> int:
    """Merge."""
    parser = ArgumentParser(
        prog="task ckpt merge",
        description="Copy a checkpoint, moments and training state included, with every tensor in one piece, whatever "
        "pieces several processes saved. Any strategy resumes from either; other programs read only whole tensors.",
    )
    add_path(parser)
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--max_shard_size", default="5GB", metavar="SIZE", help="of a file (default: 5GB)")
    options = parser.parse_args(args)

    from taskloom.checkpoint.export import parse_size
    from taskloom.checkpoint.rewrite import merge_checkpoint

    made = merge_checkpoint(checkpoint_at(options.path), options.out, largest_file=parse_size(options.max_shard_size))
    say(f"{options.out}: step {made.step}, {format_bytes(sum(file.bytes for file in made.files.values()))}, verified")
    return 0
