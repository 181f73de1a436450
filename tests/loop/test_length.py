"""How long training lasts, and how much of the data it uses."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
import torch
from loop.test_window import Batches
from loop.tiny import At, Line, loader, quiet, samples
from torch.utils.data import DataLoader, IterableDataset

from taskloom import Accumulation, Between, Trainer
from taskloom.callbacks import EarlyStopping
from taskloom.core.progress import Progress
from taskloom.loop.fit import FitLoop
from taskloom.loop.limits import Limits


def stop(**at: int) -> At:
    """Ask for the end at the end of the epoch or the batch with this number, counted over the run."""

    def ask(trainer: Trainer, _: Any) -> None:
        if trainer.progress.micro_batches >= at["batch"]:
            trainer.should_stop = True

    return At(on_train_batch_end=ask)


@pytest.mark.holds("LC-04")
@pytest.mark.parametrize(
    ("epochs", "window", "batches", "steps", "completed"),
    [(1, 1, 5, 5, 1), (3, 1, 15, 15, 3), (1.5, 1, 8, 8, 1), (0.2, 1, 1, 1, 0), (0.01, 1, 1, 1, 0), (1.5, 2, 8, 5, 1)],
)
def test_max_epochs(epochs: float, window: int, batches: int, steps: int, completed: int) -> None:
    trainer = quiet(max_epochs=epochs, accumulate_grad_batches=window)
    result = trainer.fit(Line(), loader(10))
    assert trainer.progress.micro_batches == batches
    assert (result.steps, result.epochs) == (steps, completed)
    assert result.steps == trainer.estimated_stepping_batches
    assert result.stop_reason == f"max_epochs={epochs:g} reached"
    assert result.status == "finished"


@pytest.mark.holds("LC-04")
def test_no_epoch_and_endless_epochs() -> None:
    task = Line()
    assert quiet(max_epochs=0).fit(task, loader()).steps == 0
    assert math.isnan(quiet(max_epochs=0).fit(task, loader()).training_loss)
    result = quiet(stop(batch=10), max_epochs=-1).fit(task, loader())
    assert (result.steps, result.status, result.stop_reason) == (10, "stopped", "should_stop was set")


@pytest.mark.holds("LC-05")
@pytest.mark.parametrize("window", [1, 2, 3])
def test_max_steps_ends_in_the_middle_of_an_epoch_or_at_its_end(window: int) -> None:
    per_epoch = math.ceil(5 / window)
    for steps in range(1, 2 * per_epoch + 1):
        trainer = quiet(max_epochs=9, max_steps=steps, accumulate_grad_batches=window)
        result = trainer.fit(Line(), loader(10))
        assert result.steps == steps
        assert result.epochs == steps // per_epoch
        assert result.stop_reason == f"max_steps={steps} reached"
        left = 0 if steps % per_epoch == 0 else steps % per_epoch * window
        assert trainer.progress.batches_in_epoch == left


@pytest.mark.holds("LC-05", "LC-22")
@pytest.mark.parametrize(
    ("bounds", "steps"),
    [
        ({"max_steps": Between(6, 9)}, 6),
        ({"max_steps": Between(0, 9)}, 2),
        ({"max_epochs": Between(2, 3)}, 8),
        ({"max_epochs": Between(1, 3), "max_steps": Between(7, 20)}, 7),
        ({"max_epochs": Between(1, 2), "max_steps": Between(2)}, 4),
    ],
)
def test_a_stop_waits_for_the_lower_bounds(bounds: dict[str, Any], steps: int) -> None:
    result = quiet(stop(batch=2), **bounds).fit(Line(), loader())
    assert (result.steps, result.status) == (steps, "stopped")


@pytest.mark.holds("LC-22")
@pytest.mark.parametrize(
    "hook", ["on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_after_backward"]
)
def test_a_stop_is_heard_whenever_it_is_asked_for(hook: str) -> None:
    ask = At(**{hook: lambda trainer, _: setattr(trainer, "should_stop", True)})
    result = quiet(ask, max_epochs=9, accumulate_grad_batches=2).fit(Line(), loader())
    assert result.steps == (0 if hook == "on_train_start" else 1)
    assert result.status == "stopped"


@pytest.mark.holds("LC-22")
def test_a_stop_at_the_end_of_an_epoch() -> None:
    def ask(trainer: Trainer, _: Any) -> None:
        trainer.should_stop, trainer.stop_reason = True, "enough"

    result = quiet(At(on_train_epoch_end=ask), max_epochs=9).fit(Line(), loader())
    assert (result.epochs, result.steps, result.stop_reason) == (1, 4, "enough")


class Clock:
    """A second passes with every reading, and `skip` more when they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(FitLoop, "_clock", staticmethod(lambda: self.now))

    def passes(self, seconds: float) -> At:
        """A batch takes this long."""

        def tick(*_: Any) -> None:
            self.now += seconds

        return At(on_train_batch_end=tick)


@pytest.mark.holds("LC-06")
@pytest.mark.parametrize("limit", ["00:00:00:35", "35 seconds", timedelta(seconds=35), {"seconds": 35}])
def test_max_time(limit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = quiet(Clock(monkeypatch).passes(10.0), max_time=limit)
    result = trainer.fit(Line(), loader(20))
    assert (result.steps, result.stop_reason, result.status) == (4, "max_time=35 s reached", "finished")
    assert trainer.progress.seconds == 40.0
    assert result.epochs == 0


@pytest.mark.holds("LC-06")
def test_max_time_waits_for_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = quiet(Clock(monkeypatch).passes(10.0), max_time="25 seconds", accumulate_grad_batches=4)
    assert trainer.fit(Line(), loader(20)).steps == 1
    assert trainer.progress.micro_batches == 4


@pytest.mark.holds("LC-09")
def test_validation_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    at: list[int] = []
    watch = At(on_validation_start=lambda trainer, _: at.append(trainer.global_step))
    trainer = quiet(Clock(monkeypatch).passes(60.0), watch, max_epochs=1, val_check_interval="00:00:02:30")
    trainer.fit(Line(), loader(20), loader())
    assert at == [3, 6, 9]


@pytest.mark.holds("LC-07")
@pytest.mark.parametrize(
    ("limit", "batches"),
    [(3, 3), (99, 10), (0.3, 3), (1.0, 10), (0.39, 3), (None, 10)],
)
def test_limits_of_every_stage(limit: Any, batches: int) -> None:
    class Counting(Line):
        def count(self, name):
            self.counts[name] = self.counts.get(name, 0) + 1

        def training_step(self, batch, batch_idx):
            self.count("train")
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.count("validate")

        def test_step(self, batch, batch_idx):
            self.count("test")

        def predict_step(self, batch, batch_idx):
            self.count("predict")

    for stage in ("train", "validate", "test", "predict", "all"):
        task = Counting()
        task.counts = {}
        trainer = quiet(max_epochs=1, limit_batches=limit if stage == "all" or limit is None else {stage: limit})
        data = loader(10, 1)
        trainer.fit(task, data, data)
        trainer.test(task, data)
        trainer.predict(task, data)
        whole = dict.fromkeys(("train", "validate", "test", "predict"), 10)
        assert task.counts == {**whole, **({stage: batches} if stage != "all" else dict.fromkeys(whole, batches))}


@pytest.mark.holds("LC-07")
def test_no_validation_by_a_limit_of_zero() -> None:
    trainer = quiet(max_epochs=1, limit_batches={"validate": 0}, num_sanity_val_steps=2)
    assert "val/loss" not in trainer.fit(Line(), loader(), loader()).metrics
    assert not trainer.enable_validation


@pytest.mark.holds("LC-07")
@pytest.mark.parametrize("stage", ["train", "validate", "test", "predict"])
@pytest.mark.parametrize("limit", [0.1, 0])
def test_a_limit_that_leaves_nothing(stage: str, limit: float) -> None:
    trainer, task = quiet(max_epochs=1, limit_batches={stage: limit}), Line()
    run = {
        "train": lambda: trainer.fit(task, loader()),
        "validate": lambda: trainer.fit(task, loader(), loader()) if limit else trainer.validate(task, loader()),
        "test": lambda: trainer.test(task, loader()),
        "predict": lambda: trainer.predict(task, loader()),
    }[stage]
    with pytest.raises(ValueError, match=rf"{stage} loader.* leaves no batch|leaves no batch of the {stage} loader"):
        run()


class Stream(IterableDataset):
    def __init__(self, count: int, claims: int | None = None) -> None:
        self.count, self.claims = count, claims

    def __iter__(self) -> Any:
        return iter(samples(self.count))


class Claiming(Stream):
    def __len__(self) -> int:
        return self.claims


@pytest.mark.holds("LC-07")
def test_a_part_of_a_stream_is_not_known() -> None:
    with pytest.raises(ValueError, match=r"train loader has no length, so a part of it cannot be counted\. Got: 0\.5"):
        quiet(max_epochs=1, limit_batches=0.5).fit(Line(), DataLoader(Stream(8)))


@pytest.mark.holds("LC-04")
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_epochs": 1.5}, r"max_epochs has a fraction, and the training loader has no length\. Got: 1\.5"),
        ({"max_epochs": 1, "val_check_interval": 0.5}, r"A part of an epoch is not known.*has no length"),
        ({"max_epochs": 1, "val_check_interval": "10%"}, r"A part of the run is not known.*set max_steps"),
    ],
)
def test_parts_of_what_has_no_length(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        quiet(**arguments).fit(Line(), DataLoader(Stream(8)), loader())


@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("count", [1, 5, 6])
def test_streams_end_where_they_end(count: int, window: int) -> None:
    last: list[bool] = []
    watch = At(on_train_batch_end=lambda trainer, _: last.append(trainer.is_last_batch))
    trainer = quiet(watch, max_epochs=2, accumulate_grad_batches=window)
    result = trainer.fit(Line(), DataLoader(Stream(count)), loader())
    assert trainer.num_training_batches == math.inf
    assert (result.epochs, result.steps) == (2, 2 * math.ceil(count / window))
    assert last == [*[False] * (count - 1), True] * 2


@pytest.mark.parametrize(("claims", "count"), [(5, 3), (5, 5), (3, 5)])
@pytest.mark.parametrize("kind", ["loader", "stream"])
@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
def test_a_length_that_is_wrong_loses_no_step(claims: int, count: int, kind: str) -> None:
    class Lying(Batches):
        def __len__(self):
            return claims

    data = Lying(list(loader(2 * count))) if kind == "loader" else DataLoader(Claiming(count, claims))
    trainer = quiet(max_epochs=2, accumulate_grad_batches=2)
    result = trainer.fit(Line(), data)
    read = min(claims, count) if kind == "loader" else count
    assert trainer.progress.micro_batches == 2 * read
    assert result.steps == 2 * math.ceil(read / 2)


@pytest.mark.holds("DB-04")
@pytest.mark.parametrize("shuffle", [True, False])
def test_overfitting_sees_the_same_batches_in_the_same_order(shuffle: bool) -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            trained.append(batch[0])
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            validated.append(batch[0])

    trained: list[Any] = []
    validated: list[Any] = []
    trainer = quiet(max_epochs=3, limit_batches={"overfit": 2}, num_sanity_val_steps=1)
    trainer.fit(Task(), loader(20, shuffle=shuffle), loader(4))
    assert len(trained) == 6
    assert len(validated) == 7
    for seen in (trained, validated[1:]):
        for epoch in range(1, 3):
            assert torch.equal(torch.stack(seen[2 * epoch : 2 * epoch + 2]), torch.stack(trained[:2]))
    assert trainer.num_training_batches == 2
    assert torch.equal(trained[0], samples(20).tensors[0][:2]) != shuffle


@pytest.mark.holds("DB-04")
@pytest.mark.parametrize("batches", [True, 3])
def test_fast_dev_run_runs_everything_and_writes_nothing(batches: int, tmp_path: Any) -> None:
    from taskloom.callbacks import ModelCheckpoint

    seen: dict[str, int] = {}

    class Task(Line):
        def validation_step(self, batch, batch_idx):
            seen["validate"] = seen.get("validate", 0) + 1
            super().validation_step(batch, batch_idx)

    trainer = Trainer(
        accelerator="cpu",
        fast_dev_run=batches,
        max_epochs=50,
        max_steps=1000,
        val_check_interval="1000 steps",
        logger="csv",
        run_dir=tmp_path,
        progress=False,
        callbacks=[ModelCheckpoint(monitor="val/loss"), EarlyStopping("val/loss")],
    )
    trainer.config_text = "max_epochs: 50"
    task = Task()
    result = trainer.fit(task, loader(20), loader(20))
    trainer.test(task, loader(20), verbose=False)
    assert result.steps == len(task.seen) == seen["validate"] == int(batches)
    assert result.run_folder is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.holds("LC-24")
@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        ({"max_epochs": 3}, 15),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 9),
        ({"max_epochs": 3, "accumulate_grad_batches": Accumulation(2, flush_last=False)}, 6),
        ({"max_epochs": 3, "accumulate_grad_batches": {0: 1, 2: 5}}, 11),
        ({"max_epochs": 3, "max_steps": 7}, 7),
        ({"max_epochs": 1.5, "accumulate_grad_batches": 2}, 5),
        ({"max_epochs": 2, "limit_batches": {"train": 3}}, 6),
        ({"max_time": "1 hour"}, math.inf),
    ],
)
def test_planned_steps_are_known_when_schedulers_are_made(arguments: dict[str, Any], steps: float) -> None:
    planned: list[float] = []

    class Task(Line):
        def configure_optimizers(self):
            planned.append(self.trainer.estimated_stepping_batches)
            return super().configure_optimizers()

    trainer = quiet(*([stop(batch=1)] if steps == math.inf else []), **arguments)
    result = trainer.fit(Task(), loader(10))
    assert planned == [steps]
    if steps < math.inf:
        assert result.steps == steps


@pytest.mark.holds("LC-24")
def test_planned_steps_are_not_known_before_there_is_data() -> None:
    with pytest.raises(RuntimeError, match=r"number of planned steps is not known yet\..*configure_optimizers"):
        _ = quiet(max_epochs=1).estimated_stepping_batches


def test_the_bounds_of_a_run_by_themselves() -> None:
    limits = Limits(Between(max=2.5), Between(max=100), 60.0, 4, Accumulation())
    assert [limits.batches_of(epoch) for epoch in range(3)] == [4, 4, 2]
    assert limits.epochs_shown == 3
    assert not limits.reached(Progress(epochs=2, batches_in_epoch=1))
    assert limits.reached(Progress(epochs=2, batches_in_epoch=2))
    assert limits.reason(Progress(seconds=60.0)) == "max_time=60 s reached"
    assert limits.wait(Progress(steps=97)) == 3
