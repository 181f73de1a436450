"""`task ckpt import`: a checkpoint of the weights of another framework."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from taskloom.cli.ckpt.text import format_bytes, say


def run(args: Sequence[str]) -> int:
    """Import."""
    parser = ArgumentParser(
        prog="task ckpt import",
        description="Make a weights-only checkpoint of safetensors files (single, or several with an index), or of a "
        "file that torch.save wrote, Lightning's .ckpt included. Nothing in a file is run: one that holds more than "
        "tensors and plain data is refused.",
    )
    parser.add_argument(
        "file", metavar="FILE", help=".safetensors, .index.json, .ckpt, .pt, .bin, or a folder of these"
    )
    parser.add_argument("out", metavar="OUT", help="folder to make")
    parser.add_argument("--key", help="where in the file the tensors are, such as ema.state_dict")
    parser.add_argument("--strip_prefix", default="", metavar="PREFIX", help="take it off the names that begin with it")
    parser.add_argument("--add_prefix", default="", metavar="PREFIX", help="put it before every name, such as net.")
    options = parser.parse_args(args)

    from taskloom.checkpoint.foreign import import_weights

    manifest, weights = import_weights(
        options.file, options.out, key=options.key, strip_prefix=options.strip_prefix, add_prefix=options.add_prefix
    )
    for each in weights.left_out:
        say(f"left out: {each}")
    tied = f", {len(weights.aliases)} tied to others" if weights.aliases else ""
    size = format_bytes(sum(file.bytes for file in manifest.files.values()))
    say(f"{options.out}: {len(weights.tensors)} tensors{tied}, {size}")
    if weights.hyper_parameters:
        say(f"hyper-parameters: {', '.join(map(str, weights.hyper_parameters))}")
    return 0
