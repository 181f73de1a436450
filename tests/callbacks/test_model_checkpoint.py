"""Lightning's way of saying what a `CheckpointPolicy` says."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from callbacks.line import Line

from taskloom import CheckpointPolicy, ConfigError
from taskloom.callbacks import ModelCheckpoint


@pytest.mark.holds("CB-05")
@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        ({}, CheckpointPolicy(save_top_k=1, keep_last=1)),
        ({"monitor": "v"}, CheckpointPolicy(monitor="v", save_top_k=1, keep_last=0)),
        ({"monitor": "v", "mode": "max", "save_top_k": 3}, CheckpointPolicy("v", "max", save_top_k=3, keep_last=0)),
        ({"monitor": "v", "save_last": True}, CheckpointPolicy(monitor="v", save_top_k=1, keep_last=1)),
        ({"save_top_k": -1}, CheckpointPolicy(save_top_k=-1, keep_last=0)),
        ({"save_top_k": 0, "save_last": "link"}, CheckpointPolicy(save_top_k=0, keep_last=1)),
        ({"save_top_k": 0}, None),
        ({"every_n_train_steps": 50}, CheckpointPolicy(every="50 steps")),
        ({"every_n_epochs": 2}, CheckpointPolicy(every="2 epochs")),
        ({"train_time_interval": timedelta(minutes=5)}, CheckpointPolicy(every="5 minutes")),
        ({"save_weights_only": True}, CheckpointPolicy(weights_only=True)),
    ],
    ids=str,
)
def test_arguments(arguments: dict[str, Any], policy: CheckpointPolicy | None) -> None:
    made = ModelCheckpoint(**arguments).policy
    if policy is None or made is None:
        assert made is policy
        assert list(ModelCheckpoint(**arguments).checkpoint_policies()) == []
        return
    assert made.interval == policy.interval
    fields = ("monitor", "mode", "save_top_k", "keep_last", "weights_only")
    assert {name: vars(made)[name] for name in fields} == {name: vars(policy)[name] for name in fields}


@pytest.mark.holds("CB-05")
def test_best_and_last(make_trainer: Any, loader: Any) -> None:
    checkpoint = ModelCheckpoint(monitor="val", save_top_k=2, save_last=True)
    trainer = make_trainer(checkpoint, max_epochs=4)
    result = trainer.fit(Line(val=[3, 1, 2, 4]), loader, loader)
    folder = result.run_folder / "checkpoints"
    best, second, last = (str(folder / f"step-{step:08d}") for step in (8, 12, 16))
    assert checkpoint.best_model_path == best
    assert checkpoint.best_model_score is not None
    assert checkpoint.best_model_score.item() == 1
    assert {path: score.item() for path, score in checkpoint.best_k_models.items()} == {best: 1, second: 2}
    assert checkpoint.last_model_path == last
    assert sorted(str(path) for path in folder.glob("step-*")) == [best, second, last]
    trainer.validate(Line(val=[1] * 9), loader, verbose=False)
    assert checkpoint.best_model_path == best


@pytest.mark.holds("CB-05")
def test_without_a_monitor_the_newest_is_the_best(make_trainer: Any, loader: Any) -> None:
    checkpoint = ModelCheckpoint(every_n_train_steps=3)
    assert (checkpoint.best_model_path, checkpoint.last_model_path, checkpoint.best_k_models) == ("", "", {})
    assert checkpoint.best_model_score is None
    make_trainer(checkpoint, max_epochs=1).fit(Line(), loader)
    assert Path(checkpoint.best_model_path).name == "step-00000004"
    assert checkpoint.best_model_path == checkpoint.last_model_path


def test_two_policies_have_their_own_best(make_trainer: Any, loader: Any) -> None:
    low, high = ModelCheckpoint(monitor="val"), ModelCheckpoint(monitor="val", mode="max")
    make_trainer(low, high, max_epochs=3).fit(Line(val=[2, 1, 3]), loader, loader)
    assert [Path(each.best_model_path).name for each in (low, high)] == ["step-00000008", "step-00000012"]
    assert low.state_key != high.state_key


def test_it_says_when_it_saves(make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(ModelCheckpoint(verbose=True), max_epochs=1).fit(Line(), loader)
    assert capsys.readouterr().out == "ModelCheckpoint: saving step 4\n"


@pytest.mark.holds("CB-05")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dirpath": "x"}, r"no dirpath.*Trainer\(run_dir=...\)"),
        ({"filename": "{epoch}"}, "no filename.*step-00001000"),
        ({"save_on_train_epoch_end": False}, "written after the validation"),
        ({"every_n_epochs": 1, "every_n_train_steps": 5}, "takes one interval"),
        ({"dirpath": "x", "filename": "y"}, "2 problems"),
        ({"mode": "maximum"}, "'min' or 'max'"),
    ],
    ids=str,
)
def test_what_is_not_offered_says_what_is(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        ModelCheckpoint(**arguments)
