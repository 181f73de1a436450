"""`task ckpt prune`: free the space of checkpoints that are no longer wanted."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskloom.cli.ckpt.places import folder_at
from taskloom.cli.ckpt.text import format_bytes, say
from taskloom.core.errors import ConfigError, explain

if TYPE_CHECKING:
    from taskloom.checkpoint.pruning import Pruning


def run(args: Sequence[str]) -> int:
    """Delete after asking, and return 1 if the answer was no."""
    options = _parser().parse_args(args)

    from taskloom.checkpoint.pruning import HOUR, plan_pruning

    plan = plan_pruning(
        folder_at(options.run),
        keep_last=options.keep_last,
        keep_best=options.keep_best,
        monitor=options.monitor,
        mode=options.mode,
        leftover_age=0.0 if options.leftovers == "now" else HOUR,
    )
    _print(plan)
    if options.dry_run or not (plan.delete or plan.leftovers):
        return 0
    if not options.yes and not _agreed(plan):
        say("nothing was deleted")
        return 1
    say(f"deleted, {format_bytes(plan.apply())} are free")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="task ckpt prune",
        description="Delete checkpoints of a run, and what killed saves have left. Never deleted are those that "
        "last.json or best.json name, pinned ones, the one a run was resumed from, and the newest good one. Without "
        "--keep_last and --keep_best, checkpoints stay and only leftovers go.",
    )
    parser.add_argument("run", metavar="RUN", help="run, or its folder of checkpoints")
    parser.add_argument("--keep_last", type=_count, metavar="N", help="keep the N newest good ones")
    parser.add_argument("--keep_best", type=_count, metavar="N", help="keep the N best good ones")
    parser.add_argument(
        "--monitor", metavar="METRIC", help="what is best, where the run did not monitor just one metric"
    )
    parser.add_argument("--mode", choices=("min", "max"), help="by default that of the run, else min")
    parser.add_argument(
        "--leftovers",
        choices=("old", "now"),
        default="old",
        help="remove what killed saves have left once nothing was written to it for an hour (old, the default), or now",
    )
    parser.add_argument("--dry_run", action="store_true", help="say what would be deleted, and delete nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _print(plan: Pruning) -> None:
    for each, reason in plan.keep:
        say(f"keep    {each.path.name}  {reason}")
    for checkpoint in plan.delete:
        say(f"delete  {checkpoint.path.name}  {format_bytes(checkpoint.bytes)}")
    for leftover in plan.leftovers:
        say(f"delete  {leftover.path.name}  {format_bytes(leftover.bytes)}, left by a killed save")
    count = len(plan.delete) + len(plan.leftovers)
    say(f"{count} to delete, {format_bytes(plan.bytes)}" if count else "nothing to delete")


def _agreed(plan: Pruning) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError(
            [
                explain(
                    "There is nobody to ask", why="the input is no terminal", fix="pass --yes to delete, or --dry_run"
                )
            ]
        )
    count = len(plan.delete) + len(plan.leftovers)
    return input(f"Delete {count} folders, {format_bytes(plan.bytes)}? [y/N] ").strip().lower() in ("y", "yes")
