"""Ctrl-C, failures and what is left behind by them."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.tiny import At, Line, loader, quiet

from taskloom import Callback, CheckpointPolicy, DataModule
from taskloom.checkpoint import open_checkpoint
from taskloom.loggers import Logger

SCRIPT = Path(__file__).with_name("interrupted.py")


class Terminal:
    """A process on a terminal of its own, read until a text appears."""

    def __init__(self, *command: str, **options: Any) -> None:
        self.ours, theirs = pty.openpty()
        self.theirs = theirs
        self.before = termios.tcgetattr(theirs)
        self.text = ""
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, **options
        )

    def read_until(self, text: str) -> None:
        while text not in self.text:
            assert select.select([self.ours], [], [], 60)[0], self.text
            self.text += os.read(self.ours, 65536).decode(errors="replace")

    def interrupt(self) -> None:
        os.kill(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        while self.process.poll() is None or select.select([self.ours], [], [], 0)[0]:
            if select.select([self.ours], [], [], 0.05)[0]:
                self.text += os.read(self.ours, 65536).decode(errors="replace")
        after = termios.tcgetattr(self.theirs)
        os.close(self.ours)
        os.close(self.theirs)
        assert after == self.before
        return self.process.returncode


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints below a folder, all of which verify."""
    steps = []
    for path in folder.glob("*/checkpoints/step-*"):
        reader = open_checkpoint(path, verify=True)
        steps.append(reader.manifest.step)
        reader.close()
    return steps


@pytest.mark.holds("LC-30")
def test_ctrl_c_in_a_script_finishes_the_step_saves_and_raises(tmp_path: Path) -> None:
    terminal = Terminal(str(SCRIPT), str(tmp_path))
    terminal.read_until("waiting")
    terminal.interrupt()
    code = terminal.end()
    assert code in (1, 130, -signal.SIGINT)
    assert "KeyboardInterrupt" in terminal.text.splitlines()[-1]
    assert checkpoint_steps(tmp_path) == [6]
    assert "interrupted" in terminal.text.lower()


@pytest.mark.holds("LC-30")
def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path: Path) -> None:
    terminal = Terminal(str(SCRIPT), str(tmp_path), "stubborn")
    terminal.read_until("waiting")
    terminal.interrupt()
    terminal.read_until("held back")
    terminal.interrupt()
    assert terminal.end() != 0
    assert "KeyboardInterrupt" in terminal.text


@pytest.mark.holds("LC-30")
def test_ctrl_c_on_the_command_line_exits_with_130(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "task: {class_path: trainer.interrupted.Slow}\n"
        "data: {class_path: trainer.test_interrupt.Data}\n"
        "accelerator: cpu\nmax_epochs: 100\nrun_dir: runs\nprogress: plain\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{os.environ.get('PYTHONPATH', '')}"}
    terminal = Terminal("-m", "taskloom", "fit", "--config", str(config), cwd=tmp_path, env=environment)
    terminal.read_until("waiting")
    terminal.interrupt()
    assert terminal.end() == 130, terminal.text
    assert checkpoint_steps(tmp_path / "runs") == [6]
    assert "Traceback" not in terminal.text


class Data(DataModule):
    def train_dataloader(self) -> Any:
        return loader()


@pytest.mark.holds("LC-30")
def test_an_interrupt_is_told_to_everybody(tmp_path: Path) -> None:
    told: list[Any] = []

    class Task(Line):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                signal.raise_signal(signal.SIGINT)
            return super().training_step(batch, batch_idx)

    class Telling(Callback):
        def on_exception(self, trainer, task, exception):
            told.append((type(exception), trainer.state.status, trainer.interrupted))

        def teardown(self, trainer, task, stage):
            told.append("teardown")

    trainer = quiet(Telling(), max_epochs=9, checkpoint=CheckpointPolicy(fsync=False), run_dir=tmp_path)
    task = Task()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(task, loader())
    assert told == [(KeyboardInterrupt, "interrupted", True), "teardown"]
    assert (trainer.progress.steps, trainer.state.status, trainer.stop_reason) == (3, "interrupted", "Ctrl-C")
    assert checkpoint_steps(tmp_path) == [3]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.holds("LC-30")
@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_epoch_end", "on_train_batch_start"])
def test_an_interrupt_at_any_moment_of_the_loop_is_heard(hook: str, tmp_path: Path) -> None:
    interrupt = At(**{hook: lambda trainer, _: trainer.interrupt_requested or signal.raise_signal(signal.SIGINT)})
    trainer = quiet(interrupt, max_epochs=1, accumulate_grad_batches=2, checkpoint=True, run_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Line(), loader())
    assert checkpoint_steps(tmp_path) == [2 if hook == "on_train_epoch_end" else 1]


@pytest.mark.holds("LC-30")
def test_ctrl_c_while_an_interrupted_run_saves_ends_it_at_once(tmp_path: Path) -> None:
    class Task(Line):
        def validation_step(self, batch, batch_idx):
            signal.raise_signal(signal.SIGINT)

        def on_save_checkpoint(self, checkpoint):
            reached.append("saving")
            signal.raise_signal(signal.SIGINT)
            reached.append("saved")

        def teardown(self, stage):
            reached.append("torn down")

    reached: list[str] = []
    trainer = quiet(max_epochs=9, checkpoint=True, run_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(Task(), loader(), loader())
    assert reached == ["saving", "torn down"]
    assert checkpoint_steps(tmp_path) == []
    assert trainer.state.stage is None


@pytest.mark.holds("LC-30")
def test_a_handler_of_the_users_own_is_left_alone() -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
    try:
        interrupt = At(on_train_batch_start=lambda *_: signal.raise_signal(signal.SIGINT))
        assert quiet(interrupt, max_epochs=1).fit(Line(), loader()).steps == 4
    finally:
        signal.signal(signal.SIGINT, before)
    assert got == [signal.SIGINT] * 4


class Failing(Callback):
    """Everything that is called after a failure fails as well."""

    def on_exception(self, trainer, task, exception):
        raise ValueError("on_exception")

    def teardown(self, trainer, task, stage):
        raise ValueError("teardown")


class FailingData(Data):
    def on_exception(self, exception: BaseException) -> None:
        raise ValueError("data")


@pytest.mark.holds("LC-30")
def test_the_first_error_is_the_one_that_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    boom = At(on_train_batch_start=lambda *_: {}["the cause"])
    trainer = quiet(boom, Failing(), max_epochs=1, progress="plain")
    with pytest.raises(KeyError, match="the cause"):
        trainer.fit(Line(), datamodule=FailingData())
    printed = capsys.readouterr()
    for what in ("on_exception failed as well: ValueError: data", "on_exception", "teardown failed as well"):
        assert what in printed.out + printed.err
    assert trainer.state.status == "failed"


def test_a_failure_of_the_teardown_is_an_error_of_its_own() -> None:
    with pytest.raises(ValueError, match="teardown"):
        quiet(Failing(), max_epochs=1).fit(Line(), loader())


@pytest.mark.holds("LC-30")
@pytest.mark.parametrize("where", ["setup", "configure_optimizers", "training_step", "validation_step"])
def test_loggers_are_closed_and_the_task_is_freed_whenever_it_fails(where: str, tmp_path: Path) -> None:
    finished: list[str] = []

    class Recorder(Logger):
        name = "recorder"
        started = False

        def start(self, folder, *, run_name, project=None, resumed=False):
            self.started = True

        def log_metrics(self, metrics, *, step, epoch):
            pass

        def finish(self, status):
            finished.append(status)

    def fail(*arguments: Any) -> None:
        raise KeyError(where)

    task = Line()
    vars(task)[where] = fail
    logger = Recorder()
    trainer = quiet(max_epochs=1, logger=logger, run_dir=tmp_path)
    with pytest.raises(KeyError, match=where):
        trainer.fit(task, loader(), loader())
    assert finished == (["failed"] if logger.started else [])
    assert logger.started == (where != "setup")
    assert task._trainer is None
    assert trainer.state.stage is None
    del vars(task)[where]
    assert trainer.fit(task, loader(), loader()).status == "finished"


@pytest.mark.holds("LC-30")
def test_what_a_stage_changes_in_the_process_is_undone_after_a_failure() -> None:
    boom = At(on_train_batch_start=lambda *_: {}["the cause"])
    with pytest.raises(KeyError):
        quiet(boom, max_epochs=1, deterministic=True, debug=True).fit(Line(), loader())
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.is_anomaly_enabled()
    assert torch.is_grad_enabled()
