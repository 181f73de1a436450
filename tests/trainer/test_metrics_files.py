"""The metrics of a run as a table and as files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from loop.tiny import Line, loader, quiet

from taskloom import RunFolder, Trainer


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return quiet(max_epochs=2, logger="csv", run_dir=RunFolder(tmp_path, name="run"))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.holds("LG-17")
def test_every_split_has_a_file_and_all_have_one_together(trainer: Trainer, tmp_path: Path) -> None:
    task = Line()
    result = trainer.fit(task, loader(8), loader(4))
    assert trainer.save_metrics("train") == tmp_path / "run" / "train_results.json"
    train = read(tmp_path / "run" / "train_results.json")
    assert train["train_loss"] == result.training_loss
    assert train["train/loss"] == result.metrics["train/loss"]
    assert (train["epoch"], train["step"], train["train_samples"]) == (2, 8, 16)
    assert train["train_samples_per_second"] == pytest.approx(16 / train["train_runtime"])
    assert "val/loss" not in train
    trainer.save_metrics("validate")
    assert read(tmp_path / "run" / "validate_results.json") == {
        "epoch": 2,
        "step": 8,
        "val/loss": result.metrics["val/loss"],
    }
    (tested,) = trainer.test(task, loader(6), verbose=False)
    trainer.save_metrics("test")
    assert read(tmp_path / "run" / "test_results.json")["test/loss"] == tested["test/loss"]
    every = read(tmp_path / "run" / "all_results.json")
    assert {"train_loss", "val/loss", "test/loss"} <= set(every)


@pytest.mark.holds("LG-17")
def test_what_is_combined_is_beside_what_was_there(trainer: Trainer, tmp_path: Path) -> None:
    trainer.fit(Line(), loader(4))
    trainer.save_metrics("train", {"mine": 1.5, "bad": math.nan}, combined=False)
    assert read(tmp_path / "run" / "train_results.json") == {"mine": 1.5, "bad": "nan"}
    assert not (tmp_path / "run" / "all_results.json").exists()
    trainer.save_metrics("test", {"one": 1})
    trainer.save_metrics("validate", {"two": 2})
    trainer.save_metrics("all", {"three": 3})
    assert read(tmp_path / "run" / "all_results.json") == {"one": 1, "two": 2, "three": 3}
    trainer.save_metrics("all")
    assert read(tmp_path / "run" / "all_results.json")["train_samples"] == 8


@pytest.mark.holds("LG-17")
def test_the_table(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    trainer.fit(Line(), loader(4))
    capsys.readouterr()
    trainer.log_metrics("test", {"train_runtime": 83.4567, "loss": 0.123456, "epoch": 3})
    assert capsys.readouterr().out.splitlines() == [
        "***** test metrics *****",
        "  epoch         =          3",
        "  loss          =     0.1235",
        "  train_runtime = 0:01:23.46",
    ]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    trainer = quiet(max_epochs=1)
    with pytest.raises(RuntimeError, match=r"no metrics of 'train' yet.*trainer\.fit"):
        trainer.save_metrics("train")
    with pytest.raises(ValueError, match=r"no such split.*'eval'.*'validate'"):
        trainer.save_metrics("eval")
    trainer.fit(Line(), loader(4))
    with pytest.raises(RuntimeError, match="no run folder to save metrics in"):
        trainer.save_metrics("train")
