"""Running the command line inside the test's process, with importable modules that do not outlive the test."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from cli.command import SAMPLES, Outcome, Run

from taskloom.cli import main


@pytest.fixture(autouse=True)
def forget_modules() -> Iterator[None]:
    """Drop what a test imported from its own folders, so that the next one may have modules of the same names."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if not ("site-packages" in file or "taskloom" in name or "lib/python" in file):
            del sys.modules[name]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call `main` and return its exit code and what it printed."""

    def call(args: Sequence[str]) -> Outcome:
        capsys.readouterr()
        code = 0
        try:
            main(args)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the folder that holds `sample_tasks.py`."""
    monkeypatch.chdir(SAMPLES)
    return SAMPLES
