"""What a user gets wrong: each message says what, what was got, why it cannot be, and what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loop.test_length import Stream
from loop.test_window import Batches
from loop.tiny import Line, loader, quiet
from torch import nn
from torch.utils.data import DataLoader

from taskloom import Callback, CheckpointPolicy, DataModule, Loss, RunFolder, TaskModule, Trainer
from taskloom.callbacks import EarlyStopping
from taskloom.core.errors import CheckpointError, ConfigError


def returning(output: Any) -> Line:
    """A task whose training step returns this, or what this makes of the loss."""

    class Task(Line):
        def training_step(self, batch, batch_idx):
            return output(self.loss(batch)) if callable(output) and output is not Line else output

    return Task()


@pytest.mark.holds("R30", "TM-02")
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize(
    ("output", "error", "match"),
    [
        ("loss", TypeError, r"training_step returned something that is not a loss\. Got: 'loss'\. Fix: return a 0-dim"),
        (0.5, TypeError, r"not a loss\. Got: 0\.5\."),
        (lambda loss: (loss, 1), TypeError, r"not a loss\. Got: \(tensor"),
        (
            lambda loss: loss.expand(3),
            ValueError,
            r"not a single value\. Got: 'a tensor of shape \(3,\)'\. Fix: reduce",
        ),
        (lambda loss: Loss(loss.expand(2), 2), ValueError, r"not a single value\. Got: 'a tensor of shape \(2,\)'"),
        (
            lambda loss: loss.detach(),
            ValueError,
            r"does not require grad\. Why: no parameter would learn.*Fix: compute",
        ),
        ({"lose": 1}, ValueError, r"training_step returned a dict without 'loss'\. Got: \['lose'\]\. Fix: return"),
        ({"loss": None, "loss2": 1}, None, ""),
    ],
)
@pytest.mark.filterwarnings("ignore:A training batch is left out")
def test_a_loss_that_is_none(output: Any, error: Any, match: str, window: int) -> None:
    trainer = quiet(max_steps=1, max_epochs=1, accumulate_grad_batches=window)
    if error is None:
        assert trainer.fit(returning(output), loader()).steps == 0
        return
    with pytest.raises(error, match=match):
        trainer.fit(returning(output), loader())


class WithoutStep(TaskModule):
    def configure_optimizers(self):
        return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)


class WithoutOptimizers(Line):
    configure_optimizers = TaskModule.configure_optimizers


def optimising(returned: Any) -> Line:
    class Task(Line):
        def configure_optimizers(self):
            return returned

    return Task()


class Data(DataModule):
    def train_dataloader(self):
        return loader()


@pytest.mark.holds("R30", "LC-01")
@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda t: t.fit(Line, loader()),
            TypeError,
            r"The task must be an instance of taskloom\.TaskModule\. Got: <class",
        ),
        (
            lambda t: t.fit(nn.Linear(1, 1), loader()),
            TypeError,
            r"must be an instance.*Fix: derive your class from Task",
        ),
        (
            lambda t: t.fit(WithoutStep(), loader()),
            TypeError,
            r"WithoutStep has no training_step, so.*Fix: write `def tr",
        ),
        (lambda t: t.fit(Line()), ValueError, r"There are no training batches for Line\. Fix: pass train_dataloaders"),
        (
            lambda t: t.fit(Line(), 7),
            TypeError,
            r"The train loader cannot be iterated over\. Got: 7\. Fix: pass a torch",
        ),
        (lambda t: t.fit(Line(), loader().dataset), TypeError, r"train loader cannot be iterated over.*DataLoader"),
        (lambda t: t.fit(Line(), [[1, 2]]), TypeError, r"takes loaders, and 0 is none.*collections within collections"),
        (
            lambda t: t.fit(Line(), Batches([])),
            ValueError,
            r"The train loader is empty\. Got: .*Fix: check the data set",
        ),
        (lambda t: t.fit(Line(), loader(1, 2, drop_last=True)), ValueError, r"The train loader is empty.*drop_last"),
        (
            lambda t: t.fit(Line(), DataLoader(Stream(0))),
            ValueError,
            r"The training loader yielded no batch\. Got: .*Why",
        ),
        (lambda t: t.fit(Line(), loader(), Batches([])), ValueError, r"The validate loader is empty"),
        (
            lambda t: t.fit(Line(), loader(), DataLoader(Stream(0))),
            ValueError,
            r"The validate loader 0 yielded no batch",
        ),
        (
            lambda t: t.fit(Line(), loader(), datamodule=Data()),
            ValueError,
            r"train_dataloaders and datamodule were both",
        ),
        (lambda t: t.fit(Line(), Data(), loader()), ValueError, r"val_dataloaders and datamodule were both passed"),
        (lambda t: t.fit(Line(), datamodule=Data), TypeError, r"The data module must be an instance of taskloom\.Data"),
        (
            lambda t: t.fit(WithoutOptimizers(), loader()),
            NotImplementedError,
            r"has no configure_optimizers\. Fix: write",
        ),
        (
            lambda t: t.fit(optimising(3), loader()),
            TypeError,
            r"configure_optimizers returned something that is not an",
        ),
        (
            lambda t: t.fit(optimising(torch.optim.SGD), loader()),
            TypeError,
            r"Got: 'the class SGD'\. Fix: return an op",
        ),
        (
            lambda t: t.fit(optimising({"optimiser": 1}), loader()),
            ValueError,
            r"no key 'optimiser'.*Did you mean 'optim",
        ),
        (
            lambda t: t.validate(Line()),
            ValueError,
            r"There are no batches to validate\. Fix: pass dataloaders or a data",
        ),
        (lambda t: t.test(Line()), ValueError, r"There are no batches to test\. .*write test_dataloader"),
        (lambda t: t.predict(Line()), ValueError, r"There are no batches to predict\. .*write predict_dataloader"),
        (lambda t: t.predict(Line(), DataLoader(Stream(0))), ValueError, r"The predict loader 0 yielded no batch"),
        (
            lambda t: t.validate(WithoutStep(), loader()),
            NotImplementedError,
            r"WithoutStep has no validation_step\. Fix",
        ),
        (lambda t: t.test(WithoutStep(), loader()), NotImplementedError, r"WithoutStep has no test_step\. Fix: write"),
        (lambda t: t.fit(Line(), loader(), ckpt_path="/no/such"), CheckpointError, r"/no/such"),
    ],
)
def test_tasks_and_data_that_do_not_fit(call: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        call(quiet(max_epochs=1))


@pytest.mark.holds("R30")
def test_an_iterator_that_is_used_up() -> None:
    once = iter([*loader()])
    trainer = quiet(max_epochs=2)
    with pytest.raises(ValueError, match=r"yielded no batch\..*an iterator that was used up cannot be iterated over"):
        trainer.fit(Line(), once)
    assert trainer.progress.epochs == 1


@pytest.mark.holds("R30", "LC-04")
def test_nothing_bounds_the_training() -> None:
    with pytest.raises(
        ValueError, match=r"Nothing bounds the training\. Why: .*all None\. Fix: pass max_epochs=10, max_s"
    ):
        quiet().fit(Line(), loader())


class Misspelt(Callback):
    def on_train_batch_ends(self, trainer, task):
        pass


@pytest.mark.holds("R30")
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"callbacks": [Misspelt()]},
            r"Misspelt\.on_train_batch_ends is not a hook.*Did you mean 'on_train_batch_end'\?",
        ),
        (
            {"callbacks": [EarlyStopping]},
            r"callbacks: A callback must be an instance of taskloom\.Callback\. Got: <class",
        ),
        (
            {"callbacks": EarlyStopping},
            r"callbacks: A callback must be an instance of taskloom\.Callback\. Got: <class",
        ),
        ({"callbacks": [print]}, r"callbacks: A callback must be an instance.*Fix: derive its class from Callback"),
        ({"accelerator": "tpu9"}, r"There is no accelerator 'tpu9'\. Fix: use one of"),
        ({"accelerator": "mps"}, r"Accelerator 'mps' is not available on this machine\. Why: .*Fix: "),
        ({"precision": "16-mxed"}, r"There is no precision '16-mxed'.*Did you mean '16-mixed'\?"),
        ({"strategy": "dpp"}, r"There is no strategy 'dpp'\. Fix: "),
        ({"max_epochs": -2}, r"max_epochs: Bounds of training must satisfy 0 <= min <= max"),
        ({"max_time": "soon"}, r"max_time: "),
        ({"max_time": "0 seconds"}, r"max_time: "),
        (
            {"accumulate_grad_batches": 0},
            r"accumulate_grad_batches: accumulate_grad_batches takes whole numbers of at l",
        ),
        ({"gradient_clip_val": -1.0}, r"gradient_clip_val: max_norm must be above zero\. Got: -1\.0"),
        ({"val_check_interval": "1 eon"}, r"val_check_interval: An interval has no unit 'eon'"),
        ({"limit_batches": {"training": 1}}, r"limit_batches: limit_batches has no stage 'training'.*'train'\?"),
        ({"limit_batches": 1.5}, r"limit_batches: The limit of 'train' is a number of batches \(int\) or a part"),
        ({"log_every_n_steps": 0}, r"log_every_n_steps: log_every_n_steps must be at least 1\. Got: 0"),
        ({"logger": "csw"}, r"logger: .*'csw'.*Did you mean 'csv'\?"),
        ({"checkpoint": "best"}, r"checkpoint: checkpoint takes True, False, a CheckpointPolicy or a list of them"),
        ({"progress": "richh"}, r"progress: .*'richh'.*Did you mean 'rich'\?"),
        ({"seed": -1}, r"seed: A seed lies between 0 and 4294967295\. Got: -1"),
    ],
)
def test_arguments_that_cannot_be_meant(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Trainer(**{"max_epochs": 1, "accelerator": "cpu", "progress": False, **arguments})


@pytest.mark.holds("R30")
def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"4 problems in the configuration:\n  1\. callbacks: ") as caught:
        Trainer(accelerator="cpu", precision="33", callbacks=[Misspelt()], gradient_clip_val=-1, max_steps=-5)
    assert [problem.split(":")[0] for problem in caught.value.problems[:3]] == [
        "callbacks",
        "max_steps",
        "gradient_clip_val",
    ]


@pytest.mark.holds("R30")
@pytest.mark.parametrize("kind", ["scheduler", "checkpoint", "stopping"])
def test_a_monitored_metric_that_was_never_logged(kind: str, tmp_path: Path) -> None:
    class Task(Line):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            if kind != "scheduler":
                return optimizer
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/los"}}

    callbacks = [EarlyStopping("val/los")] if kind == "stopping" else []
    policy = CheckpointPolicy(monitor="val/los") if kind == "checkpoint" else False
    with pytest.raises(ValueError, match=r"'val/los'.*(was|is) not logged.*'val/loss'") as caught:
        quiet(*callbacks, max_epochs=1, checkpoint=policy, run_dir=tmp_path).fit(Task(), loader(), loader())
    assert "Fix: " in str(caught.value)


@pytest.mark.holds("R30")
def test_one_name_with_two_reductions() -> None:
    class Task(Line):
        def training_step(self, batch, batch_idx):
            loss = self.loss(batch)
            self.log("loss", loss, reduce_fx="mean" if batch_idx else "sum")
            return loss

    with pytest.raises(
        ValueError, match=r"The metric 'loss' is logged with different options\. Got: .*Why: .*Fix: use"
    ):
        quiet(max_epochs=1).fit(Task(), loader())


@pytest.mark.holds("R30")
def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(
        PermissionError, match=r"The run folder .*file/line-.* cannot be written\. Got: .*Fix: choose ano"
    ):
        quiet(max_epochs=1, checkpoint=True, run_dir=tmp_path / "file").fit(Line(), loader())


@pytest.mark.holds("R30")
def test_a_run_folder_that_exists(tmp_path: Path) -> None:
    def trainer(**options: Any) -> Trainer:
        return quiet(max_epochs=1, checkpoint=True, run_dir=RunFolder(tmp_path, name="mine", **options))

    trainer().fit(Line(), loader())
    with pytest.raises(
        ValueError, match=r"The run folder .*mine exists already\. Fix: choose another name, pass ckpt_pa"
    ):
        trainer().fit(Line(), loader())
    for _ in range(2):
        assert trainer(overwrite=True).fit(Line(), loader()).run_folder == tmp_path / "mine"
    kept = sorted(path.name for path in (tmp_path / "mine").iterdir())
    assert kept == ["checkpoints", "checkpoints-1", "checkpoints-2", "run.json"]


def test_runs_that_start_together_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = {quiet(max_steps=1, checkpoint=True, run_dir=tmp_path).fit(Line(), loader()).run_folder for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.name.startswith("line-") for folder in folders)


def test_validation_data_without_a_step_are_told_of() -> None:
    class Task(Line):
        validation_step = TaskModule.validation_step

    with pytest.warns(UserWarning, match="There are validation batches, but Task has no validation_step"):
        quiet(max_steps=1).fit(Task(), loader(), loader())


def test_a_stage_within_a_stage() -> None:
    class Task(Line):
        def on_train_epoch_end(self):
            self.trainer.validate(self, loader())

    with pytest.raises(RuntimeError, match=r"validate was called while fit runs\. Why: .*Fix: use another Trainer"):
        quiet(max_epochs=1).fit(Task(), loader())


def test_a_single_callback_needs_no_list() -> None:
    stopping = EarlyStopping("train/loss")
    assert Trainer(callbacks=stopping, max_epochs=1, accelerator="cpu", progress=False).callbacks == [stopping]
