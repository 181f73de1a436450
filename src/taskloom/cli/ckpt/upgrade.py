"""`task ckpt upgrade`: checkpoints of an older format, rewritten in the present one."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence

from taskloom.cli.ckpt.places import add_path, checkpoint_at
from taskloom.cli.ckpt.text import say


def run(args: Sequence[str]) -> int:
    """Upgrade."""
    parser = ArgumentParser(
        prog="task ckpt upgrade",
        description="Rewrite checkpoints of an older format, which are readable without this too, only slower. The "
        "old one stays until the new one has been read back.",
    )
    add_path(parser, several=True)
    options = parser.parse_args(args)

    from taskloom.checkpoint.manifest import VERSION
    from taskloom.checkpoint.rewrite import upgrade_checkpoint

    for text in options.path:
        path = checkpoint_at(text)
        old = upgrade_checkpoint(path)
        say(f"{path}: " + (f"is of format {VERSION} already" if old is None else f"format {old} → {VERSION}, verified"))
    return 0
