"""Real processes that are signalled, or killed, at moments of chance, and started again by the same command."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from taskloom import Preempted
from taskloom.checkpoint import latest_checkpoint, verify_checkpoint
from taskloom.cli.exits import exit_cleanly

SCRIPT = Path(__file__).with_name("preempted.py")


def start(root: Path, *options: str, command: tuple[str, ...] = (sys.executable,), **more: str) -> Any:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.Popen(
        [*command, str(SCRIPT), str(root), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def read_until(process: Any, text: str) -> str:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(text):
            return "".join(lines)
    raise AssertionError(f"{text!r} never came:\n{''.join(lines)}")


def end(process: Any) -> tuple[int, str]:
    text, _ = process.communicate(timeout=60)
    return process.returncode, text


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("uninterrupted")
    code, text = end(start(root))
    assert code == 0, text
    return root


def assert_same(root: Path, uninterrupted: Path) -> None:
    weights, expected = torch.load(root / "final.pt"), torch.load(uninterrupted / "final.pt")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    series = Path("run", "metrics.csv")
    assert (root / series).read_text() == (uninterrupted / series).read_text()


@pytest.mark.holds("R15", "CK-23")
def test_signals_at_moments_of_chance(tmp_path: Path, uninterrupted: Path) -> None:
    for marker, name in [(random.choice(["fitting", "batch"]), "SIGTERM"), ("validating", "SIGUSR1")]:
        process = start(tmp_path, "--pause", "0.02")
        text = read_until(process, marker)
        time.sleep(random.uniform(0, 0.1))
        process.send_signal(signal.Signals[name])
        time.sleep(random.uniform(0, 0.01))
        process.send_signal(signal.SIGTERM)  # a scheduler that repeats itself may be too late for our handler
        code, rest = end(process)
        text += rest
        left = code == Preempted.exit_code or (code == -signal.SIGTERM and "Preempted" in text)
        assert left or (code == 0 and "finished after" in text), text
        path, _ = latest_checkpoint(tmp_path / "run" / "checkpoints")
        if "batch" in text:
            assert path is not None, text
            assert verify_checkpoint(path) == []
    code, text = end(start(tmp_path))
    assert code == 0, text
    assert_same(tmp_path, uninterrupted)


@pytest.mark.holds("R15")
def test_a_signal_to_the_whole_group_leaves_the_workers_to_the_step_in_hand(
    tmp_path: Path, uninterrupted: Path
) -> None:
    process = start(tmp_path, "--pause", "0.05", "--workers", "2")
    read_until(process, "batch 2")
    os.killpg(process.pid, signal.SIGTERM)
    code, text = end(process)
    assert code == Preempted.exit_code, text
    assert "Preempted " in text
    process = start(tmp_path, "--workers", "2")
    code, text = end(process)
    assert code == 0, text
    assert "batch 1\n" not in text
    assert_same(tmp_path, uninterrupted)


@pytest.mark.holds("R15")
def test_a_worker_of_torchrun_that_is_killed_is_started_again_from_the_last_verified_checkpoint(
    tmp_path: Path, uninterrupted: Path
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1", "--max_restarts", "2")
    code, text = end(start(tmp_path, "--killed_at", "8", command=(sys.executable, *torchrun)))
    assert code == 0, text
    told = [line for line in text.splitlines() if line.startswith(("batch", "finished"))]
    # killed at batch 8; the checkpoint before was that of step 3, after the 5 batches of the first epoch
    assert told == [*(f"batch {number}" for number in (*range(1, 9), *range(6, 11))), "finished after 10"], text
    assert_same(tmp_path, uninterrupted)


@pytest.mark.holds("R15")
def test_the_command_line_leaves_with_its_code_and_ignores_what_a_scheduler_repeats() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}

    def leave() -> None:
        raise Preempted("SIGTERM")

    try:
        with pytest.raises(SystemExit) as left:
            exit_cleanly(leave)
        assert left.value.code == 75
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
