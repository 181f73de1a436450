"""A corpus of broken configurations, each beside the message that a user gets: broken/NAME.yaml and broken/NAME.txt.

Flags and environment variables of a case stand in its first line. To add one, write both files.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from cli.command import SAMPLES, Run

CASES = sorted(path.stem for path in SAMPLES.glob("*.yaml"))


def extras(case: str, kind: str) -> list[str]:
    """The words after `# flags:` or `# environment:` in the first line of a case."""
    first = (SAMPLES / f"{case}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return shlex.split(first.removeprefix(f"# {kind}:")) if first.startswith(f"# {kind}:") else []


@pytest.mark.holds("R30")
@pytest.mark.parametrize("case", CASES)
def test_message(case: str, run: Run, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in extras(case, "environment"):
        monkeypatch.setenv(*variable.split("=", 1))
    outcome = run(["fit", "--config", f"{case}.yaml", *extras(case, "flags")])
    expected = (samples / f"{case}.txt").read_text(encoding="utf-8")
    assert outcome.code == 2
    assert outcome.out == ""
    # a suggestion at the end of a remedy may or may not be followed by the full stop of the remedy
    assert outcome.err.replace(str(samples) + os.sep, "").replace("'?.", "'?") == expected


@pytest.mark.holds("R30")
def test_corpus_is_large_and_complete() -> None:
    assert len(CASES) >= 50
    assert {path.stem for path in SAMPLES.glob("*.txt")} == set(CASES)
