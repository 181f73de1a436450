"""Loggers as a Trainer uses them: when values are logged, what a kill leaves, and what a user may do."""

from __future__ import annotations

import csv
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from loggers import killed
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from taskloom import Logger, RunFolder, TaskloomWarning, TaskModule, Trainer
from taskloom.checkpoint import Manifest
from taskloom.core.policies import LogPolicy
from taskloom.loggers import CSVLogger


class Recorder(Logger):
    """A logger of one's own, with a raw object behind it."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, folder: Path, *, run_name: str, project: str | None = None, resumed: bool = False) -> None:
        self.calls.append(("start", folder, run_name, project, resumed))

    @property
    def experiment(self) -> list[Any]:
        return self.calls

    def log_metrics(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
        self.calls.append((dict(metrics), step, epoch))

    def log_hyperparameters(self, parameters: Mapping[str, Any]) -> None:
        self.calls.append(("hyperparameters", parameters))

    def log_text(self, name: str, text: str, *, step: int) -> None:
        self.calls.append((name, text, step))

    def finish(self, status: str) -> None:
        self.calls.append(("finish", status))

    @property
    def steps(self) -> list[int]:
        return [call[1] for call in self.calls if isinstance(call[0], dict) and "loss" in call[0]]


class Task(TaskModule):
    def __init__(self, rate: float = 0.1, api_key: str = "s3cr3t", activation: Any = "relu", log: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters(logger=log)
        self.net = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.net(batch[0]).square().mean()
        self.log("loss", loss)
        if isinstance(self.logger, Recorder) and batch_idx == 2:
            self.logger.log_text("sample", "by hand", step=self.global_step)
            self.logger.experiment.append("raw")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", 0.5)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)


@pytest.fixture
def loader() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(10, 3)), batch_size=1)


def trainer(tmp_path: Path, logger: Any, **arguments: Any) -> Trainer:
    quiet = {"accelerator": "cpu", "max_epochs": 1, "checkpoint": False, "progress": False, "run_dir": tmp_path}
    return Trainer(logger=logger, **{**quiet, **arguments})


@pytest.mark.holds("LG-02")
@pytest.mark.parametrize(
    ("policy", "steps"),
    [
        (1, list(range(1, 11))),
        (4, [4, 8, 10]),
        (50, [10]),
        ("30%", [3, 6, 9, 10]),
        (LogPolicy(every=4, first_step=True), [1, 4, 8, 10]),
    ],
    ids=str,
)
def test_values_are_logged_at_the_interval_and_at_the_end_of_an_epoch(
    policy: Any, steps: list[int], tmp_path: Path, loader: Any
) -> None:
    recorder = Recorder()
    trainer(tmp_path, recorder, log_every_n_steps=policy).fit(Task(), loader)
    assert recorder.steps == steps


@pytest.mark.holds("LG-04")
def test_several_loggers_get_the_same_values_with_the_same_x(tmp_path: Path, loader: Any) -> None:
    recorder = Recorder()
    folder = trainer(tmp_path, [recorder, "csv"], log_every_n_steps=5).fit(Task(), loader, loader).run_folder
    assert folder is not None
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    values = [{"step": call[1], "epoch": call[2], **call[0]} for call in recorder.calls if isinstance(call[0], dict)]
    assert rows == values
    assert [row["step"] for row in rows] == [5, 10, 10]


@pytest.mark.holds("LG-05")
def test_name_project_folder_and_end(tmp_path: Path, loader: Any) -> None:
    recorder = Recorder()
    run = trainer(tmp_path, recorder, run_dir=RunFolder(tmp_path, name="a-run", project="a-project"))
    result = run.fit(Task(), loader)
    assert recorder.calls[0] == ("start", tmp_path / "a-run", "a-run", "a-project", False)
    assert recorder.calls[-1] == ("finish", "finished")
    assert result.run_folder == run.log_dir == tmp_path / "a-run"


@pytest.mark.holds("LG-05")
@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("on purpose"), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_a_logger_hears_how_a_run_ended(error: BaseException, status: str, tmp_path: Path, loader: Any) -> None:
    class Fails(Task):
        def on_train_epoch_end(self) -> None:
            raise error

    recorder = Recorder()
    with pytest.raises(type(error)):
        trainer(tmp_path, recorder).fit(Fails(), loader)
    assert recorder.calls[-1] == ("finish", status)


@pytest.mark.holds("LG-13")
def test_a_logger_of_ones_own_and_its_raw_object(tmp_path: Path, loader: Any) -> None:
    recorder = Recorder()
    run = trainer(tmp_path, recorder)
    run.fit(Task(), loader)
    assert run.logger is recorder
    assert run.loggers == [recorder]
    assert ("sample", "by hand", 2) in recorder.calls
    assert "raw" in recorder.calls


@pytest.mark.holds("LG-13")
def test_a_logger_that_fails_does_not_end_the_training(tmp_path: Path, loader: Any) -> None:
    class Fails(Recorder):
        name = "fails"

        def log_metrics(self, metrics: Mapping[str, float], *, step: int, epoch: int) -> None:
            raise ConnectionError("away")

        def state_dict(self) -> dict[str, Any]:
            raise ConnectionError("away")

    with pytest.warns(TaskloomWarning, match="logger 'fails' failed"):
        result = trainer(tmp_path, [Fails(), "csv"], checkpoint=True).fit(Task(), loader)
    assert result.status == "finished"
    assert result.last_checkpoint is not None
    assert result.run_folder is not None
    assert (result.run_folder / "metrics.csv").read_text().count("\n") == 2


@pytest.mark.holds("LG-15")
def test_hyperparameters_are_logged_by_themselves(tmp_path: Path, loader: Any) -> None:
    recorder = Recorder()
    folder = trainer(tmp_path, [recorder, "csv"]).fit(Task(rate=0.5, activation=nn.ReLU), loader).run_folder
    plain = {"rate": 0.5, "api_key": "<redacted>", "activation": "ReLU", "log": True}
    assert ("hyperparameters", plain) in recorder.calls
    assert folder is not None
    assert yaml.safe_load((folder / "hparams.yaml").read_text()) == plain


@pytest.mark.holds("LG-15")
@pytest.mark.parametrize("way", ["task", "trainer"])
def test_hyperparameters_can_be_kept_back(way: str, tmp_path: Path, loader: Any) -> None:
    recorder = Recorder()
    policy = LogPolicy(hyperparameters=way != "trainer")
    trainer(tmp_path, recorder, log_every_n_steps=policy).fit(Task(log=way != "task"), loader)
    assert not [call for call in recorder.calls if call[0] == "hyperparameters"]


def test_metrics_of_a_test_after_the_fit_join_them(tmp_path: Path, loader: Any) -> None:
    run, task = trainer(tmp_path, CSVLogger()), Task()
    folder = run.fit(task, loader).run_folder
    run.test(task, loader, verbose=False)
    assert folder is not None
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["val"] for row in csv.DictReader(file) if row.get("val")] == ["0.5"]


def test_a_test_without_a_fit_logs_into_a_folder_of_its_own(tmp_path: Path, loader: Any) -> None:
    run = trainer(tmp_path, CSVLogger())
    assert run.test(Task(), loader, verbose=False) == [{"val": 0.5}]
    (table,) = tmp_path.glob("*/metrics.csv")
    assert table.read_text() == "step,epoch,val\n0,0,0.5\n"


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


@pytest.mark.holds("R40")
def test_a_run_that_was_killed_logs_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """A checkpoint is written every third step; processes are killed at step 8 and, resumed from 6, at step 7."""
    whole = killed.train(tmp_path / "whole")
    pieces = tmp_path / "pieces" / "run"
    for step, resume in ((8, []), (7, ["--resume", str(pieces)])):
        command = [sys.executable, str(Path(killed.__file__)), str(pieces.parent), str(step), *resume]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    run_ids = {Manifest.read(path).run_id for path in (pieces / "checkpoints").glob("step-*")}
    assert killed.train(pieces.parent, resume=pieces) == pieces
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (pieces / name).read_text() == (whole / name).read_text()
    assert scalars(pieces) == scalars(whole)
    assert run_ids == {Manifest.read(path).run_id for path in (pieces / "checkpoints").glob("step-*")}
    assert len(run_ids) == 1


def test_the_mean_of_an_epoch_covers_its_batches_before_a_resume(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("on purpose")

    whole = killed.train(tmp_path / "whole", epoch_mean=True)
    pieces = tmp_path / "pieces" / "run"
    with pytest.raises(RuntimeError, match="on purpose"):
        killed.train(pieces.parent, 5, epoch_mean=True, kill=fail)
    killed.train(pieces.parent, resume=pieces, epoch_mean=True)
    assert (pieces / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
