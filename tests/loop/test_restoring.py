"""What a fit takes from a checkpoint, what it refuses, and what it tells of that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.tiny import At, Line, equal, loader, quiet, weights
from torch import nn
from torch.nn import functional as F

from taskloom import Callback, CheckpointPolicy, DataModule, RestorePolicy, RunFolder, TaskModule, Trainer
from taskloom.checkpoint import open_checkpoint
from taskloom.core.errors import CheckpointError, ConfigError, TaskloomWarning

QUICK = CheckpointPolicy(fsync=False)


class Net(TaskModule):
    """Backbone and head under AdamW, with a schedule by step."""

    def __init__(self, classes: int = 3, lr: float = 0.1, schedule: str = "exponential") -> None:
        super().__init__()
        self.save_hyperparameters("classes", "lr")
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2))
        self.head = nn.Linear(4, classes)
        self.schedule, self.kind = schedule, torch.optim.AdamW

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self.head(self.encoder(batch[0])).mean(1, keepdim=True), batch[1])

    def groups(self) -> Any:
        return self.parameters()

    def configure_optimizers(self) -> Any:
        optimizer = self.kind(self.groups(), lr=self.hparams.lr)
        schedules = torch.optim.lr_scheduler
        made = {
            "exponential": lambda: schedules.ExponentialLR(optimizer, 0.5),
            "lambda": lambda: schedules.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
            "sequential": lambda: schedules.SequentialLR(
                optimizer, [schedules.ConstantLR(optimizer, 0.5), schedules.ExponentialLR(optimizer, 0.5)], [1]
            ),
            "cosine": lambda: schedules.CosineAnnealingLR(optimizer, 100),
            "none": lambda: None,
        }[self.schedule]()
        if made is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made, "interval": "step"}}


class Renamed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = self.encoder
        del self.encoder

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self.head(self.backbone(batch[0])).mean(1, keepdim=True), batch[1])


def fit(task: TaskModule, folder: Path, steps: int = 3, *callbacks: Callback, **options: Any) -> Trainer:
    more = {name: options.pop(name) for name in ("ckpt_path", "restore", "datamodule") if name in options}
    trainer = quiet(*callbacks, **{"max_steps": steps, "checkpoint": QUICK, "run_dir": folder, **options})
    trainer.fit(task, None if "datamodule" in more else loader(16, shuffle=True), **more)
    return trainer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The checkpoint of a Net after three of the eight steps of an epoch."""
    torch.manual_seed(0)
    return fit(Net(), tmp_path).last_checkpoint


def restored(task: TaskModule, path: Path, restore: RestorePolicy, *callbacks: Callback, **options: Any) -> Trainer:
    """Restore and look, before a step changes anything."""
    seen: list[Any] = []

    def look(trainer: Trainer, task: Any) -> None:
        seen.append([each.clone() for each in weights(task)])
        trainer.lrs_at_start = trainer.lrs
        trainer.steps_at_start = trainer.global_step
        trainer.moments_at_start = {
            name: {slot: torch.as_tensor(value).clone() for slot, value in trainer.optimizers[0].state[each].items()}
            for name, each in task.named_parameters()
            if each in trainer.optimizers[0].state
        }

    trainer = fit(
        task, path.parents[2], 4, *callbacks, At(on_train_start=look), ckpt_path=path, restore=restore, **options
    )
    trainer.weights_at_start = seen[0]
    return trainer


# What users ask for -------------------------------------------------------------------------------------------------


@pytest.mark.holds("R38")
@pytest.mark.parametrize("schedule", ["exponential", "lambda", "sequential"])
def test_a_new_learning_rate_is_that_of_a_run_that_had_it_from_the_start(schedule: str, tmp_path: Path) -> None:
    """With a schedule the base is set, so that the rate stays in the relation that the schedule gave it."""
    path = fit(Net(schedule=schedule), tmp_path).last_checkpoint
    rates: list[float] = []
    watch = At(on_train_batch_start=lambda trainer, _: rates.append(trainer.lrs[0]))
    fit(Net(lr=0.03, schedule=schedule), tmp_path / "other", 6, watch)
    again = At(on_train_batch_start=lambda trainer, _: continued.append(trainer.lrs[0]))
    continued: list[float] = []
    policy = RestorePolicy(set={"optimizer.lr": 0.03}, check="off")
    fit(Net(schedule=schedule), tmp_path, 6, again, ckpt_path=path, restore=policy)
    assert continued == pytest.approx(rates[3:], rel=1e-6)


@pytest.mark.holds("R38")
def test_a_new_learning_rate_without_a_schedule_is_exactly_that(tmp_path: Path) -> None:
    path = fit(Net(schedule="none"), tmp_path).last_checkpoint
    trainer = restored(Net(schedule="none"), path, RestorePolicy(set="optimizer.lr=1e-5"))
    assert trainer.lrs_at_start == [1e-5]
    assert trainer.steps_at_start == 3


@pytest.mark.holds("R38")
def test_a_new_schedule_begins_with_its_own_rates(saved: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"Scheduler 0 was ExponentialLR and is CosineAnnealingLR now.*ignore='sch"
    ):
        restored(Net(schedule="cosine"), saved, RestorePolicy())
    trainer = restored(Net(schedule="cosine"), saved, RestorePolicy(ignore="schedulers"))
    assert trainer.lrs_at_start == [0.1]
    assert trainer.moments_at_start["head.bias"]["step"] == 3
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 1
    without = restored(Net(schedule="none", lr=0.7), saved, RestorePolicy(ignore="schedulers", check="off"))
    assert without.lrs_at_start == [0.7]
    allowed = RestorePolicy(missing="allow")
    assert restored(Net(schedule="cosine"), saved, allowed).lrs_at_start == [0.1]


@pytest.mark.holds("R38")
def test_weights_only_begin_a_new_training(saved: Path) -> None:
    trainer = restored(Net(), saved, RestorePolicy(only="model"))
    with open_checkpoint(saved) as reader:
        assert equal(trainer.weights_at_start, [tensor for _, tensor in reader.model_tensors()])
    assert (trainer.steps_at_start, trainer.moments_at_start, trainer.lrs_at_start) == (0, {}, [0.1])
    assert trainer.run_folder != saved.parents[1]
    assert trainer.global_step == 4
    assert trainer.run_id != json.loads((saved / "manifest.json").read_text())["run_id"]


@pytest.mark.holds("R38", "CK-10")
def test_a_weights_only_checkpoint_can_be_started_from(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "weights"
    fit(Net(), tmp_path).save_checkpoint(path, weights_only=True)
    with pytest.raises(CheckpointError, match=r"holds weights only.*RestorePolicy\(only='model'\)"):
        fit(Net(), tmp_path, ckpt_path=path)
    assert restored(Net(), path, RestorePolicy(only="model")).steps_at_start == 0


@pytest.mark.holds("R38")
def test_some_tensors_alone_as_of_adapters(saved: Path) -> None:
    task = Net()
    before = weights(task.encoder)
    trainer = restored(task, saved, RestorePolicy(only="model", ignore="encoder.*"))
    assert equal(trainer.weights_at_start[:2], before)
    with open_checkpoint(saved) as reader:
        assert torch.equal(trainer.weights_at_start[2], reader.tensor("model", "head.weight"))


@pytest.mark.holds("R38")
def test_a_changed_head_is_left_out_or_resized(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"(?s)2 reasons.*'head.weight' has another shape.*\(3, 4\) for \(5, 4\)"):
        restored(Net(5), saved, RestorePolicy())
    task = Net(5)
    made = [each.clone() for each in task.head.parameters()]
    trainer = restored(task, saved, RestorePolicy(ignore="head.*", check="off"))
    assert equal(trainer.weights_at_start[2:], made)
    assert set(trainer.moments_at_start) == {"encoder.0.weight", "encoder.0.bias"}
    assert trainer.steps_at_start == 3

    task = Net(5)
    made = [each.clone() for each in task.head.parameters()]
    trainer = restored(task, saved, RestorePolicy(resize="head.*", check="off"))
    with open_checkpoint(saved) as reader:
        old = reader.tensor("model", "head.weight")
        moment = reader.tensor("optimizer", "head.weight.exp_avg")
    assert torch.equal(trainer.weights_at_start[2], torch.cat([old, made[0][3:]]))
    assert torch.equal(trainer.moments_at_start["head.weight"]["exp_avg"], torch.cat([moment, torch.zeros(2, 4)]))
    smaller = restored(Net(2), saved, RestorePolicy(resize=True, check="off"))
    assert torch.equal(smaller.weights_at_start[2], old[:2])


@pytest.mark.holds("R38", "R13")
def test_renamed_modules_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Net()
    fit(whole, tmp_path / "whole", 8)
    torch.manual_seed(0)
    path = fit(Net(), tmp_path).last_checkpoint
    task = Renamed()
    with pytest.raises(CheckpointError, match=r"written by another task.*Net.*2 of its 4 tensors are in Renamed"):
        fit(task, tmp_path, 8, ckpt_path=path)
    fit(task, tmp_path, 8, ckpt_path=path, restore=RestorePolicy(rename="encoder.*: backbone.*"))
    assert equal(weights(whole.encoder), weights(task.backbone))
    assert equal(weights(whole.head), weights(task.head))


@pytest.mark.holds("R38")
def test_the_difference_is_printed_once(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = RestorePolicy(
        set={"optimizer.lr": 0.02}, ignore=["head.bias", "loggers"], resize="head.weight", check="off"
    )
    restored(Net(5), saved, policy, progress="plain")
    out = capsys.readouterr().out
    assert out.count("Set           optimizer.lr 0.0125 to 0.0025 (the base of its schedule 0.1 to 0.02)") == 1
    assert "Restored      model, optimizer, schedulers, scaler, loops, data, generators, callbacks, metrics," in out
    assert "Not restored  loggers\n" in out
    assert "Ignored       head.bias\n" in out
    assert "Resized       head.weight (3, 4) to (5, 4)\n" in out
    assert "Now           max_steps: 3 to 4" not in out  # check="off" compares nothing
    restored(Net(), saved, RestorePolicy(), progress="plain")
    out = capsys.readouterr().out
    assert "Now           max_steps: 3 to 4\n" in out
    assert "Restored  " not in out


# Parts --------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R38")
def test_only_names_the_parts(saved: Path) -> None:
    torch.manual_seed(5)
    trainer = restored(Net(lr=0.4), saved, RestorePolicy(only="model,optimizer,loops", check="off"))
    assert trainer.steps_at_start == 3
    assert trainer.lrs_at_start == [0.4]  # its schedule is new
    assert trainer.run_folder == saved.parents[1]
    assert trainer.progress.batches_in_epoch == 1  # the data began anew
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 1


@pytest.mark.holds("R38")
def test_a_schedule_gives_a_new_optimizer_the_rate_that_it_had_come_to(saved: Path) -> None:
    trainer = restored(Net(), saved, RestorePolicy(ignore="optimizer"))
    assert trainer.lrs_at_start == [0.1 * 0.5**3]
    assert trainer.moments_at_start == {}
    other = Net()
    other.kind = torch.optim.SGD
    assert restored(other, saved, RestorePolicy(missing="allow")).lrs_at_start == [0.1 * 0.5**3]


@pytest.mark.holds("R38", "R3")
def test_the_data_of_the_epoch_begin_anew_where_asked(saved: Path) -> None:
    batches: list[int] = []
    watch = At(on_train_batch_start=lambda trainer, _: batches.append(trainer.progress.batches_in_epoch))
    fit(Net(), saved.parents[2], 5, watch, ckpt_path=saved, restore=RestorePolicy(data="restart"))
    assert batches == [0, 1]


@pytest.mark.holds("CK-09", "R13")
@pytest.mark.parametrize("restored_too", [True, False])
def test_generators_are_restored_unless_they_are_not_wanted(restored_too: bool, saved: Path) -> None:
    torch.manual_seed(77)
    drawn: list[float] = []
    look = At(on_train_start=lambda *_: drawn.append(float(torch.rand(1))))
    before = torch.get_rng_state()
    fit(Net(), saved.parents[2], 4, look, ckpt_path=saved, restore=RestorePolicy(generators=restored_too))
    with open_checkpoint(saved) as reader:
        torch.set_rng_state(reader.state["generators"]["torch"] if restored_too else before)
    if not restored_too:
        Net()  # made after the seed was set
    assert drawn == [float(torch.rand(1))]


# What is only in the checkpoint, or only in the run -----------------------------------------------------------------


class Counting(Callback):
    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


@pytest.mark.holds("R13", "CK-26")
def test_the_state_of_a_callback_that_is_gone_is_not_dropped_silently(tmp_path: Path) -> None:
    path = fit(Net(), tmp_path, 3, Counting(7)).last_checkpoint
    same = Counting()
    restored(Net(), path, RestorePolicy(), same)
    assert same.count == 7
    with pytest.raises(
        CheckpointError, match=r"callbacks that are not there: Counting\..*ignore='callbacks\.Counting\*'"
    ):
        fit(Net(), tmp_path, 4, ckpt_path=path)
    fit(Net(), tmp_path, 4, ckpt_path=path, restore=RestorePolicy(ignore="callbacks.Counting*"))
    fit(Net(), tmp_path, 4, ckpt_path=path, restore=RestorePolicy(missing="allow"))
    with pytest.warns(TaskloomWarning, match="this run differ: .* not there: Counting"):
        fit(Net(), tmp_path, 4, ckpt_path=path, restore=RestorePolicy(missing="warn"))
    again = Counting(1)
    fit(Net(), tmp_path, 4, again, ckpt_path=path, restore=RestorePolicy(ignore="callbacks"))
    assert again.count == 1


@pytest.mark.holds("R13", "CK-26")
def test_a_callback_that_is_new_begins_anew_and_is_told_of(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = Counting(5)
    restored(Net(), saved, RestorePolicy(), new, progress="plain")
    assert new.count == 5
    assert "New callbacks Counting (begins anew)\n" in capsys.readouterr().out


@pytest.mark.holds("R13")
def test_everything_that_does_not_fit_is_told_at_once_and_nothing_is_changed(tmp_path: Path) -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(2, 2)
            self.kind = torch.optim.SGD
            self.schedule = "none"

    path = fit(Net(), tmp_path, 3, Counting()).last_checkpoint
    task = Two()
    before = weights(task)
    with pytest.raises(CheckpointError, match=r"(?s)does not fit this run, for 4 reasons") as caught:
        fit(task, tmp_path, 4, ckpt_path=path)
    for part in (
        "missing: extra.weight, extra.bias",
        "Scheduler 0 was ExponentialLR and is none",
        "AdamW for SGD",
        "Counting",
    ):
        assert part in str(caught.value)
    assert equal(weights(task), before)


@pytest.mark.holds("R13", "R38")
def test_groups_are_found_by_the_names_in_them(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Grouped(Net):
        parts = ("head", "encoder")

        def groups(self) -> Any:
            named = {name: [*getattr(self, name).parameters()] for name in self.parts}
            return [{"params": named[name], "lr": 0.1 if name == "head" else 0.2} for name in self.parts]

    class HeadOnly(Grouped):
        parts = ("head",)

    first = fit(Grouped(schedule="none"), saved.parents[2] / "grouped").last_checkpoint
    swapped = Grouped(schedule="none")
    swapped.parts = ("encoder", "head")
    assert restored(swapped, first, RestorePolicy(set={"optimizer.0.lr": 0.5})).lrs_at_start == [0.5, 0.1]
    with pytest.raises(
        CheckpointError,
        match=r"do not hold the parameters.*only in the checkpoint: encoder\.0\.bias, encoder\.0\.weight",
    ):
        restored(HeadOnly(schedule="none"), first, RestorePolicy())
    capsys.readouterr()
    grown = fit(HeadOnlyFrozen(schedule="none"), saved.parents[2] / "head").last_checkpoint
    trainer = restored(Grouped(schedule="none"), grown, RestorePolicy(missing="allow"), progress="plain")
    assert trainer.lrs_at_start == [0.3, 0.2]
    assert set(trainer.moments_at_start) == {"head.weight", "head.bias"}
    assert "New moments   encoder.0.bias of AdamW, encoder.0.weight of AdamW\n" in capsys.readouterr().out


class HeadOnlyFrozen(Net):
    """Trains its head; the rest is frozen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.encoder.requires_grad_(False)

    def groups(self) -> Any:
        return [{"params": [*self.head.parameters()], "lr": 0.3}]


@pytest.mark.holds("R13", "R12")
def test_policies_in_another_order_keep_what_each_of_them_kept(tmp_path: Path) -> None:
    class Measured(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict({"up": float(self.trainer.global_step), "down": -float(self.trainer.global_step)})

    def train(steps: int, monitors: list[str | None], **more: Any) -> dict[str | None, list[str]]:
        policies = [CheckpointPolicy(monitor=each, save_top_k=1, every="1 step", fsync=False) for each in monitors]
        trainer = quiet(max_steps=steps, val_check_interval="1 steps", checkpoint=policies, run_dir=tmp_path)
        trainer.fit(Measured(), loader(16), loader(2), **more)
        paths.append(trainer.last_checkpoint)
        return {keeper.policy.monitor: [path.name[-1] for path in keeper.kept] for keeper in trainer.checkpoints}

    paths: list[Path] = []
    assert train(3, ["up", "down", None]) == {"up": ["1", "3"], "down": ["3"], None: ["3"]}
    again = train(4, [None, "down", "up"], ckpt_path=paths[0])
    assert again == {"up": ["1", "4"], "down": ["4"], None: ["4"]}
    assert train(5, ["up", "down", None, "up"], ckpt_path=paths[1])["down"] == ["5"]


@pytest.mark.holds("R13")
def test_a_data_module_that_is_gone_and_one_that_kept_nothing(tmp_path: Path) -> None:
    class Data(DataModule):
        seen: Any = None

        def train_dataloader(self) -> Any:
            return loader(16)

        def state_dict(self) -> dict[str, Any]:
            return {"files": [1, 2]}

        def load_state_dict(self, state: Any) -> None:
            self.seen = state

    path = fit(Net(), tmp_path, datamodule=Data()).last_checkpoint
    data = Data()
    fit(Net(), tmp_path, 4, datamodule=data, ckpt_path=path)
    assert data.seen == {"files": [1, 2]}
    with pytest.raises(CheckpointError, match="holds the state of a data module: files"):
        fit(Net(), tmp_path, 4, ckpt_path=path)


@pytest.mark.holds("R13")
def test_a_loss_scale_is_not_dropped_silently(tmp_path: Path) -> None:
    path = fit(Net(), tmp_path, precision="16-mixed").last_checkpoint
    with pytest.raises(CheckpointError, match=r"has a loss scale, unlike 32-true.*restore\.ignore='scaler'"):
        fit(Net(), tmp_path, 4, ckpt_path=path, restore=RestorePolicy(check="off"))
    fit(Net(), tmp_path, 4, ckpt_path=path, restore=RestorePolicy(ignore="scaler", check="off"))


# Settings and set-up ------------------------------------------------------------------------------------------------


@pytest.mark.holds("CK-25")
def test_other_settings_are_warned_of_or_refused(saved: Path) -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    with pytest.warns(
        TaskloomWarning, match=r"accumulate_grad_batches\.batches: 1 to 2; gradient_clip_val.*task\.lr: 0\.1"
    ):
        fit(Net(lr=0.5), saved.parents[2], 4, ckpt_path=saved, **options)
    with pytest.raises(CheckpointError, match=r"accumulate_grad_batches\.batches: 1 to 2.*restore\.check is 'error'"):
        fit(Net(), saved.parents[2], 4, ckpt_path=saved, restore=RestorePolicy(check="error"), **options)
    fit(Net(), saved.parents[2], 4, ckpt_path=saved, restore=RestorePolicy(check="error"))
    fit(Net(), saved.parents[2], 4, ckpt_path=saved, restore=RestorePolicy(check="off"), **options)


@pytest.mark.holds("CK-30")
def test_the_checkpoint_of_another_task_is_refused_by_its_name(saved: Path) -> None:
    state = json.loads((saved / "state.json").read_text())
    assert state["setup"]["torch"] == str(torch.__version__)
    assert state["setup"]["world_size"] == 1
    task = Line()
    before = weights(task)
    with pytest.raises(
        CheckpointError,
        match=r"was written by another task, .*\.Net\. Got: '0 of its 4 tensors are in Line; missing: layer",
    ):
        fit(task, saved.parents[2], 4, ckpt_path=saved)
    with pytest.raises(CheckpointError, match="was written by another task"):
        quiet().validate(task, loader(), ckpt_path=saved)
    assert equal(weights(task), before)


# Mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R38")
@pytest.mark.parametrize(
    ("policy", "match"),
    [
        ({"ignore": "haed.*"}, r"restore\.ignore: nothing is called 'haed\.\*'.*Did you mean 'head\.\*'\?"),
        (
            {"rename": {"encodr.*": "x.*"}},
            r"restore\.rename: nothing is called 'encodr\.\*'.*Did you mean 'encoder\.\*'",
        ),
        ({"resize": "heads.*"}, r"restore\.resize: nothing is called 'heads\.\*'"),
        ({"ignore": "callbacks.Absent"}, r"restore\.ignore: nothing is called 'callbacks\.Absent'"),
        ({"set": {"optimizer.learning_rate": 1}}, r"optimizer\.learning_rate: AdamW has no option 'learning_rate'"),
        ({"set": {"optimizer.3.lr": 1}}, r"AdamW has no group 3"),
        ({"set": {"optimizer.lr": "fast"}}, r"another kind than the saved one\. Got: 'fast'"),
        ({"set": {"loops.epoch": 1}}, r"There is no 'epoch'.*Did you mean 'epochs'\?"),
        ({"set": {"schedulers.0": 1}}, r"schedulers\.0: This is not a single value"),
        ({"weights": "average"}, r"holds no weights called 'average'\. Got: \['model'\]"),
        ({"rename": {"encoder.0.*": "head.*"}, "missing": "allow"}, "gives two tensors the name 'head.weight'"),
    ],
)
def test_names_that_do_not_exist(policy: dict[str, Any], match: str, saved: Path) -> None:
    with pytest.raises(CheckpointError, match=match):
        fit(Net(), saved.parents[2], 4, ckpt_path=saved, restore=RestorePolicy(**policy))


@pytest.mark.holds("R38")
def test_other_values_that_can_be_set(saved: Path) -> None:
    policy = RestorePolicy(
        set={"loops": {"epochs": 2}, "schedulers.ExponentialLR.gamma": 0.25, "optimizer.AdamW.betas": [0.5, 0.9]}
    )
    trainer = restored(Net(), saved, policy)
    assert trainer.current_epoch == 2
    assert trainer.lr_scheduler_configs[0].scheduler.gamma == 0.25
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.5, 0.9)
    counting = Counting(1)
    path = fit(Net(), saved.parents[2] / "more", 3, counting).last_checkpoint
    restored(Net(), path, RestorePolicy(set="callbacks.Counting.count=9"), counting)
    assert counting.count == 9


def test_a_policy_without_a_checkpoint_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"restore says what to take from a checkpoint, and there is none.*ckpt_path"):
        fit(Net(), tmp_path, restore=RestorePolicy(only="model"))
    named = {"run_dir": RunFolder(tmp_path, name="mine"), "ckpt_path": "auto"}
    first = fit(Net(), tmp_path, **named, restore=RestorePolicy(set={"optimizer.lr": 0.5}))
    assert first.lrs != [0.5]  # nothing was there to restore yet
    with pytest.raises(ConfigError, match=r"validate restores the model, and this policy is about something else"):
        quiet().validate(Line(), loader(), ckpt_path=tmp_path, restore=RestorePolicy(set="optimizer.lr=1"))
