"""What a Trainer tells of its run, what `fit` returns, and what a step costs."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.test_length import Stream
from loop.tiny import At, Line, loader, quiet
from torch.utils.data import DataLoader

from taskloom import Callback, DataModule, Trainer
from taskloom.callbacks import EarlyStopping, ModelCheckpoint

PACKAGE = Path(sys.modules["taskloom"].__file__).parent


@pytest.mark.holds("LC-21")
def test_flags_of_every_stage() -> None:
    names = ("training", "validating", "testing", "predicting", "sanity_checking", "evaluating")
    seen: dict[str, Any] = {}

    class Task(Line):
        def note(self, step):
            flags = {name for name in names if getattr(self.trainer, name)}
            seen.setdefault(step, (flags, self.trainer.state.stage, self.trainer.state.status))

        def training_step(self, batch, batch_idx):
            self.note("train")
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.note("sanity" if self.trainer.sanity_checking else "fit" if self.trainer.parts.fit else "alone")

        def test_step(self, batch, batch_idx):
            self.note("test")

        def predict_step(self, batch, batch_idx):
            self.note("predict")

    trainer, task, data = quiet(max_epochs=1, num_sanity_val_steps=1), Task(), loader()
    assert (trainer.state.status, trainer.state.stage) == ("new", None)
    trainer.fit(task, data, data)
    assert not any(getattr(trainer, name) for name in names)
    assert (trainer.state.status, trainer.state.stage) == ("finished", None)
    trainer.validate(task, data, verbose=False)
    trainer.test(task, data, verbose=False)
    trainer.predict(task, data)
    assert seen == {
        "sanity": ({"sanity_checking", "evaluating"}, "sanity", "running"),
        "train": ({"training"}, "fit", "running"),
        "fit": ({"validating", "evaluating"}, "validate", "running"),
        "alone": ({"validating", "evaluating"}, "validate", "running"),
        "test": ({"testing", "evaluating"}, "test", "running"),
        "predict": ({"predicting"}, "predict", "running"),
    }


@pytest.mark.holds("LC-26", "LC-22")
def test_facts_of_a_fit(tmp_path: Path) -> None:
    stopping, saving = EarlyStopping("train/loss"), ModelCheckpoint()
    training, validation = loader(10), [loader(4), loader(20)]
    trainer = quiet(
        stopping,
        saving,
        max_epochs=2,
        accumulate_grad_batches=2,
        limit_batches={"validate": 3},
        num_sanity_val_steps=2,
        run_dir=tmp_path,
    )

    class Task(Line):
        def validation_step(self, batch, batch_idx, dataloader_idx):
            pass

        def configure_optimizers(self):
            facts["accumulation"] = self.trainer.accumulate_grad_batches
            facts["batches"] = self.trainer.num_training_batches
            return super().configure_optimizers()

    facts: dict[str, Any] = {}
    task = Task()
    trainer.fit(task, training, validation)
    assert facts == {"accumulation": 2, "batches": 5}
    assert (trainer.num_training_batches, trainer.num_val_batches) == (5, [2, 3])
    assert trainer.num_sanity_val_batches == [2, 2]
    assert (trainer.num_test_batches, trainer.num_predict_batches) == ([], [])
    assert trainer.train_dataloader is training
    assert trainer.val_dataloaders == validation
    assert trainer.test_dataloaders == trainer.predict_dataloaders == []
    assert trainer.enable_validation
    assert (trainer.micro_batch_size, trainer.effective_batch_size) == (2, 4)
    assert (trainer.checkpoint_callback, trainer.checkpoint_callbacks) == (saving, [saving])
    assert (trainer.early_stopping_callback, trainer.early_stopping_callbacks) == (stopping, [stopping])
    assert trainer.progress_bar_callback is trainer.record.reporter
    assert trainer.task_module is trainer.lightning_module is task
    assert trainer.model is task
    assert [type(each) for each in trainer.optimizers] == [torch.optim.SGD]
    assert trainer.lr_scheduler_configs == []
    assert (trainer.num_devices, trainer.world_size, trainer.global_rank, trainer.local_rank) == (1, 1, 0, 0)
    assert trainer.is_global_zero
    assert trainer.precision_plugin is trainer.precision is trainer.fabric.precision
    assert trainer.device == torch.device("cpu")
    assert trainer.run_folder == trainer.log_dir
    assert trainer.run_folder.parent == tmp_path
    assert trainer.logger is None


@pytest.mark.holds("LC-26")
def test_facts_of_evaluation_and_of_nothing() -> None:
    trainer, data = quiet(max_epochs=1), loader()
    assert trainer.num_training_batches == 0
    assert trainer.val_dataloaders == []
    for name in ("task_module", "model", "datamodule"):
        with pytest.raises(RuntimeError, match=rf"Trainer\.{name} is not known yet\. Why: no stage has been started"):
            getattr(trainer, name)
    trainer.test(Line(), data, verbose=False)
    assert (trainer.test_dataloaders, trainer.num_test_batches, trainer.val_dataloaders) == ([data], [4], [])
    trainer.predict(Line(), data)
    assert (trainer.predict_dataloaders, trainer.num_predict_batches, trainer.test_dataloaders) == ([data], [4], [])
    trainer.validate(Line(), data, verbose=False)
    assert (trainer.val_dataloaders, trainer.num_val_batches) == ([data], [4])


@pytest.mark.holds("LC-26")
def test_the_size_of_batches_without_a_loader_that_says() -> None:
    sizes: list[Any] = []
    watch = At(on_after_backward=lambda trainer, _: sizes.append(trainer.effective_batch_size))
    quiet(watch, max_epochs=1, accumulate_grad_batches=3).fit(Line(), Streamed())
    assert sizes == [6] * 4


class Streamed:
    def __iter__(self) -> Any:
        return iter(loader())


@pytest.mark.holds("LC-27")
def test_the_last_metrics() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            self.log("both", float(batch_idx), on_step=True, on_epoch=True, prog_bar=True)
            self.log("silent", 1.0, logger=False)
            return self.loss(batch)

        def validation_step(self, batch, batch_idx):
            self.log("val", 2.0)

    trainer = quiet(max_epochs=1, log_every_n_steps=3)
    trainer.fit(Task(), loader(), loader())
    values = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert values == {"both": 1.5, "both_step": 3.0, "both_epoch": 1.5, "silent": 1.0, "val": 2.0}
    assert trainer.callback_metrics["both"].dtype == torch.float64
    assert trainer.logged_metrics == {"both_step": 3.0, "both_epoch": 1.5, "val": 2.0}
    assert trainer.progress_bar_metrics == {"both_step": 3.0, "both_epoch": 1.5}


@pytest.mark.holds("LC-25", "LC-01")
def test_what_fit_returns(tmp_path: Path) -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return self.loss(batch) * 0 + batch_idx

    trainer = quiet(max_epochs=2, checkpoint=True, run_dir=tmp_path)
    result = trainer.fit(Task(), loader(), loader())
    assert (result.status, result.steps, result.epochs) == ("finished", 8, 2)
    assert result.training_loss == 1.5
    assert result.metrics["val/loss"] == float(trainer.callback_metrics["val/loss"])
    assert result.run_folder == trainer.run_folder
    assert result.last_checkpoint == result.run_folder / "checkpoints" / "step-00000008"
    assert result.best_checkpoint is None
    assert result.stop_reason == "max_epochs=2 reached"


@pytest.mark.holds("LC-25")
@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_training_loss_is_the_mean_over_all_batches(window: int) -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            return {"loss": self.loss(batch) * 0 + batch_idx + 10 * self.current_epoch}

    result = quiet(max_epochs=2, accumulate_grad_batches=window, log_every_n_steps=2).fit(Task(), loader())
    assert result.training_loss == 6.5


class Data(DataModule):
    def train_dataloader(self) -> Any:
        return loader()

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


@pytest.mark.holds("LC-01", "LC-02")
@pytest.mark.parametrize("way", ["argument", "place of loaders", "task"])
def test_where_loaders_come_from(way: str) -> None:
    class Task(Line):
        def train_dataloader(self):
            return loader()

        val_dataloader = test_dataloader = predict_dataloader = train_dataloader

    trainer, task = quiet(max_epochs=1), (Task if way == "task" else Line)()
    arguments: dict[str, Any] = {"datamodule": Data()} if way == "argument" else {}
    place = [Data()] if way == "place of loaders" else []
    assert trainer.fit(task, *place, **arguments).steps == 4
    for stage in ("validate", "test"):
        assert len(getattr(trainer, stage)(task, *place, verbose=False, **arguments)) == 1
    assert len(trainer.predict(task, *place, **arguments)) == 4


@pytest.mark.holds("LC-02")
def test_evaluations_print_a_table_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    quiet(progress="plain").test(Line(), loader())
    assert "metric     value" in capsys.readouterr().out
    quiet(progress="plain").test(Line(), loader(), verbose=False)
    assert "metric     value" not in capsys.readouterr().out


@pytest.mark.holds("LC-29")
def test_a_bare_run_shows_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = Trainer.barebones(max_epochs=1, accelerator="cpu", run_dir=tmp_path)
    assert (trainer.loggers, trainer.settings.policies, trainer.settings.sanity_batches) == ([], (), 0)
    result = trainer.fit(Line(), loader(), loader())
    assert result.steps == 4
    assert result.run_folder is None
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
    assert Trainer.barebones(max_epochs=1, accelerator="cpu", num_sanity_val_steps=1).settings.sanity_batches == 1


def test_callbacks_can_be_added_and_taken_back() -> None:
    trainer, stopping = quiet(max_epochs=1), EarlyStopping("loss")
    trainer.add_callback(stopping)
    assert trainer.pop_callback(EarlyStopping) is stopping
    assert trainer.pop_callback(stopping) is None
    trainer.add_callback(stopping)
    trainer.remove_callback(stopping)
    assert trainer.callbacks == []


@pytest.mark.parametrize("step", ["training_step", "validation_step", "test_step", "predict_step"])
def test_steps_may_leave_out_what_they_do_not_use(step: str) -> None:
    class Task(Line):
        pass

    setattr(Task, step, lambda self, batch: self.loss(batch))
    trainer, task, data = quiet(max_epochs=1), Task(), loader()
    trainer.fit(task, data, data)
    trainer.test(task, data, verbose=False)
    trainer.predict(task, data)


def calls_per_batch(task: Line, *callbacks: Callback, batches: int = 20) -> list[str]:
    """The package's functions that are called from the second batch to the one before the last, by name."""
    called: list[str] = []
    bounds: list[int] = []

    def profile(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            called.append(frame.f_code.co_name)

    class Watched(type(task)):
        def training_step(self, batch, batch_idx):
            bounds.append(len(called))
            return self.loss(batch)

    task.__class__ = Watched
    trainer = quiet(*callbacks, max_epochs=1)
    sys.setprofile(profile)
    try:
        trainer.fit(task, loader(2 * batches))
    finally:
        sys.setprofile(None)
    return called[bounds[1] : bounds[-2]]


@pytest.mark.holds("R18")
def test_a_hook_that_nobody_overrides_costs_no_call() -> None:
    class Idle(Callback):
        pass

    class Busy(Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            pass

    alone = calls_per_batch(Line())
    assert calls_per_batch(Line(), *(Idle() for _ in range(20))) == alone
    # What the loop calls for one batch, so that whoever adds to it does so knowingly.
    steps = 17
    per_batch = {name: alone.count(name) / steps for name in set(alone)}
    assert per_batch == {
        **dict.fromkeys(("train_batch", "_zero_grad", "_accumulate", "add", "backward"), 1.0),
        **dict.fromkeys(("_complete", "stepping", "step", "_count", "_end_window", "reset"), 1.0),
        **dict.fromkeys(("_from_the_first", "_one_ahead"), 1.0),  # indices, one batch ahead (data/indices.py)
    }
    busy = calls_per_batch(Line(), Busy())
    assert len(busy) == len(alone) + steps


@pytest.mark.holds("R18")
def test_what_is_due_is_looked_for_when_something_may_be() -> None:
    assert not {"_between_windows", "_plan", "due", "wait", "refresh", "log"} & set(calls_per_batch(Line(), batches=40))


@pytest.mark.holds("LC-01")
def test_a_stream_has_no_number_of_batches() -> None:
    trainer = quiet(max_steps=3)
    trainer.fit(Line(), DataLoader(Stream(5)))
    assert trainer.num_training_batches == math.inf
    assert trainer.is_last_batch is False
