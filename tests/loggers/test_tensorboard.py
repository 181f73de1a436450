"""`TensorBoardLogger`, read back with TensorBoard's own reader."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from taskloom.core.errors import MissingPackageError
from taskloom.loggers import TensorBoardLogger

pytest.importorskip("tensorboard")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("tensorboard")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says that it hides points, which is what is tested
    yield
    logger.setLevel(level)


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def started(folder: Path, *, resumed: bool = False, state: Any = None, **options: Any) -> TensorBoardLogger:
    logger = TensorBoardLogger(**options)
    if state is not None:
        logger.load_state_dict(state)
    logger.start(folder, run_name="run", resumed=resumed)
    return logger


@pytest.mark.holds("LG-06")
def test_scalars_have_the_step_as_x(tmp_path: Path) -> None:
    logger = started(tmp_path)
    logger.log_metrics({"train/loss": 0.5}, step=10, epoch=0)
    logger.log_metrics({"train/loss": 0.25}, step=20, epoch=1)
    logger.finish("finished")
    assert points(tmp_path, "train/loss") == [(10, 0.5), (20, 0.25)]
    assert points(tmp_path, "epoch") == [(10, 0.0), (20, 1.0)]
    assert logger.location == str(tmp_path)


@pytest.mark.holds("LG-06")
def test_hyperparameters_appear_in_the_run_itself(tmp_path: Path) -> None:
    logger = started(tmp_path, hp_metrics=["val/accuracy"])
    logger.log_hyperparameters({"lr": 0.1, "net": {"width": 4}, "betas": [0.9, 0.99]})
    logger.log_metrics({"val/accuracy": 0.75}, step=5, epoch=0)
    logger.finish("finished")
    from tensorboard.plugins.hparams import plugin_data_pb2

    content = events(tmp_path).SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    info = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert info.hparams["lr"].number_value == 0.1
    assert info.hparams["net/width"].number_value == 4
    assert info.hparams["betas"].string_value == "[0.9, 0.99]"
    experiment = events(tmp_path).SummaryMetadata("_hparams_/experiment").plugin_data.content
    metrics = plugin_data_pb2.HParamsPluginData.FromString(experiment).experiment.metric_infos
    assert {metric.name.tag for metric in metrics} == {"val/accuracy", "hp_metric"}
    assert points(tmp_path, "hp_metric") == [(0, -1.0)]
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.holds("LG-06")
def test_text_image_table_and_graph(tmp_path: Path) -> None:
    logger = started(tmp_path)
    logger.log_text("sample", "hello", step=1)
    logger.log_table("table", ["name", "value"], [["a|b", 0.5]], step=1)
    logger.log_image("image", torch.zeros(4, 6, 3, dtype=torch.uint8), step=2)
    logger.log_image("grey", torch.rand(4, 6), step=2)
    logger.log_graph(nn.Linear(3, 2), torch.zeros(1, 3))
    logger.finish("finished")
    found = events(tmp_path)
    assert found.Tensors("sample/text_summary")[0].tensor_proto.string_val == [b"hello"]
    assert b"| a\\|b | 0.5 |" in found.Tensors("table/text_summary")[0].tensor_proto.string_val[0]
    images = {tag: found.Images(tag)[0] for tag in ("image", "grey")}
    assert {(image.width, image.height) for image in images.values()} == {(6, 4)}
    assert any("Linear" in node.name for node in found.Graph().node)


def test_an_image_of_one_dimension_is_refused(tmp_path: Path) -> None:
    logger = started(tmp_path)
    with pytest.raises(ValueError, match="two or three dimensions"):
        logger.log_image("image", torch.zeros(4), step=0)
    logger.finish("failed")


def test_the_raw_writer_is_at_hand(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has not been started"):
        _ = TensorBoardLogger().experiment
    logger = started(tmp_path, sub_dir="events", prefix="fold1")
    logger.experiment.add_scalar("own", 3.0, 1)
    logger.log_metrics({"loss": 1.0}, step=2, epoch=0)
    logger.finish("finished")
    assert points(tmp_path / "events", "own") == [(1, 3.0)]
    assert points(tmp_path / "events", "fold1/loss") == [(2, 1.0)]


@pytest.mark.holds("R40")
def test_points_that_the_checkpoint_does_not_know_are_hidden_and_the_others_stay(tmp_path: Path) -> None:
    """Killed after step 3; the checkpoint was written at step 2, after its training loss and before its validation."""
    first = started(tmp_path)
    for step in (1, 2):
        first.log_metrics({"train/loss": float(step)}, step=step, epoch=0)
    state = first.state_dict()
    first.log_metrics({"val/loss": -2.0}, step=2, epoch=0)
    first.log_metrics({"train/loss": -3.0}, step=3, epoch=0)
    first.flush()

    second = started(tmp_path, resumed=True, state=state)
    second.log_metrics({"val/loss": 2.0}, step=2, epoch=0)
    second.log_metrics({"train/loss": 3.0}, step=3, epoch=0)
    second.finish("finished")
    first.finish("failed")
    assert points(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert points(tmp_path, "val/loss") == [(2, 2.0)]


def test_a_checkpoint_is_never_ahead_of_the_event_file(tmp_path: Path) -> None:
    logger = started(tmp_path, flush_secs=10_000, max_queue=10_000)
    logger.log_metrics({"loss": 1.0}, step=1, epoch=0)
    logger.state_dict()
    assert points(tmp_path, "loss") == [(1, 1.0)]
    logger.finish("finished")


def test_what_is_logged_after_the_end_is_kept(tmp_path: Path) -> None:
    logger = started(tmp_path)
    logger.log_metrics({"loss": 1.0}, step=1, epoch=0)
    logger.finish("finished")
    logger.log_metrics({"test/loss": 2.0}, step=1, epoch=1)  # a writer that is left open would leak its thread
    assert points(tmp_path, "loss") == [(1, 1.0)]
    assert points(tmp_path, "test/loss") == [(1, 2.0)]


def test_a_new_run_in_an_old_folder_begins_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        logger = started(tmp_path)
        logger.log_metrics({"loss": value}, step=1, epoch=0)
        logger.finish("finished")
    assert points(tmp_path, "loss") == [(1, 2.0)]


@pytest.mark.holds("LG-06")
def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_utilities.core.imports.RequirementCache", lambda requirement: False)
    with pytest.raises(MissingPackageError, match=r"taskloom\[tensorboard\]"):
        TensorBoardLogger()
