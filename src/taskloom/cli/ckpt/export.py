"""`task ckpt export`: the weights as plain safetensors files."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from taskloom.cli.ckpt.places import add_path, checkpoint_at
from taskloom.cli.ckpt.text import format_bytes, say


def run(args: Sequence[str]) -> int:
    """Export."""
    options = _parser().parse_args(args)

    from taskloom.checkpoint.export import export_weights

    made = export_weights(
        checkpoint_at(options.path),
        options.out,
        weights=options.weights,
        dtype=options.dtype,
        include=options.include,
        exclude=options.exclude,
        strip_prefix=options.strip_prefix,
        remove_task_prefix=options.remove_task_prefix,
        max_shard_size=options.max_shard_size,
        overwrite=options.overwrite,
    )
    for file in (*made.files, *([made.index] if made.index else [])):
        say(str(file))
    tied = f", {len(made.aliases)} tied to others" if made.aliases else ""
    say(f"{made.tensors} tensors{tied}, {format_bytes(made.total_size)}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="task ckpt export",
        description="Write the weights of a checkpoint as plain safetensors files, as from_pretrained and other "
        "loaders read them. Works for checkpoints of any strategy and number of processes, within the memory of one "
        "tensor.",
    )
    add_path(parser)
    parser.add_argument(
        "out", metavar="OUT", help="folder for model.safetensors, in several files with an index where it is large; or "
        "a name that ends in .safetensors for one file",
    )  # fmt: skip
    parser.add_argument(
        "--max_shard_size", metavar="SIZE", help="of a file in the folder, such as 5GB (the default) or 500MB"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32", "fp64"), help="for floating-point tensors; kept unless asked"
    )
    parser.add_argument(
        "--weights", default="model", metavar="KIND", help="model (default), average, or another set in the checkpoint"
    )
    parser.add_argument(
        "--include", action="append", default=[], metavar="PATTERN", help="only these, such as 'net.*'; may be repeated"
    )
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="not these; may be repeated")
    parser.add_argument(
        "--strip_prefix", default="", metavar="PREFIX", help="take it off the names that begin with it, such as net."
    )
    parser.add_argument(
        "--remove_task_prefix",
        action="store_true",
        help="take off the attribute that holds the whole model in its task",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace weights that are there")
    return parser
