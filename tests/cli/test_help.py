"""Help: at once where possible, complete where asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli.command import Run

from taskloom import __version__
from taskloom.cli.commands import COMMANDS


def fresh(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


@pytest.mark.holds("R30")
def test_overview_imports_nothing_heavy() -> None:
    code = (
        "import sys; from taskloom.cli import main; main(['--help']); "
        "print([name for name in ('torch', 'jsonargparse', 'yaml', 'rich', 'numpy') if name in sys.modules])"
    )
    outcome = fresh("-c", code)
    assert outcome.stdout.endswith("[]\n"), outcome
    assert all(f"  {name}" in outcome.stdout for name in COMMANDS)


@pytest.mark.holds("CL-12")
def test_runs_as_a_module() -> None:
    outcome = fresh("-m", "taskloom", "--version")
    assert (outcome.returncode, outcome.stdout) == (0, f"taskloom {__version__}\n")
    mistake = fresh("-m", "taskloom", "fti")
    assert mistake.returncode == 2
    assert mistake.stderr == (
        "error: There is no such command. Got: 'fti'. Fix: use one of fit, validate, test, predict, check, ckpt, new, "
        "env. Did you mean 'fit'?\n"
    )


@pytest.mark.holds("CL-12")
def test_module_exits_with_2_and_without_traceback_on_a_broken_configuration(samples: Path) -> None:
    outcome = fresh("-m", "taskloom", "fit", "--config", "many_at_once.yaml")
    assert outcome.returncode == 2
    assert outcome.stderr.replace("'?.", "'?") == (samples / "many_at_once.txt").read_text(encoding="utf-8")


def test_help_of_a_stage_imports_no_optional_package() -> None:
    code = (
        "import sys; from taskloom.cli import main; main(['fit', '--help']); "
        "print([name for name in ('torchmetrics', 'tensorboard', 'copier', 'sphinx') if name in sys.modules])"
    )
    assert fresh("-c", code).stdout.endswith("[]\n")


@pytest.mark.holds("CL-02", "CL-03")
def test_help_of_a_stage_lists_the_trainer_and_the_chosen_classes(run: Run, samples: Path) -> None:
    outcome = run(["fit", "--task", "sample_tasks.Classifier", "--help"])
    assert outcome.code == 0
    for flag in ("--precision", "--max_epochs", "--task.hidden", "--data", "--optimizer", "--ckpt_path", "--link"):
        assert flag in outcome.out
    assert "--task.hidden" not in run(["fit", "--help"]).out


@pytest.mark.holds("CL-02")
def test_help_of_a_class(run: Run, samples: Path) -> None:
    assert "--task.hidden" in run(["fit", "--task.help", "sample_tasks.Classifier"]).out
    assert "--task.num_classes" in run(["fit", "--task", "sample_tasks.NeedsClasses", "--task.help"]).out
    assert "--optimizer.momentum" in run(["fit", "--optimizer.help", "sgd"]).out
    assert "--callbacks.patience" in run(["fit", "--callbacks.help", "sample_tasks.Stopper"]).out
    assert "--task.help CLASS" in run(["fit", "--task.help"]).out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--taks.help"], "Did you mean 'task'?"),
        (["fit", "--task.help", "sample_tasks.Clasifier"], "Did you mean 'Classifier'?"),
        (["fit", "--seed.help"], "There is no class to choose at 'seed'"),
    ],
)
def test_help_for_what_does_not_exist(args: list[str], message: str, run: Run, samples: Path) -> None:
    outcome = run(args)
    assert outcome.code == 2
    assert message in outcome.err


@pytest.mark.holds("CL-04")
def test_completion_script(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "The shell is not named" in run(["--print_completion"]).err
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "pip install 'taskloom[completion]'" in run(["--print_completion", "bash"]).err
    monkeypatch.undo()
    pytest.importorskip("shtab")
    outcome = run(["--print_completion", "bash"])
    assert "--max_epochs" in outcome.out
    assert "complete" in outcome.out
