"""`task ckpt ls`: the checkpoints of a run, or of all runs."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from taskloom.cli.ckpt.places import RUNS, folders_at
from taskloom.cli.ckpt.text import format_age, format_bytes, on_terminal, one_line

_MOST_METRICS = 4


def run(args: Sequence[str]) -> int:
    """List, and return 1 if a checkpoint is damaged."""
    parser = ArgumentParser(prog="task ckpt ls", description="List the checkpoints of a run, or of all runs.")
    parser.add_argument(
        "path", nargs="?", default=RUNS, metavar="PATH", help="run, folder of runs, or of checkpoints (default: runs)"
    )
    parser.add_argument("--verify", action="store_true", help="read every file and compare its hash, not only its size")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(args)

    from taskloom.checkpoint.catalogue import list_checkpoints, list_leftovers

    found = [
        (folder, list_checkpoints(folder, hashes=options.verify), list_leftovers(folder))
        for folder in folders_at(options.path)
    ]
    if options.json:
        print(json.dumps([_json(*each) for each in found], indent=1))
    else:
        print("\n\n".join(_text(*each) for each in found))
    return 1 if any(each.problems for _, listed, _ in found for each in listed) else 0


def _json(folder: Any, listed: Any, leftovers: Any) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "checkpoints": [each.to_json() for each in listed],
        "leftovers": [{"path": str(each.path), "bytes": each.bytes} for each in leftovers],
    }


def _text(folder: Any, listed: Any, leftovers: Any) -> str:
    from taskloom.report.tables import render_table
    from taskloom.report.text import format_value

    metrics = _metrics(folder, listed)
    columns = ["checkpoint", "step", "epoch", "size", "age", *metrics, "kept as", "state"]
    rows = []
    for each in listed:
        manifest = each.manifest
        values = [each.metric(name) for name in metrics]
        rows.append(
            [
                each.path.name,
                str(manifest.step) if manifest else "",
                str(manifest.epoch) if manifest else "",
                format_bytes(each.bytes),
                format_age(manifest.saved_at) if manifest else "",
                *("" if value is None else format_value(value) for value in values),
                ", ".join(each.marks),
                each.problems[0] if each.problems else "weights only" if manifest and manifest.weights_only else "ok",
            ]
        )
    rows = [[one_line(cell) for cell in row] for row in rows]
    right = {"step", "epoch", "size", *metrics}
    table = render_table(
        [*map(one_line, columns)], rows, right=right, title=one_line(str(folder)), terminal=on_terminal()
    )
    total = format_bytes(sum(each.bytes for each in listed))
    lines = [table, f"{len(listed)} checkpoint{'s' * (len(listed) != 1)}, {total}"]
    if leftovers:
        size = format_bytes(sum(each.bytes for each in leftovers))
        lines.append(f"{len(leftovers)} left by saves that were killed, {size}; task ckpt prune removes them")
    return "\n".join(lines)


def _metrics(folder: Any, listed: Any) -> list[str]:
    """Return the metrics that get a column: what the run monitored, else all if they are few."""
    from taskloom.checkpoint.catalogue import monitored

    names = sorted({name for each in listed if each.manifest for name in each.manifest.metrics})
    chosen = [name for name in monitored(folder) if name in names]
    return names if len(names) <= _MOST_METRICS else chosen
