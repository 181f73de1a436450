"""A project's own command, and the stages from the command line to the Trainer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.command import Run
from safetensors.torch import load_file

from taskloom import DataModule, TaskModule, Trainer
from taskloom.cli import TaskCLI
from taskloom.cli.task_cli import OwnOptions
from taskloom.core.errors import CheckpointError, ConfigError


class Line(TaskModule):
    """A line.

    Args:
        slope: how steep it is.
    """

    def __init__(self, slope: float = 1.0, needs: int = 0) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.slope = slope

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).pow(2).mean()


class SteepLine(Line):
    def __init__(self, extra: int = 5) -> None:
        super().__init__()


class Numbers(DataModule):
    def __init__(self, count: int = 4) -> None:
        self.count = count

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(self.count, 1))


Calls = list[tuple[str, Any, Any, Any]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Replace the loops by a record of how they were called."""
    monkeypatch.chdir(tmp_path)
    # building an optimizer makes torch write this variable where it is missing
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    made: Calls = []

    def record(name: str, result: Any) -> Any:
        def call(
            self: Trainer, task: Any, *, datamodule: Any = None, ckpt_path: Any = None, restore: Any = None
        ) -> Any:
            made.append((name, task, datamodule, ckpt_path))
            return result

        return call

    for name in ("fit", "validate", "test"):
        monkeypatch.setattr(Trainer, name, record(name, [{"test/loss": 0.5}]))
    batches = [{"label": torch.tensor([1, 2])}, {"label": torch.tensor([3])}]
    monkeypatch.setattr(Trainer, "predict", record("predict", batches))
    return made


OPTIMIZER = ("--optimizer", "sgd", "--optimizer.lr", "0.5")


@pytest.mark.holds("CL-01")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_each_stage_runs_from_yaml(stage: str, run: Run, calls: Calls) -> None:
    Path("lines.py").write_text(Path(__file__).read_text())
    Path("cfg.yaml").write_text(
        "max_epochs: 2\nseed: 3\ntask:\n  class_path: lines.Line\n  init_args:\n    slope: 2.0\n"
        "data: lines.Numbers\noptimizer: {class_path: sgd, init_args: {lr: 0.5}}\n"
    )
    outcome = run([stage, "--config", "cfg.yaml", "--task.slope", "3", "--ckpt_path", "somewhere"])
    assert outcome.code == 0, outcome.err
    [(name, task, data, ckpt_path)] = calls
    assert (name, type(task).__name__, type(data).__name__, ckpt_path) == (stage, "Line", "Numbers", "somewhere")
    assert task.slope == 3.0


@pytest.mark.holds("CL-03")
def test_optimizer_and_scheduler_reach_a_task_without_its_own(calls: Calls) -> None:
    args = ["fit", *OPTIMIZER, "--lr_scheduler", "step", "--lr_scheduler.step_size", "7"]
    cli = TaskCLI(Line, Numbers, args=args)
    made = cli.task.configure_optimizers()
    scheduler = made["lr_scheduler"]
    scheduler = scheduler["scheduler"] if isinstance(scheduler, dict) else scheduler
    assert isinstance(made["optimizer"], torch.optim.SGD)
    assert made["optimizer"].param_groups[0]["lr"] == 0.5
    assert isinstance(scheduler, torch.optim.lr_scheduler.StepLR)
    assert scheduler.step_size == 7


@pytest.mark.holds("CL-03")
def test_optimizer_made_by_a_function(calls: Calls) -> None:
    cli = TaskCLI(Line, args=["--optimizer", "adamw_fused", "--optimizer.lr", "0.25"], run=False)
    made = cli.task.configure_optimizers()
    made = made["optimizer"] if isinstance(made, dict) else made
    assert (type(made), made.defaults["lr"], made.defaults["fused"]) == (torch.optim.AdamW, 0.25, True)


@pytest.mark.holds("CL-05")
def test_run_false_builds_and_stops(calls: Calls) -> None:
    cli = TaskCLI(
        Line,
        Numbers,
        args=["--task.slope=4", *OPTIMIZER],
        run=False,
        trainer_defaults={"max_epochs": 9},
        seed_default=5,
    )
    assert calls == []
    assert (cli.task.slope, cli.data.count, cli.trainer.settings.epochs.max) == (4.0, 4, 9)
    assert (cli.config["seed"], cli.config["max_epochs"]) == (5, 9)
    assert cli.config["task"] == {"slope": 4.0, "needs": 0}


@pytest.mark.holds("CL-05")
def test_seed_comes_before_everything_that_is_built(calls: Calls) -> None:
    first, second = (TaskCLI(Line, Numbers, args=["--seed=3", *OPTIMIZER], run=False).task for _ in range(2))
    other = TaskCLI(Line, Numbers, args=["--seed=4", *OPTIMIZER], run=False).task
    assert torch.equal(first.layer.weight, second.layer.weight)
    assert not torch.equal(first.layer.weight, other.layer.weight)


@pytest.mark.holds("CL-03", "CL-05")
def test_own_arguments_and_hooks_before_and_after(calls: Calls) -> None:
    order = []

    class Mine(TaskCLI):
        def add_arguments(self, parser: OwnOptions) -> None:
            parser.add_argument("--notify", type=str, help="whom to tell")
            parser.add_argument("--repeat", type=int, default=2)
            self.link("data.count", "task.needs")

        def before_instantiate(self) -> None:
            order.append(("before", "task" in vars(self), self.options["notify"]))

        def after_instantiate(self) -> None:
            order.append(("after", "task" in vars(self), self.options["repeat"]))
            assert calls == []

    Mine(Line, Numbers, args=["fit", "--notify", "me", *OPTIMIZER])
    assert order == [("before", False, "me"), ("after", True, 2)]
    assert calls[0][0] == "fit"
    with pytest.raises(ConfigError, match=r"flag --repeat: Expected int"):
        Mine(Line, Numbers, args=["fit", "--repeat", "often", *OPTIMIZER])


@pytest.mark.holds("CL-02")
def test_subclass_mode_chooses_among_subclasses(calls: Calls) -> None:
    chosen = ["fit", "--task", "SteepLine", "--task.extra", "6", *OPTIMIZER]
    cli = TaskCLI(Line, Numbers, args=chosen, subclass_mode_task=True)
    assert type(cli.task) is SteepLine
    with pytest.raises(ConfigError, match=r"task\.extra: Line has no parameter 'extra'"):
        TaskCLI(Line, Numbers, args=["fit", "--task.extra", "6", *OPTIMIZER])


@pytest.mark.holds("CL-02", "R30")
def test_fixed_classes_report_every_problem(calls: Calls) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskCLI(Line, Numbers, args=["fit", "--task.slop=1", "--data.count=many", "--max_epoch=3", *OPTIMIZER])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "flag --task.slop",
        "flag --data.count",
        "flag --max_epoch",
    ]


@pytest.mark.holds("CL-05")
def test_command_line_of_the_process(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *OPTIMIZER])
    TaskCLI(Line, Numbers)
    assert calls[0][0] == "fit"
    monkeypatch.setattr(sys, "argv", ["train.py", "fits"])
    with pytest.raises(SystemExit) as caught:
        TaskCLI(Line, Numbers)
    assert caught.value.code == 2
    assert "Did you mean 'fit'?" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    TaskCLI(Line, Numbers)
    assert "usage: train.py COMMAND" in capsys.readouterr().out


def test_interrupt_exits_with_130(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Trainer, *args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "fit", interrupted)
    Path("lines.py").write_text(Path(__file__).read_text())
    assert run(["fit", "--task", "lines.Line", *OPTIMIZER]).code == 130


def test_errors_of_the_users_code_keep_their_traceback(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Line, slope: float = 1.0) -> None:
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(Line, "__init__", broken)
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        TaskCLI(Line, Numbers, args=["fit", *OPTIMIZER])
    assert caught.traceback[-1].name == "broken"


@pytest.mark.holds("CL-01")
def test_predictions_are_written_as_data(run: Run, calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["predict", *OPTIMIZER]
    TaskCLI(Line, Numbers, args=[*args, "--output", "out/p.jsonl"])
    rows = [json.loads(line) for line in Path("out/p.jsonl").read_text().splitlines()]
    assert rows == [{"label": 1}, {"label": 2}, {"label": 3}]
    TaskCLI(Line, Numbers, args=[*args, "--output", "out/p.safetensors"])
    assert load_file("out/p.safetensors")["label"].tolist() == [1, 2, 3]
    assert "3 predictions written to out/p.safetensors" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"written as \.jsonl or \.safetensors"):
        TaskCLI(Line, Numbers, args=[*args, "--output", "p.pt"])


@pytest.mark.holds("CL-05")
def test_configuration_of_a_checkpoint_is_the_lowest_layer(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    """`test --ckpt_path X` needs no other argument; later layers win, and what they change is said."""
    first = TaskCLI(Line, Numbers, args=["--task.slope=4", "--data.count=7", *OPTIMIZER], run=False)
    Path("step-1").mkdir()
    Path("step-1/config.yaml").write_text(first.trainer.config_text or "")
    again = TaskCLI(Line, Numbers, args=["test", "--ckpt_path", "step-1"])
    assert (again.task.slope, again.data.count) == (4.0, 7)
    assert capsys.readouterr().err == ""
    other = TaskCLI(Line, Numbers, args=["test", "--ckpt_path", "step-1", "--data.count", "9"])
    assert (other.task.slope, other.data.count) == (4.0, 9)
    assert capsys.readouterr().err == "data.count: 7 in the checkpoint, now '9' (flag --data.count)\n"


@pytest.mark.holds("R30")
def test_check_builds_nothing(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lines.py").write_text(
        Path(__file__).read_text().replace("self.count = count", "raise AssertionError('the data was built')")
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("the GPU was touched"))
    args = ["check", "--task", "lines.Line", "--data", "lines.Numbers", "--accelerator", "cuda", *OPTIMIZER]
    outcome = run([*args, "--link", "data.count=task.needs", "--max_epochs", "3"])
    assert outcome.code == 0, outcome.err
    assert "lines.Line" in outcome.out
    assert "max_epochs   3  (flag --max_epochs)" in outcome.out
    assert "data.count=task.needs  (flag --link)" in outcome.out
    assert calls == []
    assert run([*args, "--val_check_interval", "1 epok"]).code == 2


@pytest.mark.holds("R30")
def test_a_device_that_is_not_here_is_told_before_anything_is_built(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Numbers, "__init__", lambda self, count=4: pytest.fail("the data was built"))
    with pytest.raises(ConfigError, match=r"flag --accelerator: accelerator: .*'cuda' is not available"):
        TaskCLI(Line, Numbers, args=["fit", "--accelerator", "cuda", *OPTIMIZER])


class Loose(Line):
    def __init__(self, width=3, **options: Any) -> None:
        super().__init__(**options)
        self.width = width


class Untyped(Line):
    def __init__(self, width) -> None:
        super().__init__()


@pytest.mark.holds("R30")
def test_parameters_without_a_type_are_taken_or_refused_but_never_skipped(calls: Calls) -> None:
    """An optional one takes any value, those behind `**options` are found, a required one is refused."""
    cli = TaskCLI(Loose, args=["--task.width=wide", "--task.slope=2", *OPTIMIZER], run=False)
    assert (cli.task.width, cli.task.slope, cli.data) == ("wide", 2.0, None)
    with pytest.raises(ConfigError, match=r"The parameter 'width' of .*Untyped has no type.*test_task_cli\.py:\d+"):
        TaskCLI(Untyped, args=["--task.width=3", *OPTIMIZER], run=False)
    with pytest.raises(ConfigError, match=r"The parameter 'width' of .*Untyped has no type"):
        TaskCLI(Untyped, args=[*OPTIMIZER], run=False)


@pytest.mark.holds("CL-02")
def test_one_callback_needs_no_list(calls: Calls) -> None:
    args = ["--callbacks", "EarlyStopping", "--callbacks.monitor", "val/loss", *OPTIMIZER]
    from taskloom.callbacks import EarlyStopping

    cli = TaskCLI(Line, Numbers, args=args, run=False)
    assert [type(callback) for callback in cli.trainer.callbacks] == [EarlyStopping]
    assert cli.config["callbacks"][0]["init_args"]["monitor"] == "val/loss"


def test_checkpoint_that_is_not_there(run: Run, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(self: Trainer, *args: Any, **kwargs: Any) -> None:
        raise CheckpointError("No checkpoint in nowhere verifies.")

    monkeypatch.setattr(Trainer, "fit", missing)
    Path("lines.py").write_text(Path(__file__).read_text())
    outcome = run(["fit", "--task", "lines.Line", *OPTIMIZER])
    assert (outcome.code, outcome.err) == (1, "error: No checkpoint in nowhere verifies.\n")


@pytest.mark.holds("CL-05", "R31")
def test_saved_configuration_of_a_project_serves_the_general_command(calls: Calls, run: Run) -> None:
    class Mine(TaskCLI):
        def add_arguments(self, parser: OwnOptions) -> None:
            parser.add_argument("--notify", type=str, default="nobody")

    Path("lines.py").write_text(Path(__file__).read_text())
    Path("step-1").mkdir()
    first = Mine(Line, Numbers, args=["predict", "--task.slope=4", "--output=p.jsonl", *OPTIMIZER])
    saved = (first.trainer.config_text or "").replace(__name__, "lines")
    assert "output" not in saved
    Path("step-1/config.yaml").write_text(saved)
    outcome = run(["test", "--ckpt_path", "step-1"])
    assert outcome.code == 0, outcome.err
    assert (calls[-1][0], calls[-1][1].slope) == ("test", 4.0)
    Mine(Line, Numbers, args=["test", "--config", "step-1/config.yaml"])
    with pytest.raises(ConfigError, match=r"No other class can be chosen here.*the task of this command is Line"):
        Mine(Line, Numbers, args=["fit", "--task", "lines.SteepLine"])
    with pytest.raises(ConfigError, match=r"No other class can be chosen here"):
        Mine(Line, Numbers, args=["fit", "--task.class_path", "lines.SteepLine"])
