"""Checkpoints of a run: when they are written, what is in them, and going on from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.test_length import Clock
from loop.tiny import At, Line, equal, loader, quiet, samples, weights
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from taskloom import Callback, CheckpointPolicy, Trainer
from taskloom.accelerators.cpu import CPUAccelerator
from taskloom.callbacks import EarlyStopping, ModelCheckpoint
from taskloom.core.errors import CheckpointError, ConfigError, NonFiniteError

FAST = {"fsync": False}
QUICK = CheckpointPolicy(**FAST)


def saved_steps(policy: Any, folder: Path, **arguments: Any) -> list[int]:
    steps: list[int] = []
    watch = At(on_save_checkpoint=lambda trainer, _: steps.append(trainer.global_step))
    trainer = quiet(watch, **{"max_epochs": 2, **arguments}, checkpoint=policy, run_dir=folder)
    trainer.fit(Line(), loader(10), loader(4))
    return steps


@pytest.mark.holds("CB-05")
@pytest.mark.parametrize(
    ("every", "steps"),
    [
        ("1 epoch", [5, 10]),
        ("2 epochs", [10]),
        ("4 steps", [4, 8, 10]),
        (3, [3, 6, 9, 10]),
        (0.5, [3, 5, 8, 10]),
        ("50%", [5, 10]),
        ("9 epochs", [10]),
    ],
)
def test_checkpoints_are_written_when_they_are_due_and_at_the_end(every: Any, steps: list[int], tmp_path: Path) -> None:
    assert saved_steps(CheckpointPolicy(every=every, **FAST), tmp_path) == steps


@pytest.mark.holds("CB-05")
def test_checkpoints_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    watch = At(on_save_checkpoint=lambda trainer, _: steps.append(trainer.global_step))
    policy = CheckpointPolicy(every="90 seconds", **FAST)
    tick = Clock(monkeypatch).passes(60.0)
    quiet(watch, tick, max_epochs=1, checkpoint=policy, run_dir=tmp_path).fit(Line(), loader(10))
    assert steps == [2, 4, 5]


def test_a_checkpoint_waits_for_its_window(tmp_path: Path) -> None:
    every = CheckpointPolicy(every="3 batches", **FAST)
    assert saved_steps(every, tmp_path, accumulate_grad_batches=2) == [2, 4, 5, 6]


def test_what_is_due_at_the_last_step_of_an_epoch_is_written_after_the_epoch(tmp_path: Path) -> None:
    at: list[Any] = []
    watch = At(
        on_save_checkpoint=lambda trainer, _: at.append((trainer.current_epoch, trainer.progress.batches_in_epoch))
    )
    quiet(watch, max_epochs=2, checkpoint=CheckpointPolicy(every="2 steps", **FAST), run_dir=tmp_path).fit(
        Line(), loader()
    )
    assert at == [(0, 2), (1, 0), (1, 2), (2, 0)]


class Delayed(CPUAccelerator):
    """A device that nobody waits for."""

    synchronous = False


@pytest.mark.holds("R28")
@pytest.mark.parametrize("due", ["save", "log"])
def test_a_loss_that_nobody_waited_for_is_judged_before_anything_is_kept(due: str, tmp_path: Path) -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch_idx)
            return self.loss(batch) * (float("nan") if batch_idx == 1 else 1.0)

    task = Task()
    trainer = quiet(
        max_epochs=1,
        accelerator=Delayed(),
        checkpoint=CheckpointPolicy(every="3 steps" if due == "save" else "9 epochs", **FAST),
        log_every_n_steps=3 if due == "log" else 50,
        run_dir=tmp_path,
    )
    with pytest.raises(NonFiniteError, match="the loss of one of the last 3 batches is not finite"):
        trainer.fit(task, loader(16))
    assert task.seen == [0, 1, 2]
    assert not list(tmp_path.glob("*/checkpoints/step-*"))


class Measured(Line):
    """Validations measure these values, one after the other."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = iter(values)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("score", next(self.values))


@pytest.mark.holds("CB-05")
@pytest.mark.parametrize(("mode", "best", "kept"), [("max", 2, {2, 3, 4}), ("min", 1, {1, 4})])
def test_the_best_and_the_last_are_kept(mode: str, best: int, kept: set[int], tmp_path: Path) -> None:
    policy = CheckpointPolicy(monitor="score", mode=mode, save_top_k=2, **FAST)
    trainer = quiet(max_epochs=4, checkpoint=policy, run_dir=tmp_path)
    result = trainer.fit(Measured(1.0, 9.0, 5.0, 2.0), loader(2), loader(2))
    assert result.best_checkpoint.name == f"step-{best:08}"
    assert result.last_checkpoint.name == "step-00000004"
    folder = result.run_folder / "checkpoints"
    assert {int(path.name[-8:]) for path in folder.glob("step-*")} == kept
    assert json.loads((folder / "last.json").read_text())["checkpoint"] == "step-00000004"
    assert trainer.checkpoints[0].best_score == (9.0 if mode == "max" else 1.0)


@pytest.mark.holds("CB-05")
def test_several_policies_and_callbacks_share_what_falls_together(tmp_path: Path) -> None:
    brought = ModelCheckpoint(monitor="score", mode="max")
    trainer = quiet(
        brought,
        max_epochs=3,
        checkpoint=[CheckpointPolicy(every="1 steps", keep_last=2, **FAST), CheckpointPolicy(monitor="score", **FAST)],
        run_dir=tmp_path,
    )
    result = trainer.fit(Measured(1.0, 9.0, 5.0), loader(4), loader(2))
    folder = result.run_folder / "checkpoints"
    assert [keeper.last_path.name[-1] for keeper in trainer.checkpoints] == ["6", "6", "4"]
    assert [keeper.best_path and keeper.best_path.name[-1] for keeper in trainer.checkpoints] == [None, "2", "4"]
    assert {int(path.name[-8:]) for path in folder.glob("step-*")} == {2, 4, 5, 6}
    assert brought.best_model_path == str(folder / "step-00000004")
    assert trainer.checkpoint_callback is brought


@pytest.mark.holds("CB-05")
def test_a_callback_alone_saves_too(tmp_path: Path) -> None:
    brought = ModelCheckpoint(monitor="score")
    result = quiet(brought, max_epochs=1, run_dir=tmp_path).fit(Measured(1.0), loader(2), loader(2))
    assert brought.best_model_path == str(result.run_folder / "checkpoints" / "step-00000001")


@pytest.mark.holds("CB-05")
def test_early_stopping_comes_before_the_checkpoint_and_both_see_the_validation(tmp_path: Path) -> None:
    order: list[str] = []
    watch = At(
        on_validation_end=lambda *_: order.append("validated"),
        on_save_checkpoint=lambda trainer, _: order.append(f"saved, stopping {trainer.should_stop}"),
    )
    stopping = EarlyStopping("score", patience=1)
    policy = CheckpointPolicy(monitor="score", **FAST)
    result = quiet(watch, stopping, max_epochs=9, checkpoint=policy, run_dir=tmp_path).fit(
        Measured(1.0, 2.0), loader(2), loader(2)
    )
    assert order == ["validated", "saved, stopping False", "validated", "saved, stopping True"]
    assert (result.epochs, result.status) == (2, "stopped")
    assert "score" in result.stop_reason


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (CheckpointPolicy(monitor="scor"), r"monitors 'scor', which was not logged by step 4.*Fix: .*'score'\?"),
        (CheckpointPolicy(monitor="score", every="3 steps"), r"measured at step \d, and a checkpoint is due at step"),
    ],
)
def test_a_monitored_metric_that_is_not_there(policy: CheckpointPolicy, match: str, tmp_path: Path) -> None:
    every = "2 steps" if policy.every == "3 steps" else "1 epoch"
    trainer = quiet(max_epochs=1, val_check_interval=every, checkpoint=policy, run_dir=tmp_path)
    with pytest.raises(ConfigError, match=match):
        trainer.fit(Measured(1.0, 2.0), loader(), loader(2))


class Random(Line):
    """Everything that a resume has to restore: dropout, momentum, a schedule, buffers, state of a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.batches: list[Any] = []
        self.remembered = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append(batch[0])
        self.remembered += 1
        return self.loss([batch[0] + 0.1 * torch.randn(1), batch[1]])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["remembered"] = self.remembered

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.remembered = checkpoint["remembered"]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"},
            torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5),
        ]


def plain() -> Any:
    return DataLoader(samples(14), batch_size=2, shuffle=True)


def own_generator() -> Any:
    return DataLoader(samples(14), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(5))


def batch_sampler() -> Any:
    data = samples(14)
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, drop_last=False))


def own_batches() -> Any:
    """No automatic batching: each index is a batch."""
    data = [samples(14)[2 * number : 2 * number + 2] for number in range(7)]
    return DataLoader(data, batch_size=None, shuffle=True)


@pytest.mark.holds("CB-05", "TM-26")
@pytest.mark.parametrize("data", [plain, own_generator, batch_sampler, own_batches])
@pytest.mark.parametrize("stop", [1, 4, 6, 7, 8, 13, 14])
def test_a_resumed_run_ends_with_the_bytes_of_one_that_was_not_interrupted(
    stop: int, data: Any, tmp_path: Path
) -> None:
    def train(steps: int, task: Random, **more: Any) -> Trainer:
        torch.manual_seed(2)
        policy = CheckpointPolicy(every="9 epochs", **FAST)
        trainer = quiet(max_epochs=3, max_steps=steps, checkpoint=policy, run_dir=tmp_path)
        trainer.fit(task, data(), loader(4), **more)
        return trainer

    torch.manual_seed(1)
    task, first, second = Random(), Random(), Random()
    first.load_state_dict(task.state_dict())
    whole = train(21, task)
    before = train(stop, first)
    assert before.progress.steps == stop
    torch.randn(17)
    after = train(21, second, ckpt_path=before.last_checkpoint)
    assert after.run_folder == before.run_folder
    batches = [*first.batches, *second.batches]
    assert equal(task.batches, batches)
    assert equal(weights(task), weights(second))
    assert equal(list(task.buffers()), list(second.buffers()))
    assert whole.lrs == after.lrs
    counted = {name: value for name, value in vars(whole.progress).items() if name != "seconds"}
    assert counted == {name: value for name, value in vars(after.progress).items() if name != "seconds"}
    assert second.remembered == 21


@pytest.mark.holds("CB-05")
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_windows_of_a_resumed_run_have_the_same_bytes(stop: int, tmp_path: Path) -> None:
    def train(steps: int, task: Random, **more: Any) -> Trainer:
        torch.manual_seed(2)
        trainer = quiet(max_epochs=2, max_steps=steps, accumulate_grad_batches=3, checkpoint=QUICK, run_dir=tmp_path)
        trainer.fit(task, DataLoader(samples(14), batch_size=4, shuffle=True), **more)
        return trainer

    torch.manual_seed(1)
    task, first, second = Random(), Random(), Random()
    first.load_state_dict(task.state_dict())
    train(4, task)
    before = train(stop, first)
    train(4, second, ckpt_path=before.last_checkpoint)
    assert equal(weights(task), weights(second))


def test_resuming_reads_no_sample_that_was_trained_on(tmp_path: Path) -> None:
    class Noting(torch.utils.data.Dataset):
        def __init__(self):
            self.data, self.read = samples(14), []

        def __len__(self):
            return 14

        def __getitem__(self, index):
            self.read.append(index)
            return self.data[index]

    first, second = Noting(), Noting()
    before = quiet(max_steps=5, checkpoint=QUICK, run_dir=tmp_path)
    before.fit(Line(), DataLoader(first, batch_size=2, shuffle=True))
    quiet(max_epochs=1, checkpoint=QUICK, run_dir=tmp_path).fit(
        Line(), DataLoader(second, batch_size=2, shuffle=True), ckpt_path=before.last_checkpoint
    )
    assert sorted(first.read[:10] + second.read) == [*range(14)]


@pytest.mark.parametrize("where", ["on_validation_start", "on_validation_end"])
def test_an_interrupt_in_the_validation_of_an_epoch_repeats_no_schedule(where: str, tmp_path: Path) -> None:
    def interrupt(trainer: Trainer, _: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    validated: list[int] = []
    watch = At(on_validation_end=lambda trainer, _: validated.append(trainer.current_epoch))
    before = quiet(At(**{where: interrupt}), max_epochs=3, checkpoint=QUICK, run_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        before.fit(Random(), plain(), loader(4))
    after = quiet(watch, max_epochs=3, checkpoint=QUICK, run_dir=tmp_path)
    task = Random()
    result = after.fit(task, plain(), loader(4), ckpt_path=before.last_checkpoint)
    assert (result.epochs, result.steps, len(task.batches)) == (3, 21, 7)
    assert validated == [1, 2]
    # The closed form of the schedule by epoch does not mind being called twice; its counter does.
    assert [config.scheduler.last_epoch for config in after.lr_scheduler_configs] == [21, 3]


@pytest.mark.holds("CB-05")
def test_callbacks_of_the_task_and_equal_callbacks_keep_their_own_state(tmp_path: Path) -> None:
    class Counting(Callback):
        def __init__(self, count=0):
            self.count = count

        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            self.count += 1

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            self.count = state["count"]

    class OfTask(Counting):
        pass

    class Task(Line):
        def configure_callbacks(self):
            return [own]

    own = OfTask()
    before = quiet(Counting(100), Counting(200), max_steps=3, checkpoint=QUICK, run_dir=tmp_path)
    before.fit(Task(), loader())
    own = OfTask()
    one, two = Counting(), Counting()
    after = quiet(one, two, max_steps=4, checkpoint=QUICK, run_dir=tmp_path)
    after.fit(Task(), loader(), ckpt_path=before.last_checkpoint)
    assert (one.count, two.count, own.count) == (104, 204, 4)


@pytest.mark.holds("CB-05")
@pytest.mark.parametrize("given", ["last", "run folder", "path", "best"])
def test_what_a_checkpoint_may_be_called(given: str, tmp_path: Path) -> None:
    policy = CheckpointPolicy(monitor="score", mode="max", **FAST)
    before = quiet(max_epochs=2, checkpoint=policy, run_dir=tmp_path)
    before.fit(Measured(5.0, 1.0), loader(2), loader(2))
    wanted = {"run folder": before.run_folder, "path": before.last_checkpoint}.get(given, given)
    after = quiet(max_epochs=3, checkpoint=policy, run_dir=tmp_path)
    seen: list[int] = []
    after.add_callback(At(on_train_start=lambda trainer, _: seen.append(trainer.global_step)))
    after.fit(Measured(1.0, 1.0), loader(2), loader(2), ckpt_path=wanted)
    assert seen == [1 if given == "best" else 2]
    assert after.progress.steps == 3


def test_no_run_to_continue(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"ckpt_path='last' finds no run with a checkpoint in .*Fix: check run_dir"
    ):
        quiet(max_epochs=1, run_dir=tmp_path).fit(Line(), loader(), ckpt_path="last")


@pytest.mark.holds("CB-05", "TM-26")
@pytest.mark.parametrize("moment", ["within", "after"])
def test_a_checkpoint_by_hand(moment: str, tmp_path: Path) -> None:
    class Task(Line):
        def __init__(self, features=3):
            super().__init__(features=features)
            self.save_hyperparameters()

        def on_save_checkpoint(self, checkpoint):
            checkpoint["steps"] = self.trainer.global_step

        def on_load_checkpoint(self, checkpoint):
            self.found = checkpoint["steps"]

    path = tmp_path / "mine"
    save = At(on_train_end=lambda trainer, _: trainer.save_checkpoint(path))
    task = Task()
    trainer = quiet(*([save] if moment == "within" else []), max_epochs=1)
    trainer.fit(task, loader())
    if moment == "after":
        trainer.save_checkpoint(path)
    loaded = Task.load_from_checkpoint(path)
    assert equal(weights(loaded), weights(task))
    assert loaded.found == 4
    other = Task()
    assert quiet().test(other, loader(), ckpt_path=path, verbose=False) == trainer.test(task, loader(), verbose=False)
    assert equal(weights(other), weights(task))
    resumed = quiet(max_epochs=2).fit(Task(), loader(), ckpt_path=path)
    assert resumed.steps == 8


def test_weights_alone_cannot_be_trained_on(tmp_path: Path) -> None:
    trainer = quiet(max_epochs=1)
    with pytest.raises(RuntimeError, match=r"There is nothing to save yet\. Why: no fit has been started"):
        trainer.save_checkpoint(tmp_path / "none")
    trainer.fit(Line(), loader())
    trainer.save_checkpoint(tmp_path / "weights", weights_only=True)
    assert quiet().validate(Line(), loader(), ckpt_path=tmp_path / "weights", verbose=False)
    with pytest.raises(CheckpointError, match=r"holds weights only, so training cannot continue from it\. Fix: start"):
        quiet(max_epochs=2).fit(Line(), loader(), ckpt_path=tmp_path / "weights")


@pytest.mark.holds("R56")
def test_an_evaluation_of_a_checkpoint_has_its_x(tmp_path: Path) -> None:
    trainer = quiet(max_epochs=2)
    trainer.fit(Line(), loader())
    trainer.save_checkpoint(tmp_path / "mine")
    fresh = quiet(logger="csv", run_dir=tmp_path / "runs")
    fresh.test(Line(), loader(), ckpt_path=tmp_path / "mine", verbose=False)
    assert (fresh.run_folder / "metrics.csv").read_text().split()[1].startswith("8,2,")


def test_samplers_are_told_the_epoch() -> None:
    class Ordered(RandomSampler):
        def set_epoch(self, epoch):
            told.append(epoch)

    told: list[int] = []
    data = samples(4)
    quiet(max_epochs=3).fit(Line(), DataLoader(data, sampler=Ordered(data)))
    assert told == [0, 1, 2]
    told.clear()
    quiet(max_epochs=2).fit(Line(), DataLoader(data, batch_sampler=BatchSampler(Ordered(data), 2, False)))
    assert told == [0, 1]


@pytest.mark.holds("DB-04")
def test_a_trial_of_a_resume_writes_nothing_either(tmp_path: Path) -> None:
    before = quiet(max_epochs=1, checkpoint=QUICK, run_dir=tmp_path)
    before.fit(Line(), loader())
    there = sorted(tmp_path.rglob("*"))
    trial = quiet(fast_dev_run=True, run_dir=tmp_path)
    trial.config_text = "max_epochs: 1"
    trial.fit(Line(), loader(), ckpt_path=before.last_checkpoint)
    assert sorted(tmp_path.rglob("*")) == there
