"""Collect which tests hold which rows of docs/parity.md, and how they ended.

``@pytest.mark.holds("TM-01", "R2")`` names rows of tools/parity/rows.txt; a name that is not there stops the run. With
``--parity-results FILE`` the run leaves what tools/parity.py needs to write the page. A marker stands on a test
function, a class or a ``pytest.param``; the parameter sets of a function count as one test, which holds a row when at
least one of the sets that name it passed and none failed.
"""

from __future__ import annotations

import json
from pathlib import Path

import parity
import pytest

# From worst to best: what two reports of one test, or two parameter sets of one function, make together.
FAILED, PASSED, SKIPPED = "failed", "passed", "skipped"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--parity-results",
        type=Path,
        metavar="FILE",
        help="write which rows of docs/parity.md were held in this run",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ParityRows(config), "parity-rows")


def named_rows(item: pytest.Item) -> list[str]:
    """The rows that an item's markers name, each once, in order."""
    return list(dict.fromkeys(row for mark in item.iter_markers("holds") for row in mark.args))


def combine(one: str, other: str) -> str:
    """The outcome of two together: failed beats passed, passed beats skipped."""
    return min(one, other, key=(FAILED, PASSED, SKIPPED).index)


def is_whole_suite(config: pytest.Config, exit_status: int) -> bool:
    """Whether this run was asked for every test and went to its end."""
    option = config.option
    chosen = (option.keyword, option.markexpr, option.deselect, option.maxfail, config.getoption("lf", False))
    finished = exit_status in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    return finished and not any(chosen) and config.args_source is pytest.Config.ArgsSource.TESTPATHS


class ParityRows:
    """What this run has shown: test function to row to outcome."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.known = parity.names()
        self.rows: dict[str, dict[str, str]] = {}
        self.on_gpu: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wrong = []
        for item in items:
            rows = named_rows(item)
            wrong += [f"{item.nodeid}: {row!r}" for row in rows if row not in self.known]
            # Reports carry these from the worker processes of pytest-xdist to the process that writes the file.
            item.user_properties.append(("holds", rows))
            item.user_properties.append(("gpu", item.get_closest_marker("gpu") is not None))
        if wrong:
            raise pytest.UsageError("tools/parity/rows.txt has no such row:\n  " + "\n  ".join(wrong))

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if item.get_closest_marker("gpu"):
            torch = pytest.importorskip("torch")
            if not torch.cuda.is_available():
                pytest.skip("needs a CUDA device")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        rows = properties.get("holds")
        if not rows or (report.when != "call" and report.passed):
            return
        # An expected failure, and one that passes against expectation, both show that the row is not held.
        outcome = FAILED if "wasxfail" in vars(report) else report.outcome
        test = report.nodeid.partition("[")[0]
        known = self.rows.setdefault(test, {})
        for row in rows:
            known[row] = combine(outcome, known.get(row, SKIPPED))
        if properties["gpu"]:
            self.on_gpu.add(test)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        path: Path | None = self.config.getoption("--parity-results")
        if path is None or "workerinput" in vars(self.config):
            return
        results: parity.Results = {
            "complete": is_whole_suite(self.config, exitstatus),
            "tests": {
                test: {"rows": dict(sorted(rows.items())), "gpu": test in self.on_gpu}
                for test, rows in sorted(self.rows.items())
            },
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
