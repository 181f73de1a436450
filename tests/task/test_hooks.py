"""The hooks of a task: which there are, and what they are called with. Their order is tested with the loops."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from task.samples import Line, loader, make_trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from taskloom import Callback, CheckpointPolicy, Fabric, TaskModule, Trainer
from taskloom.core.hooks import TaskHooks
from taskloom.strategies.single import SingleStrategy


class Hooked(Line):
    """Notes every hook with what it was called with, and does what it would have done."""

    def __init__(self):
        super().__init__()
        self.calls: dict[str, list[tuple]] = {}

    def validation_step(self, batch, batch_idx):
        return "validated"

    def test_step(self, batch, batch_idx):
        return "tested"

    def predict_step(self, batch, batch_idx):
        return "predicted"


def _noting(name: str) -> Any:
    def hook(self, *arguments):
        self.calls.setdefault(name, []).append(arguments)
        return getattr(Line, name)(self, *arguments)

    return hook


HOOKS = [name for name in vars(TaskHooks) if name.startswith("on_")] + ["setup", "teardown", "configure_model"]
for _name in HOOKS:
    setattr(Hooked, _name, _noting(_name))


def calls_of(stage: str) -> dict[str, list[tuple]]:
    task = Hooked()
    if stage == "fit":
        make_trainer(num_sanity_val_steps=1).fit(task, loader(2), loader(2))
    elif stage == "predict":
        make_trainer().predict(task, loader(2))
    else:
        getattr(make_trainer(), stage)(task, loader(2), verbose=False)
    return task.calls


@pytest.fixture(scope="module")
def fitted() -> dict[str, list[tuple]]:
    return calls_of("fit")


def summary(calls: list[tuple]) -> list[tuple]:
    """The arguments of each call: kinds of tensors and optimizers, values of everything else."""

    def kind(argument: Any) -> Any:
        if isinstance(argument, dict):
            return {name: kind(value) for name, value in argument.items()}
        return type(argument) if isinstance(argument, (Tensor, torch.optim.Optimizer)) else argument

    return [tuple(kind(argument) for argument in arguments) for arguments in calls]


SGD = torch.optim.SGD
LOSS = {"loss": Tensor}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("setup", [("fit",)], marks=pytest.mark.holds("TM-16")),
        pytest.param("teardown", [("fit",)], marks=pytest.mark.holds("TM-16")),
        pytest.param("configure_model", [()], marks=pytest.mark.holds("TM-14")),
        *(
            pytest.param(name, [()], marks=pytest.mark.holds("TM-17"))
            for name in ("on_fit_start", "on_fit_end", "on_train_start", "on_train_end")
        ),
        *(
            pytest.param(name, expected, marks=pytest.mark.holds("TM-18"))
            for name, expected in (
                ("on_train_epoch_start", [()]),
                ("on_train_epoch_end", [()]),
                ("on_train_batch_start", [(Tensor, 0), (Tensor, 1)]),
                ("on_train_batch_end", [(LOSS, Tensor, 0), (LOSS, Tensor, 1)]),
            )
        ),
        *(
            pytest.param(name, [()], marks=pytest.mark.holds("TM-19"))
            for name in ("on_sanity_check_start", "on_sanity_check_end")
        ),
        # The first of each is the sanity check's.
        *(
            pytest.param(f"on_validation_{name}", expected, marks=pytest.mark.holds("TM-19"))
            for name, expected in (
                ("start", [(), ()]),
                ("end", [(), ()]),
                ("epoch_start", [(), ()]),
                ("epoch_end", [(), ()]),
                ("batch_start", [(Tensor, 0, 0), (Tensor, 0, 0), (Tensor, 1, 0)]),
                ("batch_end", [("validated", Tensor, 0, 0), ("validated", Tensor, 0, 0), ("validated", Tensor, 1, 0)]),
            )
        ),
        *(
            pytest.param(name, expected, marks=pytest.mark.holds("TM-20"))
            for name, expected in (
                ("on_validation_model_eval", [(), ()]),
                ("on_validation_model_train", [(), ()]),
                ("on_validation_model_zero_grad", [()]),
            )
        ),
        pytest.param("on_before_backward", [(Tensor,), (Tensor,)], marks=pytest.mark.holds("TM-21")),
        pytest.param("on_after_backward", [(), ()], marks=pytest.mark.holds("TM-21")),
        pytest.param("on_before_zero_grad", [(SGD,), (SGD,)], marks=pytest.mark.holds("TM-22")),
        pytest.param("on_before_optimizer_step", [(SGD,), (SGD,)], marks=pytest.mark.holds("TM-22")),
    ],
)
def test_hooks_of_a_fit_and_their_arguments(fitted, name, expected):
    assert summary(fitted[name]) == expected


@pytest.mark.holds("TM-16", "TM-19", "TM-20")
@pytest.mark.parametrize(
    ("stage", "prefix", "output"),
    [("validate", "validation", "validated"), ("test", "test", "tested"), ("predict", "predict", "predicted")],
)
def test_hooks_of_an_evaluation_and_their_arguments(stage, prefix, output):
    once = [()]
    assert {name: summary(each) for name, each in calls_of(stage).items()} == {
        "setup": [(stage,)],
        "configure_model": once,
        f"on_{prefix}_model_eval": once,
        f"on_{prefix}_start": once,
        f"on_{prefix}_epoch_start": once,
        f"on_{prefix}_batch_start": [(Tensor, 0, 0), (Tensor, 1, 0)],
        f"on_{prefix}_batch_end": [(output, Tensor, 0, 0), (output, Tensor, 1, 0)],
        f"on_{prefix}_epoch_end": once,
        f"on_{prefix}_end": once,
        f"on_{prefix}_model_train": once,
        "teardown": [(stage,)],
    }


def test_callbacks_have_the_hooks_of_tasks_that_are_not_about_the_model_itself():
    for name in HOOKS:
        if name in ("on_save_checkpoint", "on_load_checkpoint") or "_model" in name:
            continue  # a callback has a state of its own
        task, callback = (inspect.signature(getattr(owner, name)) for owner in (TaskModule, Callback))
        assert list(callback.parameters)[3:] == list(task.parameters)[1:], name


@pytest.mark.holds("TM-19")
def test_dataloader_idx_may_be_left_out_of_a_hooks_signature():
    class Short(Hooked):
        def on_validation_batch_start(self, batch, batch_idx):
            self.calls.setdefault("start", []).append(batch_idx)

        def on_validation_batch_end(self, outputs, batch, batch_idx):
            self.calls.setdefault("end", []).append((outputs, batch_idx))

        def on_predict_batch_end(self, outputs, batch, batch_idx):
            self.calls.setdefault("predicted", []).append(batch_idx)

    task = Short()
    make_trainer().validate(task, [loader(1), loader(1)], verbose=False)
    make_trainer().predict(task, loader(2))
    assert task.calls["start"] == [0, 0]
    assert task.calls["end"] == [("validated", 0), ("validated", 0)]
    assert task.calls["predicted"] == [0, 1]


# What hooks may decide ------------------------------------------------------------------------------------------------


@pytest.mark.holds("TM-18")
@pytest.mark.parametrize("left_at", [0, 1])
def test_a_batch_start_that_returns_minus_one_ends_the_epoch(left_at):
    class Leaves(Line):
        trained = 0

        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == left_at else None

        def training_step(self, batch, batch_idx):
            self.trained += 1
            return super().training_step(batch, batch_idx)

    task, trainer = Leaves(), make_trainer(max_epochs=2)
    result = trainer.fit(task, loader(3))
    assert task.trained == result.steps == 2 * left_at
    assert result.epochs == 2


@pytest.mark.holds("TM-13")
def test_optimizers_and_schedulers_are_those_of_configure_optimizers():
    class Configured(Line):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.5)
            return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)}

    trainer = make_trainer(max_epochs=2)
    trainer.fit(Configured(), loader())
    assert isinstance(trainer.optimizers[0], torch.optim.Adam)
    assert trainer.lrs == [pytest.approx(0.005)]


@pytest.mark.holds("TM-13")
def test_without_configure_optimizers_the_default_is_used_and_without_that_it_says_what_to_write():
    class Undecided(TaskModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def training_step(self, batch, batch_idx):
            return (batch * self.weight).sum()

    with pytest.raises(NotImplementedError, match=r"Undecided has no configure_optimizers.*--optimizer adamw"):
        make_trainer().fit(Undecided(), loader())
    task = Undecided()
    task.set_default_optimizer(
        lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5),
    )
    trainer = make_trainer()
    trainer.fit(task, loader(3))
    assert trainer.lrs == [0.125]  # by optimizer step


@pytest.mark.holds("TM-14")
def test_layers_made_late_are_born_in_the_dtype_and_before_the_optimizer():
    class Late(TaskModule):
        def configure_model(self):
            self.layer = nn.Linear(2, 1)
            self.born = self.layer.weight.dtype

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    task = Late()
    trainer = make_trainer(precision="64-true")
    trainer.fit(task, loader())
    assert task.born == torch.float64
    assert trainer.optimizers[0].param_groups[0]["params"] == list(task.layer.parameters())


class Counts(Callback):
    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.batches += 1


class Other(Counts):
    pass


@pytest.mark.holds("TM-15")
@pytest.mark.parametrize("in_a_list", [False, True])
def test_a_tasks_callbacks_take_part_and_replace_those_of_their_class(in_a_list):
    class Brings(Line):
        def configure_callbacks(self):
            self.brought = Counts()
            return [self.brought] if in_a_list else self.brought

    replaced, other = Counts(), Other()
    task = Brings()
    make_trainer(callbacks=[replaced, other]).fit(task, loader(3))
    assert (task.brought.batches, replaced.batches, other.batches) == (3, 0, 3)


# Modes ----------------------------------------------------------------------------------------------------------------


class Modes(Line):
    """One of its layers is kept in evaluation mode."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Dropout().eval()
        self.seen = []

    def see(self, where):
        self.seen.append((where, self.training, self.layer.training, self.frozen.training))

    def training_step(self, batch, batch_idx):
        self.see("train")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.see("validate")

    def predict_step(self, batch, batch_idx):
        self.see("predict")


TRAINING, EVALUATING = ("train", True, True, False), ("validate", False, False, False)


@pytest.mark.holds("TM-20")
def test_each_submodule_gets_its_own_mode_back_after_an_evaluation():
    task = Modes()
    make_trainer(max_epochs=2, num_sanity_val_steps=1).fit(task, loader(1), loader(1))
    assert task.seen == [EVALUATING, TRAINING, EVALUATING, TRAINING, EVALUATING]
    task.seen.clear()
    make_trainer().predict(task, loader(1))
    task.see("after")
    assert task.seen == [("predict", False, False, False), ("after", True, True, False)]


@pytest.mark.holds("TM-20")
def test_how_a_task_is_switched_can_be_changed():
    class Keeps(Modes):
        def on_validation_model_eval(self):
            self.layer.eval()

        def on_validation_model_zero_grad(self):
            self.gradient = self.layer.weight.grad is not None

    task = Keeps()
    make_trainer().fit(task, loader(1), loader(1))
    assert task.seen == [TRAINING, ("validate", True, False, False)]
    assert task.gradient
    assert task.layer.weight.grad is not None


# Backward and step ----------------------------------------------------------------------------------------------------


@pytest.mark.holds("TM-23")
def test_the_backward_pass_can_be_replaced():
    class Doubles(Line):
        def backward(self, loss):
            (loss * 2).backward()

        def on_after_backward(self):
            self.gradient = self.layer.weight.grad.clone()

    class Plain(Line):
        on_after_backward = Doubles.on_after_backward

    doubled, plain = Doubles(), Plain()
    doubled.load_state_dict(plain.state_dict())
    for task in (doubled, plain):
        make_trainer(max_steps=1).fit(task, loader(1))
    torch.testing.assert_close(doubled.gradient, 2 * plain.gradient)


@pytest.mark.holds("TM-21", "TM-22")
def test_gradients_at_each_moment_of_a_step():
    class Looks(Line):
        def on_before_zero_grad(self, optimizer):
            self.note("before_zero_grad")

        def training_step(self, batch, batch_idx):
            self.note("forward")
            return super().training_step(batch, batch_idx)

        def on_after_backward(self):
            self.note("after_backward")

        def on_before_optimizer_step(self, optimizer):
            self.note("before_step")

        def note(self, moment):
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            self.norms.append((moment, get_total_norm(gradients).item() if gradients else None))

    task = Looks()
    task.norms = []
    make_trainer(max_epochs=1, gradient_clip_val=1e-3, accumulate_grad_batches=2).fit(task, loader(4))
    moments = [moment for moment, _ in task.norms]
    window = ["before_zero_grad", "forward", "after_backward", "forward", "after_backward", "before_step"]
    assert moments == window * 2
    first, second = task.norms[:6], task.norms[6:]
    assert first[1][1] is None  # nothing was left from before the window
    assert 0 < first[2][1] == first[3][1] != first[4][1]  # a partial sum
    assert first[5][1] > 1e-3  # complete, not yet clipped
    assert second[0][1] == pytest.approx(1e-3, rel=1e-2)  # clipped, and still readable
    assert second[1][1] is None


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.holds("TM-26")
def test_what_a_task_adds_to_a_checkpoint_comes_back(tmp_path):
    class Adds(Line):
        def on_save_checkpoint(self, checkpoint):
            checkpoint["table"] = {"a": torch.tensor([1, 2])}
            checkpoint["where"] = (checkpoint["epoch"], checkpoint["global_step"])

        def on_load_checkpoint(self, checkpoint):
            self.loaded = checkpoint

    def trainer(epochs):
        return Trainer(
            accelerator="cpu", max_epochs=epochs, logger=False, progress=False, run_dir=tmp_path,
            checkpoint=CheckpointPolicy(asynchronous=False),
        )  # fmt: skip

    path = trainer(1).fit(Adds(), loader(3)).last_checkpoint
    resumed, evaluated = Adds(), Adds()
    trainer(2).fit(resumed, loader(3), ckpt_path=path)
    make_trainer().predict(evaluated, loader(1), ckpt_path=path)
    for task in (resumed, evaluated, Adds.load_from_checkpoint(path)):
        assert task.loaded["table"]["a"].tolist() == [1, 2]
        assert task.loaded["where"][1] == 3


# Data -----------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("DA-05")
@pytest.mark.parametrize(
    ("global_rank", "local_rank", "per_node", "called"),
    [(0, 0, True, True), (0, 0, False, True), (2, 0, True, True), (2, 0, False, False), (1, 1, True, False)],
)
def test_data_is_prepared_once_per_node_or_once_in_all(monkeypatch, global_rank, local_rank, per_node, called):
    class Prepares(Line):
        prepare_data_per_node = per_node
        prepared = False

        def prepare_data(self):
            self.prepared = True

    monkeypatch.setattr(SingleStrategy, "global_rank", global_rank)
    monkeypatch.setattr(SingleStrategy, "local_rank", local_rank)
    task = Prepares()
    make_trainer().predict(task, loader(1))
    assert task.prepared is called


@pytest.mark.holds("DA-19")
@pytest.mark.parametrize(("moves", "device"), [(True, "meta"), (False, "cpu")])
def test_fabric_leaves_batches_where_they_are_if_asked_to(moves, device):
    fabric = Fabric(accelerator="cpu")
    fabric.launch()
    fabric.device = torch.device("meta")
    user = loader(2)
    made = fabric.setup_dataloaders(user, move_to_device=moves)
    assert [batch.device.type for batch in made] == [device, device]
    assert (made is user) is not moves
