"""`task ckpt diff`: what differs between two checkpoints; the exit codes are those of diff(1)."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from taskloom.cli.ckpt.places import add_path, checkpoint_at
from taskloom.cli.ckpt.text import printable, say
from taskloom.core.errors import CheckpointError

_MOST = 20


def run(args: Sequence[str]) -> int:
    """Compare, and return 0 if they are equal, 1 if they differ, 2 if one cannot be read."""
    parser = ArgumentParser(
        prog="task ckpt diff",
        description="Tell which tensors, which values of the training state and which keys of the configuration "
        "differ. Exits with 0 if nothing does, 1 if something does, 2 if a checkpoint cannot be read.",
    )
    add_path(parser, "before")
    add_path(parser, "after")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="let numbers count as equal that differ by no more than this, absolutely or relatively (default: 0)",
    )
    parser.add_argument("--all", action="store_true", help=f"print every difference, not only {_MOST} of a kind")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)

    from taskloom.checkpoint.difference import compare_checkpoints

    try:
        difference = compare_checkpoints(
            checkpoint_at(options.before), checkpoint_at(options.after), tolerance=options.tolerance
        )
    except (CheckpointError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(difference.to_json(), indent=1))
        return 0 if difference.is_empty else 1
    if difference.is_empty:
        say(f"equal: {difference.compared} tensors, the training state and the configuration")
        return 0
    kinds = dict.fromkeys(each.kind for each in difference.tensors)
    groups = {kind: [str(each) for each in difference.tensors if each.kind == kind] for kind in kinds}
    groups["state"] = [f"state: {each}" for each in difference.state]
    groups["config"] = [f"config: {each}" for each in difference.config]
    for lines in groups.values():
        say(lines if options.all else lines[:_MOST]) if lines else None
        if len(lines) > _MOST and not options.all:
            say(f"... and {len(lines) - _MOST} more (--all)")
    say(f"{len(difference.tensors)} tensors differ, {difference.compared} of equal shape were compared")
    return 1
