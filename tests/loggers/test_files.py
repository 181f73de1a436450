"""`CSVLogger` and `JSONLLogger`: complete at every moment, continued without gaps or duplicates."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from taskloom.loggers import CSVLogger, JSONLLogger, Logger
from taskloom.loggers.line_file import LineFile


def open_logger(logger: Logger, folder: Path, *, resumed: bool = False) -> Any:
    logger.start(folder, run_name="run", resumed=resumed)
    return logger


Starter = Callable[..., Any]


@pytest.fixture
def started() -> Iterator[Starter]:
    """Starts loggers, and closes their files when the test ends; what they wrote is on disk long before."""
    loggers: list[Logger] = []

    def start(logger: Logger, folder: Path, *, resumed: bool = False) -> Any:
        loggers.append(logger)
        return open_logger(logger, folder, resumed=resumed)

    yield start
    for logger in loggers:
        logger.finish("finished")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.holds("LG-07")
def test_csv_row_is_on_disk_when_the_call_returns(started: Starter, tmp_path: Path) -> None:
    logger = started(CSVLogger(), tmp_path)
    logger.log_metrics({"train/loss": 0.1, "steps": 3}, step=5, epoch=0)
    assert table(tmp_path) == [{"step": "5", "epoch": "0", "train/loss": "0.1", "steps": "3"}]
    assert logger.location == str(tmp_path / "metrics.csv")


def test_csv_keeps_every_digit(started: Starter, tmp_path: Path) -> None:
    value = 0.1 + 0.2
    started(CSVLogger(), tmp_path).log_metrics({"x": value, "y": math.nan, "z": -math.inf}, step=0, epoch=0)
    row = table(tmp_path)[0]
    assert float(row["x"]) == value
    assert math.isnan(float(row["y"]))
    assert float(row["z"]) == -math.inf


@pytest.mark.holds("LG-07")
def test_csv_gains_a_column_with_one_rewrite_per_new_key(
    started: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrites = []
    real = LineFile.rewrite
    monkeypatch.setattr(LineFile, "rewrite", lambda self, *rest: (rewrites.append(rest[0]), real(self, *rest))[1])
    logger = started(CSVLogger(), tmp_path)
    for step in range(10):
        logger.log_metrics({"a": float(step)}, step=step, epoch=0)
    for step in range(10, 20):
        logger.log_metrics({"b, quoted": float(step)}, step=step, epoch=1)
    assert rewrites == ['step,epoch,a,"b, quoted"\n']
    rows = table(tmp_path)
    assert [row["a"] for row in rows] == [*(str(float(step)) for step in range(10)), *[""] * 10]
    assert [row["b, quoted"] for row in rows] == [*[""] * 10, *(str(float(step)) for step in range(10, 20))]


def test_csv_metrics_called_like_its_own_columns_do_not_overwrite_them(started: Starter, tmp_path: Path) -> None:
    logger = started(CSVLogger(), tmp_path)
    for _ in range(2):
        logger.log_metrics({"step": 0.5, "epoch": 0.25}, step=7, epoch=2)
    assert table(tmp_path) == [{"step": "7", "epoch": "2", "metric/step": "0.5", "metric/epoch": "0.25"}] * 2


def test_csv_prefix(started: Starter, tmp_path: Path) -> None:
    logger = started(CSVLogger(prefix="fold1"), tmp_path)
    logger.log_metrics({"loss": 1.0, "step": 2.0}, step=1, epoch=0)
    logger.log_metrics({"loss": 3.0, "step": 4.0}, step=2, epoch=0)
    assert [row["fold1/loss"] for row in table(tmp_path)] == ["1.0", "3.0"]
    assert [row["fold1/step"] for row in table(tmp_path)] == ["2.0", "4.0"]


@pytest.mark.parametrize("logger", [CSVLogger(), JSONLLogger()], ids=lambda logger: logger.name)
def test_a_new_run_in_an_old_folder_begins_anew(started: Starter, logger: Logger, tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        started(logger, tmp_path).log_metrics({"x": value}, step=0, epoch=0)
        logger.finish("finished")
    text = Path(logger.location).read_text()
    assert "2.0" in text
    assert "1.0" not in text


@pytest.mark.parametrize("logger", [CSVLogger(), JSONLLogger()], ids=lambda logger: logger.name)
def test_logging_before_the_start_is_an_error(logger: Logger) -> None:
    with pytest.raises(RuntimeError, match="has not been started"):
        type(logger)().log_metrics({"x": 1.0}, step=0, epoch=0)


@pytest.mark.parametrize("logger", [CSVLogger(), JSONLLogger()], ids=lambda logger: logger.name)
def test_a_line_that_was_cut_off_is_removed(started: Starter, logger: Logger, tmp_path: Path) -> None:
    started(logger, tmp_path).log_metrics({"x": 1.0}, step=1, epoch=0)
    logger.finish("failed")
    path = Path(logger.location)
    whole = path.read_bytes()
    path.write_bytes(whole + b"2,0,3.")
    started(type(logger)(), tmp_path, resumed=True)
    assert path.read_bytes() == whole


class HalfFull(FileIO):
    """A file on a disk that takes only part of the next write."""

    def write(self, data: Any) -> int:
        return super().write(bytes(data)[:3])


def test_a_write_that_does_not_fit_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    file = LineFile(tmp_path / "lines")
    file.open(keep=None)
    file.append("whole\n")
    good, file._file = file._file, HalfFull(tmp_path / "lines", "a")
    with pytest.raises(OSError, match="only 3 of 6 bytes fit"):
        file.append("never\n")
    file._file.close()
    file._file = good
    file.append("after\n")
    file.close()
    assert (tmp_path / "lines").read_text() == "whole\nafter\n"


@pytest.mark.holds("LG-07")
def test_a_killed_process_loses_no_row(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from taskloom.loggers import CSVLogger, JSONLLogger
loggers = [CSVLogger(), JSONLLogger()]
for logger in loggers:
    logger.start(Path(sys.argv[1]), run_name="run")
for step in range(50):
    for logger in loggers:
        logger.log_metrics({"x": step / 2, f"late/{step // 25}": 1.0}, step=step, epoch=0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [float(row["x"]) for row in table(tmp_path)] == [step / 2 for step in range(50)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["x"] for line in lines] == [step / 2 for step in range(50)]


Series = list[tuple[int, dict[str, float]]]
series_of_metrics = st.lists(
    st.dictionaries(st.sampled_from(["a", "b", "c,d"]), st.floats(allow_nan=False), min_size=1), min_size=1, max_size=12
).map(lambda rows: [(number // 2, row) for number, row in enumerate(rows)])


@pytest.mark.holds("R40")
@pytest.mark.parametrize("kind", [CSVLogger, JSONLLogger], ids=lambda kind: kind.name)
@given(series=series_of_metrics, data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_series_with_kills_equals_the_uninterrupted_one(
    kind: type[Logger], series: Series, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each process logs on from a checkpoint and is killed somewhere after it; the last one reaches the end."""
    whole, pieces = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("pieces")
    uninterrupted = open_logger(kind(), whole)
    for step, row in series:
        uninterrupted.log_metrics(row, step=step, epoch=0)
    uninterrupted.finish("finished")

    begin, state = 0, None
    for _ in range(data.draw(st.integers(0, 3), label="kills")):
        checkpoint = data.draw(st.integers(begin, len(series)), label="checkpoint after row")
        killed = data.draw(st.integers(checkpoint, len(series)), label="killed after row")
        logger = kind()
        if state is not None:
            logger.load_state_dict(state)
        open_logger(logger, pieces, resumed=state is not None)
        for number, (step, row) in enumerate(series[begin:killed], begin):
            if number == checkpoint:
                state = logger.state_dict()
            logger.log_metrics(row, step=step, epoch=0)
        if checkpoint == killed:
            state = logger.state_dict()
        begin = checkpoint
        logger.finish("killed")  # only so that this process does not run out of open files; rows are on disk before it
    last = kind()
    if state is not None:
        last.load_state_dict(state)
    open_logger(last, pieces, resumed=state is not None)
    for step, row in series[begin:]:
        last.log_metrics(row, step=step, epoch=0)
    last.finish("finished")

    one, other = (Path(uninterrupted.location).read_text(), Path(last.location).read_text())
    if kind is CSVLogger:  # the order of columns may differ: a row that was removed may have brought one
        assert table(pieces) == table(whole)
    else:
        assert other == one


@pytest.mark.parametrize("logger", [CSVLogger(), JSONLLogger()], ids=lambda logger: logger.name)
def test_what_is_logged_after_the_end_is_kept_and_leaves_no_file_open(logger: Logger, tmp_path: Path) -> None:
    open_logger(logger, tmp_path).log_metrics({"x": 1.0}, step=1, epoch=0)
    logger.finish("finished")
    logger.log_metrics({"test/x": 2.5}, step=1, epoch=1)
    logger.log_metrics({"test/x": 3.5}, step=1, epoch=1)
    text = Path(logger.location).read_text()
    assert text.index("2.5") < text.index("3.5")
    assert not [file.path for file in psutil.Process().open_files() if str(tmp_path) in file.path]


def test_resuming_without_a_state_keeps_what_is_there(started: Starter, tmp_path: Path) -> None:
    started(CSVLogger(), tmp_path).log_metrics({"x": 1.0}, step=1, epoch=0)
    again = started(CSVLogger(), tmp_path, resumed=True)
    again.log_metrics({"x": 2.0}, step=2, epoch=0)
    assert [row["x"] for row in table(tmp_path)] == ["1.0", "2.0"]


@pytest.mark.holds("LG-07")
def test_jsonl_is_json_on_every_line(started: Starter, tmp_path: Path) -> None:
    logger = started(JSONLLogger(), tmp_path)
    logger.log_metrics({"loss": math.nan, "accuracy": 0.5}, step=1, epoch=0)
    logger.log_text("sample", "two\nlines", step=2)
    logger.log_table("confusion", ["is", "was"], [[1, 2], [3, 4]], step=3)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in Path(logger.location).read_text().splitlines()]
    assert lines == [
        {"step": 1, "epoch": 0, "loss": "nan", "accuracy": 0.5},
        {"step": 2, "name": "sample", "text": "two\nlines"},
        {"step": 3, "name": "confusion", "table": {"columns": ["is", "was"], "rows": [[1, 2], [3, 4]]}},
    ]


def test_hyperparameters_are_written_beside(started: Starter, tmp_path: Path) -> None:
    parameters = {"lr": 0.1, "net": {"width": 4}}
    started(CSVLogger(), tmp_path).log_hyperparameters(parameters)
    started(JSONLLogger(), tmp_path).log_hyperparameters(parameters)
    assert yaml.safe_load((tmp_path / "hparams.yaml").read_text()) == parameters
    assert json.loads((tmp_path / "hparams.json").read_text()) == parameters
