"""Turn a test run into docs/parity.md: which row of what we set out to offer is held by which test.

The rows stand in tools/parity/rows.txt, tests name them with ``@pytest.mark.holds``, and tests/parity_plugin.py writes
what passed to a results file. The page comes from these alone. It carries no date and no count of tests, so the same
tests give the same page, and continuous integration can tell a page that was typed, or left behind, by rendering it
again.

    python tools/parity.py render             write docs/parity.md from build/test-results.json
    python tools/parity.py check              exit with 1 when the committed page is not what the results give
    python tools/parity.py record-gpu --machine NAME [--date YYYY-MM-DD]    keep what passed on this machine's GPU
"""

from __future__ import annotations

import argparse
import datetime
import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "tools" / "parity" / "rows.txt"
GPU_RUNS = ROOT / "tools" / "parity" / "gpu_runs.txt"
PAGE = ROOT / "docs" / "parity.md"
RESULTS = ROOT / "build" / "test-results.json"

NOT_YET = "not yet"
SEVERAL = "on several processes"
ROW_LINE = re.compile(r"(?P<id>[A-Z]{2}-\d{2}|R\d+) (?P<title>\S.*?)(?P<several> \[several processes\])?")
GROUP_LINE = re.compile(r"## (?P<id>[A-Z]{1,2}) (?P<title>\S.*)")
PAGE_LINE = re.compile(r"\| (?P<id>[A-Z]{2}-\d{2}|R\d+) \| .* \| (?P<status>.*) \|")


class HoldingTest(TypedDict):
    """What one test function showed: per row the worst outcome of its parameter sets, and whether it needs a GPU."""

    rows: dict[str, str]
    gpu: bool


class Results(TypedDict):
    """A test run, as tests/parity_plugin.py writes it; `complete` says that no test was left out by choice."""

    complete: bool
    tests: dict[str, HoldingTest]


@dataclass(frozen=True)
class Group:
    """A heading of the page with its rows, identifier to title, in their order.

    Rows in `several` say something about several processes too, which tests name apart: "R3 on several processes".
    """

    id: str
    title: str
    rows: dict[str, str]
    several: set[str] = field(default_factory=set)


@dataclass(frozen=True, order=True)
class GpuRun:
    """One row that a test showed on a GPU."""

    row: str
    date: str
    machine: str
    test: str

    def __str__(self) -> str:
        return " | ".join((self.row, self.date, self.machine, self.test))


def read_groups(path: Path = ROWS) -> list[Group]:
    """Read the list of rows.

    Raises:
        ValueError: a line is neither comment, group nor row, a row stands before the first group, or one appears twice.
    """
    groups: list[Group] = []
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if heading := GROUP_LINE.fullmatch(line):
            groups.append(Group(heading["id"], heading["title"], {}))
        elif (row := ROW_LINE.fullmatch(line)) and groups and row["id"] not in seen:
            groups[-1].rows[row["id"]] = row["title"]
            seen.add(row["id"])
            if row["several"]:
                groups[-1].several.add(row["id"])
        elif line and not line.startswith("# "):
            raise ValueError(f"{path.name}:{number}: not a new row, a group or a comment: {line!r}")
    return groups


def row_titles(path: Path = ROWS) -> dict[str, str]:
    """Every row's identifier and title."""
    return {row: title for group in read_groups(path) for row, title in group.rows.items()}


def names(path: Path = ROWS) -> set[str]:
    """Everything that a test may name: rows, and those that also speak of several processes with that addition."""
    groups = read_groups(path)
    return {*row_titles(path), *(f"{row} {SEVERAL}" for group in groups for row in group.several)}


def read_gpu_runs(path: Path = GPU_RUNS) -> list[GpuRun]:
    """Read what has passed on GPUs, sorted by row."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return sorted(GpuRun(*line.split(" | ")) for line in lines if line and not line.startswith("#"))


def read_results(path: Path = RESULTS, *, partial: bool = False) -> Results:
    """Read a test run.

    Raises:
        ValueError: the run left tests out, so that the page would lose rows that nobody broke, and `partial` is not
            set.
    """
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    if not (results["complete"] or partial):
        raise ValueError(f"{path.name} comes from a run that left tests out or broke off; run `make test` first")
    return results


def holders(results: Results) -> dict[str, list[str]]:
    """Map each row to the tests that passed and name it, sorted.

    Tests that need a GPU are left out: whether they ran depends on the machine, and the page must not.
    """
    held: dict[str, list[str]] = {}
    for test, found in sorted(results["tests"].items()):
        for row, outcome in found["rows"].items():
            if outcome == "passed" and not found["gpu"]:
                held.setdefault(row, []).append(test)
    return held


def status(held_by: Sequence[str], gpu_runs: Sequence[GpuRun], several: Sequence[str] | None = None) -> str:
    """The last cell of a row.

    Args:
        held_by: tests that hold it.
        gpu_runs: where it was seen on a GPU.
        several: tests that hold it on several processes; None for a row that says nothing about them.
    """

    def listed(tests: Sequence[str]) -> str:
        return ", ".join(f"`{test}`" for test in tests)

    parts = [f"held by {listed(held_by)}"] if held_by else []
    if several is not None and (held_by or several):
        parts.append(f"{SEVERAL} by {listed(several)}" if several else f"{SEVERAL} {NOT_YET}")
    parts += [f"runs on a GPU ({run.date}, {run.machine})" for run in gpu_runs]
    return "; ".join(parts) or NOT_YET


def render(groups: Sequence[Group], held: Mapping[str, Sequence[str]], gpu_runs: Sequence[GpuRun]) -> str:
    """Write the page as Markdown."""
    on_gpu: dict[str, list[GpuRun]] = {}
    for run in gpu_runs:
        on_gpu.setdefault(run.row, []).append(run)

    def count(group: Group) -> tuple[int, int, int, int]:
        tested = sum(row in held for row in group.rows)
        seen = sum(row in on_gpu for row in group.rows)
        neither = sum(row not in held and row not in on_gpu for row in group.rows)
        return len(group.rows), tested, seen, neither

    def several_of(group: Group, row: str) -> Sequence[str] | None:
        return held.get(f"{row} {SEVERAL}", ()) if row in group.several else None

    lines = [
        "# What is held",
        "",
        "<!-- Written by `make parity` from a test run. Do not edit: change a test, or tools/parity/rows.txt. -->",
        "",
        "Each row is something that users of PyTorch trainers have, or report as broken. A row is *held* when a test",
        "that names it passed in the run that made this page; the test is the place to read what exactly is promised.",
        "Rows that are about several processes too say apart whether they are held there.",
        "",
        "| Group | Rows | Held | Seen on a GPU | Not yet |",
        "|---|---:|---:|---:|---:|",
    ]
    counts = [count(group) for group in groups]
    lines += [
        f"| {group.id} {group.title} | {' | '.join(map(str, numbers))} |"
        for group, numbers in zip(groups, counts, strict=True)
    ]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    lines.append(f"| **All** | {' | '.join(f'**{total}**' for total in totals)} |")
    for group in groups:
        lines += ["", f"## {group.id} {group.title}", "", "| Row | What | Status |", "|---|---|---|"]
        lines += [
            f"| {row} | {title} | {status(held.get(row, ()), on_gpu.get(row, ()), several_of(group, row))} |"
            for row, title in group.rows.items()
        ]
    return "\n".join(lines) + "\n"


def held_on_page(page: str) -> set[str]:
    """The rows that a page shows as held by a test."""
    found = (PAGE_LINE.fullmatch(line) for line in page.splitlines())
    return {line["id"] for line in found if line and line["status"].startswith("held by ")}


def differences(committed: str, rendered: str) -> str:
    """Say what is wrong with the committed page; empty when it is right."""
    if committed == rendered:
        return ""
    lost = sorted(held_on_page(committed) - held_on_page(rendered))
    diff = difflib.unified_diff(
        committed.splitlines(),
        rendered.splitlines(),
        "docs/parity.md as committed",
        "as this run gives it",
        lineterm="",
        n=0,
    )
    regressed = [f"No longer held by any passing test: {', '.join(lost)}."] if lost else []
    return "\n".join(["docs/parity.md is not what the tests give. Run `make parity` and commit it.", *regressed, *diff])


def record_gpu(results: Results, machine: str, date: str, known: Sequence[GpuRun]) -> list[GpuRun]:
    """Add the rows of the GPU tests that passed; a run replaces earlier ones of the same row on the same machine."""
    new = {
        (row, machine): GpuRun(row, date, machine, test)
        for test, found in sorted(results["tests"].items(), reverse=True)
        for row, outcome in found["rows"].items()
        if found["gpu"] and outcome == "passed"
    }
    return sorted(({(run.row, run.machine): run for run in known} | new).values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("command", choices=("render", "check", "record-gpu"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="what tests/parity_plugin.py wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--machine", help="for record-gpu: the GPU's name, such as 'NVIDIA H200'")
    parser.add_argument("--date", default=datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat())
    options = parser.parse_args(arguments)

    if options.command == "record-gpu":
        if not options.machine:
            parser.error("record-gpu needs --machine, the name that the page shows")
        results = read_results(options.results, partial=True)
        runs = record_gpu(results, options.machine, options.date, read_gpu_runs())
        comments = [line for line in GPU_RUNS.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        GPU_RUNS.write_text("\n".join([*comments, *map(str, runs)]) + "\n", encoding="utf-8")
        print(f"{len(runs)} rows are seen on a GPU; `make parity` shows them")
        return 0

    try:
        results = read_results(options.results)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    page = render(read_groups(), holders(results), read_gpu_runs())
    if options.command == "render":
        options.page.write_text(page, encoding="utf-8")
        print(f"{options.page.name}: {len(held_on_page(page))} of {len(row_titles())} rows are held")
        return 0
    problem = differences(options.page.read_text(encoding="utf-8") if options.page.exists() else "", page)
    print(problem or "docs/parity.md is what the tests give")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
