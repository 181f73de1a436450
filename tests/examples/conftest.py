"""Examples are run from their own configuration, through the command line's class, as `task` does it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from taskloom import TaskCLI

EXAMPLES = Path(__file__).parents[2] / "examples"

Load = Callable[[str], ModuleType]
Run = Callable[..., TaskCLI]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import an example's module by its name, as the command line would."""

    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(EXAMPLES / name))
        return importlib.import_module(name)

    return load


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a stage of an example with more arguments; what it writes goes to a temporary folder."""

    def run(stage: str, name: str, *args: str) -> TaskCLI:
        config = EXAMPLES / name / f"{name}.yaml"
        quiet = ["--accelerator", "cpu", "--progress", "none", "--run_dir", str(tmp_path / "runs")]
        return TaskCLI(args=[stage, "--config", str(config), *quiet, *args])

    return run
