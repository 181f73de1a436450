"""The series that a killed and resumed run leaves, against those of a run that nothing stopped.

Processes are forked from the one that runs the tests, so that many of them can be killed in little time.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loggers import killed
from loggers.test_in_a_run import scalars
from loop.tiny import Line, loader, quiet

from taskloom import CheckpointPolicy, RunFolder
from taskloom.checkpoint import Manifest, latest_checkpoint, open_checkpoint
from taskloom.loggers import JSONLLogger

STEPS, EVERY = 12, 3

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system does not fork")


def in_a_fork(body: Callable[[], Any]) -> int:
    """Run `body` in a process of its own; return the signal that ended it, 0 if it ended well by itself."""
    child = os.fork()
    if not child:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or not os.WEXITSTATUS(status)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def newest(folder: Path) -> Path:
    """The checkpoint to resume from. Written in the background, it need not be the last that was begun."""
    found, _ = latest_checkpoint(folder / "checkpoints")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stopped; in this process, so that those that are forked from it have imported everything."""
    torch.set_num_threads(1)
    return killed.train(tmp_path_factory.mktemp("whole"), epoch_mean=True)


def lines(folder: Path) -> list[Any]:
    """The rows of a run, without the order of names within a row."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_series(folder: Path, whole: Path) -> None:
    assert (folder / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert lines(folder) == lines(whole)
    assert scalars(folder) == scalars(whole)


@pytest.mark.holds("R40")
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_series_after_kills_are_those_of_a_run_that_nothing_stopped(
    data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("pieces")
    folder, resume = root / "run", None
    for further in data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=3)):
        # the first checkpoint is there for certain when the next one is begun, after the sixth step
        step = min(STEPS, (Manifest.read(newest(folder)).step + 1 if resume else 2 * EVERY + 1) + further)
        assert in_a_fork(lambda: killed.train(root, step, resume, epoch_mean=True)) == signal.SIGKILL  # noqa: B023
        resume = folder
    assert not in_a_fork(lambda: killed.train(root, resume=folder, epoch_mean=True))
    same_series(folder, whole)
    ids = {Manifest.read(path).run_id for path in (folder / "checkpoints").glob("step-*")}
    assert len(ids) == 1


@pytest.mark.holds("R40")
@pytest.mark.parametrize("call", [10, 11, 12, 17])
def test_a_kill_between_two_loggers_leaves_no_row_twice(call: int, whole: Path, tmp_path: Path) -> None:
    """The first logger has the row and the others have not, whatever it is of: a step, a validation or an epoch."""
    calls = [0]
    record = JSONLLogger.log_metrics

    def log_metrics(self: JSONLLogger, *arguments: Any, **keywords: Any) -> None:
        calls[0] += 1
        if calls[0] == call:
            killed.kill_this_process()
        record(self, *arguments, **keywords)

    def train() -> None:
        JSONLLogger.log_metrics = log_metrics  # type: ignore[method-assign]
        killed.train(tmp_path, epoch_mean=True)

    assert in_a_fork(train) == signal.SIGKILL
    rows = [(tmp_path / "run" / name).read_bytes().count(b"\n") for name in ("metrics.csv", "metrics.jsonl")]
    assert rows[0] - 1 == rows[1] + 1  # one of them is the header
    assert not in_a_fork(lambda: killed.train(tmp_path, resume=tmp_path / "run", epoch_mean=True))
    same_series(tmp_path / "run", whole)


@pytest.mark.holds("R40")
def test_no_point_is_there_twice_and_none_goes_back(whole: Path, tmp_path: Path) -> None:
    assert in_a_fork(lambda: killed.train(tmp_path, 8, epoch_mean=True)) == signal.SIGKILL
    assert not in_a_fork(lambda: killed.train(tmp_path, resume=tmp_path / "run", epoch_mean=True))
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    points = [(name, row["step"]) for row in rows for name in row if name not in ("step", "epoch")]
    assert len(points) == len(set(points))
    for series in scalars(tmp_path / "run").values():
        x = [step for step, _ in series]
        assert x == sorted(x)
    for name, series in scalars(tmp_path / "run").items():
        assert name == "epoch" or len({step for step, _ in series}) == len(series), name


@pytest.mark.holds("R40")
def test_going_back_to_an_earlier_checkpoint_supersedes_what_came_after(whole: Path, tmp_path: Path) -> None:
    assert in_a_fork(lambda: killed.train(tmp_path, 8, epoch_mean=True)) == signal.SIGKILL
    earlier = newest(tmp_path / "run")
    assert not in_a_fork(lambda: killed.train(tmp_path, resume=tmp_path / "run", epoch_mean=True))
    assert not in_a_fork(lambda: killed.train(tmp_path, resume=earlier, epoch_mean=True))
    same_series(tmp_path / "run", whole)


@pytest.mark.holds("R40")
def test_a_checkpoint_knows_of_the_rows_of_its_step(tmp_path: Path) -> None:
    """Also where it is written while training, and logging, go on."""
    policy = CheckpointPolicy(every="1 steps", keep_last=-1, fsync=False)
    folder = RunFolder(tmp_path, name="run")
    run = quiet(max_epochs=2, logger=["csv", "jsonl"], log_every_n_steps=1, checkpoint=policy, run_dir=folder)
    run.fit(Line(), loader(8))
    known: Sequence[tuple[int, Any, Any]] = []
    for path in sorted((tmp_path / "run" / "checkpoints").glob("step-*")):
        with open_checkpoint(path) as reader:
            loggers = reader.state["loggers"]
            known = [*known, (reader.manifest.step, loggers["csv"]["rows"], loggers["jsonl"]["lines"])]
    # the row of the last step of an epoch is flushed at its end, and the checkpoint comes after
    assert known == [(step, step, step) for step in range(1, 9)]
