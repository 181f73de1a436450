"""Loaders and data modules within a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from task.samples import Line, loader, make_trainer
from torch.utils.data import DataLoader, IterableDataset

from taskloom import DataModule


class Evaluates(Line):
    """Sums what it sees in each stage."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, int] = {}

    def count(self, stage):
        self.seen[stage] = self.seen.get(stage, 0) + 1

    def training_step(self, batch, batch_idx):
        self.count("train")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.count("val")

    def test_step(self, batch, batch_idx):
        self.count("test")

    def predict_step(self, batch, batch_idx):
        self.count("predict")


LENGTHS = {"train": 1, "val": 2, "test": 3, "predict": 4}


class Data(DataModule):
    """A loader per stage, each of another length; notes what it is asked for."""

    def __init__(self):
        self.calls: list[Any] = []

    def prepare_data(self):
        self.calls.append("prepare_data")

    def setup(self, stage):
        self.calls.append(("setup", stage, self.trainer is not None))

    def teardown(self, stage):
        self.calls.append(("teardown", stage))

    def on_exception(self, exception):
        self.calls.append(("on_exception", type(exception)))

    def loader(self, name):
        self.calls.append(name)
        return loader(LENGTHS[name])

    def train_dataloader(self):
        return self.loader("train")

    def val_dataloader(self):
        return self.loader("val")

    def test_dataloader(self):
        return self.loader("test")

    def predict_dataloader(self):
        return self.loader("predict")


class HasLoaders(Evaluates):
    """A task with the same loaders."""

    def __init__(self):
        super().__init__()
        self.calls: list[Any] = []

    loader = Data.loader
    train_dataloader, val_dataloader = Data.train_dataloader, Data.val_dataloader
    test_dataloader, predict_dataloader = Data.test_dataloader, Data.predict_dataloader


def run(trainer, stage, task, *arguments, **keywords):
    if stage in ("validate", "test"):
        keywords["verbose"] = False
    getattr(trainer, stage)(task, *arguments, **keywords)


SEEN = {"fit": {"train": 1, "val": 2}, "validate": {"val": 2}, "test": {"test": 3}, "predict": {"predict": 4}}


@pytest.mark.holds("DA-01", "DA-02", "DA-03")
@pytest.mark.parametrize("stage", SEEN)
@pytest.mark.parametrize("source", ["task", "data module", "data module first", "arguments", "arguments over task"])
def test_loaders_come_from_arguments_else_the_data_module_else_the_task(stage, source):
    trainer, task, data = make_trainer(), Evaluates(), Data()
    if source == "task":
        task = HasLoaders()
        run(trainer, stage, task)
    elif source == "data module":
        run(trainer, stage, task, datamodule=data)
        assert trainer.datamodule is data
    elif source == "data module first":
        run(trainer, stage, task, data)
    else:
        task = HasLoaders() if source == "arguments over task" else task
        run(trainer, stage, task, *[loader(LENGTHS[name]) for name in SEEN[stage]])
        assert source == "arguments" or not task.calls
    assert task.seen == SEEN[stage]


@pytest.mark.holds("DA-03", "TM-16")
@pytest.mark.parametrize("stage", SEEN)
def test_the_life_of_a_data_module(stage):
    data, trainer = Data(), make_trainer()
    run(trainer, stage, Evaluates(), datamodule=data)
    assert data.calls == ["prepare_data", ("setup", stage, True), *SEEN[stage], ("teardown", stage)]


@pytest.mark.holds("DA-03")
def test_a_data_module_hears_of_failures_and_is_torn_down():
    class Fails(Evaluates):
        def training_step(self, batch, batch_idx):
            raise ZeroDivisionError

    data = Data()
    with pytest.raises(ZeroDivisionError):
        make_trainer().fit(Fails(), datamodule=data)
    assert data.calls[-2:] == [("on_exception", ZeroDivisionError), ("teardown", "fit")]


@pytest.mark.holds("DA-03", "TM-30")
def test_hyperparameters_of_task_and_data_are_logged(tmp_path):
    class Sized(Data):
        def __init__(self, batch_size=4):
            super().__init__()
            self.save_hyperparameters()

    class Rated(Evaluates):
        def __init__(self, lr=0.1, quiet=1):
            super().__init__()
            self.save_hyperparameters(ignore="quiet")

    trainer = make_trainer(logger=True, run_dir=tmp_path)
    trainer.fit(Rated(), datamodule=Sized())
    text = (trainer.run_folder / "hparams.yaml").read_text()
    assert "batch_size: 4" in text
    assert "lr: 0.1" in text
    assert "quiet" not in text


@pytest.mark.holds("DA-02")
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda trainer: trainer.fit(Line()),
            "There are no training batches for Line.*pass train_dataloaders or a data",
        ),
        (lambda trainer: trainer.test(Line()), "There are no batches to test.*write test_dataloader"),
        (lambda trainer: trainer.predict(Line()), "There are no batches to predict"),
    ],
)
def test_loaders_that_are_not_there_say_what_to_pass(call, text):
    with pytest.raises(ValueError, match=text):
        call(make_trainer())


@pytest.mark.holds("DA-13", "DA-14")
def test_batch_sizes_are_per_micro_batch_and_multiplied_out():
    sizes = {}

    class Sizes(Line):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            sizes[batch_idx] = (len(batch), self.trainer.micro_batch_size, self.trainer.effective_batch_size)

    trainer = make_trainer(accumulate_grad_batches=3)
    trainer.fit(Sizes(), datamodule=DataModule.from_datasets(torch.zeros(10, 2), batch_size=4))
    assert sizes == {0: (4, 4, 12), 1: (4, 4, 12), 2: (2, 4, 12)}


# Streams --------------------------------------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(7, 2))


@pytest.mark.holds("DA-08")
def test_a_stream_is_trained_on_to_its_end_each_epoch():
    stream = DataLoader(Stream(), batch_size=2)
    trainer, task = make_trainer(max_epochs=2, accumulate_grad_batches=3), Evaluates()
    trainer.fit(task, stream, stream)
    assert task.seen == {"train": 8, "val": 8}
    assert (trainer.progress.epochs, trainer.progress.steps) == (2, 4)
    assert trainer.num_training_batches == float("inf")


@pytest.mark.holds("DA-08")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"limit_batches": 0.5}, r"The train loader has no length, .*limit_batches=\{'train': 100\}"),
        ({"val_check_interval": 0.5}, "A part of an epoch is not known.*the training loader has no length"),
        ({"val_check_interval": "10%"}, "A part of the run is not known.*set max_steps"),
        ({"max_epochs": 1.5}, "max_epochs has a fraction, and the training loader has no length"),
    ],
)
def test_parts_of_a_stream_are_refused(arguments, text):
    stream = DataLoader(Stream(), batch_size=2)
    with pytest.raises(ValueError, match=text):
        make_trainer(**{"max_epochs": 2, **arguments}).fit(Evaluates(), stream, stream)


# Transfer -------------------------------------------------------------------------------------------------------------


@dataclass
class Sample:
    """A batch of a type that nothing knows."""

    x: torch.Tensor
    steps: list[str] = field(default_factory=list)


def hooks(owner: str) -> dict[str, Any]:
    def on_before_batch_transfer(self, batch, dataloader_idx):
        batch.steps.append(f"{owner} before {dataloader_idx} {batch.x.device.type}")
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        batch.steps.append(f"{owner} transfer {dataloader_idx} {device.type}")
        return Sample(batch.x + 1, batch.steps)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        batch.steps.append(f"{owner} after {dataloader_idx} {batch.x[0].item():g}")
        return batch

    return {
        each.__name__: each for each in (on_before_batch_transfer, transfer_batch_to_device, on_after_batch_transfer)
    }


class Shows(Line):
    def training_step(self, batch, batch_idx):
        self.shown = batch.steps
        return self(batch.x[None]).sum()

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return batch.steps


def samples() -> DataLoader:
    return DataLoader([0.0], batch_size=1, collate_fn=lambda numbers: Sample(torch.zeros(2)))


def steps(owner: str, number: int) -> list[str]:
    return [f"{owner} before {number} cpu", f"{owner} transfer {number} cpu", f"{owner} after {number} 1"]


@pytest.mark.holds("DA-20")
@pytest.mark.parametrize("by", ["task", "data"])
def test_transfer_hooks_run_in_order_with_the_number_of_the_loader(by):
    task = type("Transfers", (Shows,), hooks("task") if by == "task" else {})()
    data = type("Moves", (DataModule,), hooks("data") if by == "data" else {})()
    data.predict_dataloader = lambda: [samples(), samples()]
    data.train_dataloader = samples
    assert make_trainer().predict(task, datamodule=data) == [[steps(by, 0)], [steps(by, 1)]]
    make_trainer().fit(task, datamodule=data)
    assert task.shown == steps(by, 0)


@pytest.mark.holds("DA-20")
def test_of_two_that_replace_a_hook_the_data_module_is_asked():
    task = type("Transfers", (Shows,), hooks("task"))()
    data = type("Moves", (DataModule,), {"on_after_batch_transfer": hooks("data")["on_after_batch_transfer"]})()
    data.predict_dataloader = samples
    ((shown,),) = [make_trainer().predict(task, datamodule=data)]
    assert shown == [*steps("task", 0)[:2], "data after 0 1"]


@pytest.mark.holds("R58")
@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed"])
def test_a_step_gets_every_field_of_its_batch_under_every_precision(precision):
    unknown = object()
    batch = {
        "x": torch.ones(1, 2),
        "text": ["abc"],
        "unused": range(3),
        "unknown": unknown,
        "sample": Sample(torch.ones(2)),
    }

    class Keeps(Line):
        def predict_step(self, batch, batch_idx):
            return batch

    data = DataLoader([0], batch_size=1, collate_fn=lambda numbers: batch)
    (got,) = make_trainer(precision=precision).predict(Keeps(), data)
    assert list(got) == list(batch)
    assert (got["text"], got["unused"], got["unknown"]) == (["abc"], range(3), unknown)
    assert type(got["sample"]) is Sample
    wide = torch.float64 if precision == "64-true" else torch.float32
    assert got["x"].dtype == got["sample"].x.dtype == wide


@pytest.mark.gpu
@pytest.mark.holds("DA-16", "DA-20", "R58")
def test_on_a_gpu_pinned_batches_arrive_with_all_their_fields():
    class Keeps(Line):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            self.pinned = batch[0].is_pinned()
            return [*batch, "text"]

        def predict_step(self, batch, batch_idx):
            return batch

    task = Keeps()
    data = DataModule.from_datasets(predict_dataset=torch.utils.data.TensorDataset(torch.ones(4, 2)), pin_memory=True)
    first, *_ = make_trainer(accelerator="cuda", devices=1).predict(task, datamodule=data)
    assert task.pinned
    assert (first[0].device.type, first[1]) == ("cuda", "text")
