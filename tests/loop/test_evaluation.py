"""Validation, test and prediction: the same by themselves as within a fit, and without a trace in the training."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from loop.tiny import At, Line, equal, loader, quiet, weights
from torch import nn

from taskloom import TaskModule, ValidationPolicy
from taskloom.core.errors import ConfigError, TaskloomWarning
from taskloom.loop.evaluating import converted
from taskloom.precision import NativePrecision


class Deep(Line):
    """With dropout, statistics, and a part that is kept in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
        self.layer[1].eval()


@pytest.mark.holds("R56", "LC-02")
@pytest.mark.parametrize("count", [8, 7, 1])
def test_validate_gives_what_validation_within_a_fit_gave(count: int) -> None:
    task = Deep()
    trainer = quiet(max_epochs=2)
    data = loader(count, 3)
    result = trainer.fit(task, loader(), data)
    assert trainer.validate(task, data, verbose=False) == [{"val/loss": result.metrics["val/loss"]}]
    assert quiet().validate(task, data, verbose=False) == [{"val/loss": result.metrics["val/loss"]}]


@pytest.mark.holds("R56")
def test_validation_needs_no_optimizer_and_no_training() -> None:
    class Task(TaskModule):
        def validation_step(self, batch, batch_idx):
            self.log("value", 1.0)

    assert quiet().validate(Task(), loader(), verbose=False) == [{"value": 1.0}]


@pytest.mark.holds("TM-20")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_modes_of_submodules_are_those_of_before(stage: str) -> None:
    modes: list[list[bool]] = []

    class Task(Deep):
        def note(self, *arguments):
            modes.append([each.training for each in self.layer])

        def training_step(self, batch, batch_idx):
            assert [each.training for each in self.layer] == [True, False, True, True]
            return self.loss(batch)

        validation_step = test_step = predict_step = note

    task, data = Task(), loader(4)
    trainer = quiet(max_epochs=1)
    if stage == "fit":
        trainer.fit(task, data, data)
    else:
        getattr(trainer, stage)(task, data)
    assert modes == [[False] * 4] * 2
    assert [each.training for each in task.layer] == [True, False, True, True]


def test_modes_come_back_after_a_failure() -> None:
    class Task(Deep):
        def validation_step(self, batch, batch_idx):
            raise KeyError

    task = Task()
    with pytest.raises(KeyError):
        quiet().validate(task, loader())
    assert [each.training for each in task.layer] == [True, False, True, True]


@pytest.mark.holds("TM-20")
def test_a_task_may_switch_modes_itself() -> None:
    class Task(Deep):
        def on_validation_model_eval(self):
            self.layer[0].eval()

        def validation_step(self, batch, batch_idx):
            seen.append([each.training for each in self.layer])

    seen: list[list[bool]] = []
    quiet().validate(Task(), loader(2), verbose=False)
    assert seen == [[False, False, True, True]]


def test_training_in_evaluation_mode_is_told_of() -> None:
    with pytest.warns(
        TaskloomWarning, match=r"Line is in evaluation mode and is trained in it: .*Fix: call task\.train"
    ):
        quiet(max_steps=1).fit(Line().eval(), loader())


@pytest.mark.holds("LC-20")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("inference", [True, False])
def test_inference_mode_or_no_grad(stage: str, inference: bool) -> None:
    told: list[tuple[bool, bool]] = []

    class Task(Line):
        def validation_step(self, batch, batch_idx):
            told.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))

        test_step = predict_step = validation_step

    trainer = quiet(max_epochs=1, val_check_interval=ValidationPolicy(inference_mode=inference))
    data = loader(2)
    trainer.fit(Task(), data, data) if stage == "fit" else getattr(trainer, stage)(Task(), data)
    assert told == [(inference, False)]


@pytest.mark.holds("LC-20")
def test_gradients_can_be_taken_within_an_evaluation_without_inference_mode() -> None:
    class Task(Line):
        def validation_step(self, batch, batch_idx):
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(self.loss(batch), self.layer.weight)
            self.log("norm", gradient.norm())

    [measured] = quiet(val_check_interval=ValidationPolicy(inference_mode=False)).validate(
        Task(), loader(), verbose=False
    )
    assert measured["norm"] > 0


@pytest.mark.holds("LC-20")
def test_a_metric_that_was_evaluated_can_be_trained_with() -> None:
    """What inference mode makes cannot be changed outside it; states that are reset within it are not of that kind."""
    from torchmetrics import MeanSquaredError

    class Task(Line):
        def __init__(self):
            super().__init__()
            self.error = MeanSquaredError()

        def validation_step(self, batch, batch_idx):
            self.error(self.layer(batch[0]), batch[1])
            self.log("val/error", self.error, on_step=False, on_epoch=True)

        def on_train_epoch_start(self):
            self.error.update(torch.zeros(2), torch.ones(2))
            self.error.reset()

    result = quiet(max_epochs=3, num_sanity_val_steps=1).fit(Task(), loader(), loader())
    assert result.epochs == 3


@pytest.mark.holds("PR-04")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("precision", "weight", "product"),
    [
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("64-true", torch.float64, torch.float64),
        (None, torch.float32, torch.float32),
    ],
)
def test_evaluation_in_a_precision_of_its_own(stage: str, precision: Any, weight: Any, product: Any) -> None:
    seen: list[tuple[torch.dtype, torch.dtype]] = []

    class Task(Deep):
        def training_step(self, batch, batch_idx):
            assert self.layer[0].weight.dtype == self.layer(batch[0]).dtype == torch.float32
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            seen.append((self.layer[0].weight.dtype, self.layer[0](batch[0]).dtype))

        test_step = predict_step = validation_step

    task, plain = Task(), Task()
    plain.load_state_dict(task.state_dict())
    data = loader(4)
    trainer = quiet(max_epochs=2, val_check_interval=ValidationPolicy(precision=precision))
    torch.manual_seed(0)
    trainer.fit(task, data, data) if stage == "fit" else getattr(trainer, stage)(task, data)
    assert seen == [(weight, product)] * (4 if stage == "fit" else 2)
    if stage == "fit":
        torch.manual_seed(0)
        quiet(max_epochs=2, val_check_interval=None).fit(plain, data)
    assert equal(weights(task), weights(plain))
    assert equal(list(task.buffers()), list(plain.buffers()))


@pytest.mark.holds("PR-04")
def test_predictions_of_a_half_precision_are_numbers_that_numpy_knows() -> None:
    predictions = quiet(val_check_interval=ValidationPolicy(precision="bf16-true")).predict(Line(), loader(2))
    assert predictions[0].dtype == torch.float32


@pytest.mark.holds("PR-04")
def test_an_unknown_precision_of_evaluation() -> None:
    with pytest.raises(ConfigError, match=r"val_check_interval: There is no precision 'bf16-fixed'.*'bf16-mixed'"):
        quiet(val_check_interval=ValidationPolicy(precision="bf16-fixed"))


def test_a_converted_module_gets_its_very_tensors_back() -> None:
    task = Deep()
    parameters, buffers = dict(task.named_parameters()), dict(task.named_buffers())
    data = {name: each.data_ptr() for name, each in {**parameters, **buffers}.items()}
    task.layer[0].weight.grad = torch.ones(4, 3)

    def fail_within() -> None:
        with converted(task, NativePrecision("bf16")):
            assert {each.dtype for each in task.parameters()} == {torch.bfloat16}
            task.layer[1].num_batches_tracked += 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    assert all(each is parameters[name] for name, each in task.named_parameters())
    assert all(each is buffers[name] for name, each in task.named_buffers())
    assert {name: each.data_ptr() for name, each in {**parameters, **buffers}.items()} == data
    assert torch.equal(task.layer[0].weight.grad, torch.ones(4, 3))
    assert task.layer[1].num_batches_tracked == 1


@pytest.mark.holds("TM-03", "TM-04", "LC-02")
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_several_loaders(stage: str) -> None:
    class Task(Line):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            self.log("size", float(len(batch[0])))
            self.log("number", float(dataloader_idx), add_dataloader_idx=False) if dataloader_idx else None

        def on_validation_epoch_end(self):
            self.log("whole", 5.0)

        test_step, on_test_epoch_end = validation_step, on_validation_epoch_end

    run = getattr(quiet(), stage)
    whole = {"number": 1.0, "whole": 5.0}
    assert run(Task(), [loader(3, 3), loader(4, 1)], verbose=False) == [
        {"size/dataloader_idx_0": 3.0, **whole},
        {"size/dataloader_idx_1": 1.0, **whole},
    ]
    assert run(Task(), {"easy": loader(3, 3), "hard": loader(4, 1)}, verbose=False) == [
        {"size/easy": 3.0, **whole},
        {"size/hard": 1.0, **whole},
    ]


@pytest.mark.holds("TM-05", "LC-02")
def test_predictions_are_returned_in_order_or_dropped() -> None:
    class Task(Line):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            return (dataloader_idx, batch_idx)

    trainer = quiet()
    assert trainer.predict(Task(), loader(4)) == [(0, 0), (0, 1)]
    assert trainer.predict(Task(), [loader(4), loader(2)]) == [[(0, 0), (0, 1)], [(1, 0)]]
    ended: list[Any] = []

    class Ending(Task):
        def on_predict_batch_end(self, outputs, batch, batch_idx, dataloader_idx=0):
            ended.append(outputs)

    assert trainer.predict(Ending(), loader(4), return_predictions=False) == []
    assert ended == [(0, 0), (0, 1)]


@pytest.mark.holds("R35")
def test_dropped_predictions_and_outputs_do_not_pile_up() -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Task(Line):
        def predict_step(self, batch, batch_idx, dataloader_idx=0):
            alive.append(sum(each() is not None for each in made))
            prediction = self.layer(batch[0])
            made.append(weakref.ref(prediction))
            return prediction

        validation_step = test_step = predict_step

    trainer = quiet()
    trainer.predict(Task(), loader(20), return_predictions=False)
    trainer.validate(Task(), loader(20), verbose=False)
    assert max(alive) <= 1


@pytest.mark.holds("R56")
def test_fit_validate_fit_leaves_everything_usable(tmp_path: Any) -> None:
    task = Line()
    trainer = quiet(max_epochs=1, checkpoint=True, logger=True, run_dir=tmp_path)
    first = trainer.fit(task, loader(), loader())
    trainer.validate(task, loader(), verbose=False)
    assert trainer.checkpoints[0].last_path == first.last_checkpoint
    trainer.save_checkpoint(tmp_path / "by hand")
    assert (tmp_path / "by hand" / "manifest.json").exists()
    second = trainer.fit(task, loader(), loader())
    assert second.steps == 4
    assert second.run_folder != first.run_folder
    assert second.metrics["val/loss"] < first.metrics["val/loss"]


@pytest.mark.holds("R56")
def test_fits_in_a_loop_leave_nothing_behind() -> None:
    trainer, left = quiet(max_epochs=1), []
    for _ in range(4):
        task = Line()
        trainer.fit(task, loader(), loader())
        left += [weakref.ref(task), weakref.ref(trainer.parts.run), weakref.ref(trainer.parts.fit)]
    gc.collect()
    assert [each() is not None for each in left] == [False] * 9 + [True] * 3


@pytest.mark.holds("R56")
def test_a_task_is_free_of_its_trainer_after_a_stage() -> None:
    task, trainer = Line(), quiet(max_epochs=1)
    trainer.fit(task, loader())
    with pytest.raises(RuntimeError, match="Line is not attached to a Trainer"):
        _ = task.trainer
    with pytest.raises(KeyError):
        quiet(At(on_train_start=lambda *_: {}[0]), max_epochs=1).fit(task, loader())
    assert task._trainer is None
    assert task.current_epoch == 0


@pytest.mark.holds("R49")
def test_persistent_workers_live_through_epochs_and_validations() -> None:
    import os

    class Processes(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.tensor(os.getpid())

    seen: dict[str, set[int]] = {"train": set(), "validate": set()}

    class Task(Line):
        def training_step(self, batch, batch_idx):
            seen["train"].update(batch.tolist())
            return self.layer.weight.sum()

        def validation_step(self, batch, batch_idx):
            seen["validate"].update(batch.tolist())

    def workers() -> Any:
        return torch.utils.data.DataLoader(Processes(), num_workers=1, persistent_workers=True)

    training, validation = workers(), workers()
    quiet(max_epochs=3, num_sanity_val_steps=1).fit(Task(), training, validation)
    gc.collect()  # the loaders outlive the Trainer, and their workers end with them
    assert len(seen["train"]) == len(seen["validate"]) == 1
    assert os.getpid() not in seen["train"]
