"""What starting up may import. Times are measured in benchmarks; what makes them is held here."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# What takes long to import, or that only some commands need.
HEAVY = {"torch", "numpy", "torchmetrics", "rich", "tensorboard", "copier", "safetensors", "sklearn"}
REPORT = "import sys, json; sys.stderr.write(json.dumps(sorted(sys.modules)))"


def modules_after(*statements: str) -> set[str]:
    """Run statements in a fresh interpreter and return what it has imported."""
    program = "\n".join([*statements, REPORT])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stderr.splitlines()[-1]))


def command(*arguments: str) -> tuple[str, ...]:
    """Statements that run the `task` command and go on after it."""
    return (
        f"import sys; sys.argv = ['task', *{arguments!r}]",
        "from taskloom.cli import main",
        "try: main()",
        "except SystemExit as exit: assert not exit.code, exit.code",
    )


def packages(modules: set[str]) -> set[str]:
    return {name.split(".")[0] for name in modules}


def test_importing_the_package_imports_little() -> None:
    before = modules_after()
    after = modules_after("import taskloom")
    assert not HEAVY & packages(after)
    assert len(after - before) <= 40


def test_public_names_load_on_first_use() -> None:
    after = modules_after("import taskloom", "taskloom.Interval", "taskloom.ConfigError")
    assert "torch" not in after
    assert "taskloom.trainer" not in after


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_the_overview_of_commands_needs_nothing_heavy(arguments: tuple[str, ...]) -> None:
    after = modules_after(*command(*arguments))
    assert not (HEAVY | {"jsonargparse", "yaml"}) & packages(after)
    assert len(after) <= 400


@pytest.mark.parametrize("subcommand", ["new", "env"])
def test_the_help_of_a_command_that_trains_nothing_needs_no_torch(subcommand: str) -> None:
    assert "torch" not in modules_after(*command(subcommand, "--help"))


@pytest.mark.parametrize("option", ["--help", "--print_config"])
def test_the_help_of_a_stage_imports_little_beside_torch(option: str) -> None:
    beside_torch = modules_after(*command("fit", option)) - modules_after("import torch")
    assert not (HEAVY - {"torch", "numpy", "safetensors", "rich"}) & packages(beside_torch)
    own = {name for name in beside_torch if name.partition(".")[0] == "taskloom"}
    assert len(beside_torch - own) <= 180, sorted(beside_torch - own)
    assert len(own) <= 200, sorted(own)
