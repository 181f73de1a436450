"""What a person sees of a run: on a terminal, in a log, and when it is interrupted."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from report import task
from report.task import Task, loader, trainer
from report.terminal import Terminal, screen


@pytest.mark.holds("LG-20", "R50")
def test_in_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path)
    folder = run.fit(Task(), loader(), loader()).run_folder
    printed = capsys.readouterr().out
    assert all(character.isprintable() for character in printed.replace("\n", ""))
    lines = printed.splitlines()
    batch = next(line for line in lines if line.startswith("Batch"))
    assert batch.endswith("2 × accumulation 1 × data-parallel 1 = 2 samples per step")
    assert any("Linear" in line for line in lines)
    last_epoch = [line for line in lines if line.startswith("epoch 2/2  4/4 batches in")]
    assert len(last_epoch) == 1
    assert "val/half 0.5" in last_epoch[0]
    assert any(line.startswith("Finished") and "8 steps, 2 epochs" in line for line in lines)
    assert any(line.startswith("Run folder") and str(folder) in line for line in lines)
    assert any(line.startswith("Next") and "test" in line and "step-00000008" in line for line in lines)


@pytest.mark.holds("LG-20")
def test_a_table_after_a_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(tmp_path, logger=False)
    run.test(Task(), loader())
    assert capsys.readouterr().out.splitlines()[-1].split() == ["test/third", "0.3"]
    run.test(Task(), loader(), verbose=False)
    assert "test/third  0.3" not in capsys.readouterr().out.splitlines()[-1:]


@pytest.mark.holds("LG-20")
def test_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, progress=False).fit(Task(), loader(), loader())
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.holds("LG-20", "R50")
def test_on_a_terminal(tmp_path: Path) -> None:
    with Terminal(task.__file__, str(tmp_path), "3") as terminal:
        written = terminal.read_to_end()
        assert terminal.process.returncode == 0
    assert "\x1b[2K" in written  # drawn over in place
    assert "\x1b[?25l" not in written
    shown = screen(written)
    assert not [line for line in shown if "batches/s" in line]
    assert [line for line in shown if line.startswith("epoch 3/3  4/4 batches in")]
    assert any(line.startswith("Finished") for line in shown)


@pytest.mark.holds("LG-20")
def test_an_interrupted_run_leaves_the_terminal_clean_and_says_how_to_go_on(tmp_path: Path) -> None:
    with Terminal(task.__file__, str(tmp_path), "-1") as terminal:
        terminal.read_until("batches/s")
        terminal.process.send_signal(signal.SIGINT)
        shown = screen(terminal.read_to_end())
        assert terminal.process.returncode == -signal.SIGINT
        assert "\x1b[?25l" not in terminal.written
    assert shown[-1] == "KeyboardInterrupt"
    closing = [line.split()[0] for line in shown if not line.startswith((" ", "epoch"))]
    assert closing.index("Interrupted") < closing.index("Last") < closing.index("Next") < closing.index("Traceback")
    assert any(line.startswith("Next") and "trainer.fit(task, ckpt_path=" in line for line in shown)
