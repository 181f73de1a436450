"""What the methods of a task are called with, and what they may return."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from task.samples import Line, loader, make_trainer
from torch import nn

from taskloom import Callback, Fabric, Loss, Skip, TaskloomWarning, TaskModule
from taskloom.callbacks import ModelSummary


@pytest.mark.holds("TM-01")
def test_a_task_is_a_module_that_learns():
    task = Line()
    assert isinstance(task, nn.Module)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    make_trainer().fit(task, loader())
    assert list(before) == ["layer.weight", "layer.bias"]
    assert all(not torch.equal(value, before[name]) for name, value in task.state_dict().items())


@pytest.mark.holds("TM-02")
@pytest.mark.parametrize(
    "returned",
    [
        lambda loss: loss,
        lambda loss: {"loss": loss, "extra": 1},
        lambda loss: Loss(loss * 2, 2),
        lambda loss: {"loss": Loss(loss * 2, 2)},
    ],
    ids=["tensor", "dict", "Loss", "dict of Loss"],
)
def test_a_training_step_may_return_its_loss_in_any_of_these_forms(returned):
    class Returns(Line):
        def training_step(self, batch, batch_idx):
            return returned(super().training_step(batch, batch_idx))

    plain, other = Line(), Returns()
    other.load_state_dict(plain.state_dict())
    for task in (plain, other):
        make_trainer().fit(task, loader())
    torch.testing.assert_close(other.state_dict(), plain.state_dict())


@pytest.mark.holds("TM-02")
@pytest.mark.parametrize("skip", [None, Skip, Skip("too short")])
def test_a_training_step_may_leave_a_batch_out(skip):
    class Skips(Line):
        def training_step(self, batch, batch_idx):
            return skip if batch_idx == 1 else super().training_step(batch, batch_idx)

    trainer = make_trainer()
    with pytest.warns(TaskloomWarning, match="A training batch is left out because training_step returned (Skip|None)"):
        trainer.fit(Skips(), loader(3))
    assert (trainer.progress.steps, trainer.progress.micro_batches, trainer.progress.skipped_batches) == (2, 3, 1)


class Notes(Line):
    """Notes what its steps are called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def training_step(self, batch, batch_idx):
        self.calls.append(("train", int(batch[0, 0]), batch_idx, torch.is_grad_enabled(), self.training))
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.note("validate", batch, batch_idx, dataloader_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.note("test", batch, batch_idx, dataloader_idx)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.note("predict", batch, batch_idx, dataloader_idx)
        return {"number": int(batch[0, 0])}

    def note(self, stage, batch, batch_idx, dataloader_idx):
        self.calls.append((stage, int(batch[0, 0]), batch_idx, dataloader_idx, torch.is_grad_enabled(), self.training))


@pytest.mark.holds("TM-02", "TM-03")
def test_steps_of_a_fit():
    task = Notes()
    make_trainer().fit(task, loader(2), loader(2))
    assert task.calls == [
        ("train", 0, 0, True, True),
        ("train", 1, 1, True, True),
        ("validate", 0, 0, 0, False, False),
        ("validate", 1, 1, 0, False, False),
    ]


@pytest.mark.holds("TM-03", "TM-04", "DA-06")
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_steps_of_an_evaluation_over_two_loaders(stage):
    task = Notes()
    getattr(make_trainer(), stage)(task, [loader(1), loader(2)], verbose=False)
    assert task.calls == [
        (stage, 0, 0, 0, False, False),
        (stage, 0, 0, 1, False, False),
        (stage, 1, 1, 1, False, False),
    ]


@pytest.mark.holds("TM-05")
def test_predictions_are_whatever_the_step_returns():
    task = Notes()
    assert make_trainer().predict(task, loader(2)) == [{"number": 0}, {"number": 1}]
    assert task.calls == [("predict", 0, 0, 0, False, False), ("predict", 1, 1, 0, False, False)]
    assert make_trainer().predict(task, [loader(1), loader(2)]) == [[{"number": 0}], [{"number": 0}, {"number": 1}]]
    assert make_trainer().predict(task, loader(2), return_predictions=False) == []


@pytest.mark.holds("TM-05")
def test_without_a_step_of_its_own_a_task_predicts_by_being_called():
    task = Line()
    (prediction,) = make_trainer().predict(task, loader(1))
    torch.testing.assert_close(prediction, task(next(iter(loader(1)))).detach())


@pytest.mark.holds("TM-02", "TM-03")
def test_arguments_may_be_left_out_of_a_steps_signature():
    class Short(TaskModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.calls = 0

        def training_step(self, batch):
            return (batch * self.weight).sum()

        def validation_step(self, batch):
            self.calls += 1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    task = Short()
    make_trainer().fit(task, loader(2), [loader(2), loader(1)])
    assert task.calls == 3


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("training_step", r"TaskModule has no training_step. Fix: write `def training_step\(self, batch, batch_idx\)"),
        ("validation_step", r"TaskModule has no validation_step. Fix: write `def validation_step"),
        ("test_step", r"TaskModule has no test_step. Fix: write `def test_step"),
    ],
)
def test_a_step_that_is_not_there_says_what_to_write(method, text):
    with pytest.raises(NotImplementedError, match=text):
        getattr(TaskModule(), method)(None, 0)


@pytest.mark.parametrize("method", ["train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"])
def test_so_does_a_loader(method):
    with pytest.raises(NotImplementedError, match=f"TaskModule has no {method}. Fix: pass loaders or a data module"):
        getattr(TaskModule(), method)()


# What a task knows of its run -----------------------------------------------------------------------------------------


@pytest.mark.holds("TM-33")
def test_what_a_task_knows_during_a_fit():
    known = {}

    class Knows(Line):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            known.update(
                {name: getattr(self, name) for name in ("trainer", "fabric", "device", "dtype", "on_gpu", "loggers")}
            )
            known.update(
                epoch=self.current_epoch,
                step=self.global_step,
                ranks=(self.global_rank, self.local_rank),
                mesh=self.device_mesh,
                logger=self.logger,
            )
            known["gathered"] = self.all_gather(torch.ones(2))

    trainer = make_trainer(max_epochs=2, precision="64-true")
    trainer.fit(Knows(), loader(3))
    assert known["trainer"] is trainer
    assert isinstance(known["fabric"], Fabric)
    assert (known["device"], known["dtype"], known["on_gpu"]) == (torch.device("cpu"), torch.float64, False)
    assert (known["epoch"], known["step"], known["ranks"], known["mesh"]) == (1, 6, (0, 0), None)
    assert (known["logger"], known["loggers"]) == (None, [])
    assert known["gathered"].tolist() == [1, 1]


@pytest.mark.holds("TM-33")
def test_what_a_task_knows_without_a_trainer():
    task = Line().double()
    assert (task.device, task.dtype, task.on_gpu) == (torch.device("cpu"), torch.float64, False)
    assert (task.current_epoch, task.global_step, task.global_rank, task.local_rank) == (0, 0, 0, 0)
    assert (task.logger, task.loggers) == (None, [])
    assert TaskModule().device == torch.device("cpu")
    assert TaskModule().dtype == torch.float32
    for unknown in ("trainer", "fabric", "device_mesh"):
        with pytest.raises(RuntimeError, match=r"Line is not attached to a Trainer.*call it from a step or a hook"):
            getattr(task, unknown)


@pytest.mark.holds("TM-33")
def test_after_a_run_a_task_is_where_its_user_put_it():
    task = Line()
    make_trainer().fit(task, loader())
    assert task.to("meta").device == torch.device("meta")


@pytest.mark.holds("TM-33")
def test_what_a_task_prints_goes_through_the_trainer(capsys):
    class Prints(Line):
        def on_train_start(self):
            self.print("epoch", self.current_epoch, sep="=")

    make_trainer(progress="plain").fit(Prints(), loader())
    assert "epoch=0" in capsys.readouterr().out


@pytest.mark.holds("TM-33")
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_a_copy_of_a_task_does_not_drag_its_trainer_along(duplicate):
    copies = []

    class Copies(Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            copies.append(duplicate(task))

    trainer = make_trainer(callbacks=[Copies()])
    trainer.fit(Line(), loader(1))
    (copied,) = copies
    torch.testing.assert_close(copied.state_dict(), trainer.task_module.state_dict())
    with pytest.raises(RuntimeError, match="Line is not attached to a Trainer"):
        _ = copied.trainer
    make_trainer().fit(copied, loader(1))


@pytest.mark.holds("TM-32")
def test_example_inputs_show_the_sizes_of_layers(capsys):
    class Example(Line):
        example_input_array = torch.zeros(5, 2)

    make_trainer(progress="plain", callbacks=[ModelSummary()]).fit(Example(), loader())
    assert re.search(r"layer +Linear .* \[5, 2\] +\[5, 1\]", capsys.readouterr().out)
    assert TaskModule().example_input_array is None


# Freezing -------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("TM-28")
def test_freezing_can_be_chained_and_undone():
    task = Line().freeze()
    assert isinstance(task, Line)
    assert not task.training
    assert not any(parameter.requires_grad for parameter in task.parameters())
    assert task.unfreeze() is task
    assert task.training
    assert all(parameter.requires_grad for parameter in task.parameters())
