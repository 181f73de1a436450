"""What `ckpt_path` names in every stage, evaluation beside training, and checkpoints that cannot be used."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.tiny import Line, equal, loader, quiet, samples, weights
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader

from taskloom import CheckpointPolicy, RestorePolicy, TaskModule, Trainer
from taskloom.checkpoint import open_checkpoint
from taskloom.core.errors import CheckpointError

BEST = CheckpointPolicy(monitor="val/loss", save_top_k=-1, fsync=False)


class Noisy(Line):
    """Batch statistics and dropout, so that train and eval mode differ."""

    def __init__(self) -> None:
        super().__init__(lr=0.05)
        self.layer = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))


def held_out() -> Any:
    return DataLoader(samples(11, seed=3), batch_size=4)


def fit(folder: Path, *, epochs: int = 3, **options: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = quiet(max_epochs=epochs, checkpoint=BEST, run_dir=folder, **options)
    trainer.fit(Noisy(), loader(16, 4, shuffle=True), held_out())
    return trainer


@pytest.mark.holds("R56")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_validate_measures_what_validation_in_fit_measured(precision: str, tmp_path: Path) -> None:
    trainer = fit(tmp_path, precision=precision)
    paths = sorted(trainer.last_checkpoint.parent.glob("step-*"))
    assert len(paths) == 3
    for path in paths:
        saved = json.loads((path / "manifest.json").read_text())["metrics"]["val/loss"]
        measured = quiet(precision=precision).validate(Noisy(), held_out(), ckpt_path=path, verbose=False)
        assert measured == [{"val/loss": saved["value"]}]


@pytest.mark.holds("R56")
def test_an_evaluation_needs_no_optimizer_and_no_training_data(tmp_path: Path) -> None:
    class Bare(TaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Noisy().layer

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", Line.loss(self, batch))

        def configure_optimizers(self) -> Any:
            raise AssertionError("an evaluation makes no optimizer")

    trainer = fit(tmp_path)
    measured = quiet().validate(Bare(), held_out(), ckpt_path=trainer.last_checkpoint, verbose=False)
    assert measured[0]["val/loss"] == trainer.callback_metrics["val/loss"]


@pytest.mark.holds("R56")
def test_fit_validate_fit_leaves_the_task_usable(tmp_path: Path) -> None:
    def train(between: bool) -> Noisy:
        torch.manual_seed(0)
        task, trainer = Noisy(), quiet(max_epochs=1)
        trainer.fit(task, loader(16, 4), held_out())
        if between:
            state = torch.get_rng_state()
            measured = [trainer.validate(task, held_out(), verbose=False) for _ in range(2)]
            assert measured[0] == measured[1]
            trainer.test(task, held_out(), verbose=False)
            torch.set_rng_state(state)
        assert task.training
        assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in task.parameters())
        quiet(max_epochs=1).fit(task, loader(16, 4), held_out())
        return task

    one, other = train(False), train(True)
    assert equal(weights(one), weights(other))
    assert equal(list(one.buffers()), list(other.buffers()))


@pytest.mark.holds("R56")
def test_many_fits_keep_nothing(tmp_path: Path) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    task, trainer = Noisy(), quiet(max_epochs=1, checkpoint=CheckpointPolicy(fsync=False), run_dir=tmp_path)
    data, val = loader(8, 4), held_out()
    counts = []
    for _ in range(4):
        trainer.fit(task, data, val)
        trainer.validate(task, val, ckpt_path=trainer.last_checkpoint, verbose=False)
        counts.append(tensors())
    assert counts[1:] == [counts[1]] * 3


@pytest.mark.holds("CK-08", "R56")
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("wanted", ["last", "best", "path", "run folder"])
def test_an_evaluation_takes_the_checkpoint_that_is_named(wanted: str, stage: str, tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    expected = trainer.best_checkpoint if wanted == "best" else trainer.last_checkpoint
    named = {"path": str(expected), "run folder": trainer.run_folder}.get(wanted, wanted)
    task = Noisy()
    fresh = quiet(run_dir=tmp_path)
    quiet_too = {} if stage == "predict" else {"verbose": False}
    getattr(fresh, stage)(task, held_out(), ckpt_path=named, **quiet_too)
    with open_checkpoint(expected) as reader:
        assert equal(weights(task), [reader.tensor("model", name) for name, _ in task.named_parameters()])


@pytest.mark.holds("CK-24")
def test_counters_settings_and_configuration_lie_beside_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainer = quiet(max_epochs=1, checkpoint=BEST, run_dir=tmp_path)
    trainer.config_text = "max_epochs: 1\n"
    trainer.fit(Noisy(), loader(16, 4), held_out())
    path = trainer.last_checkpoint
    state = json.loads((path / "state.json").read_text())
    assert (state["progress"]["steps"], state["progress"]["epochs"]) == (4, 1)
    assert state["setup"]["micro_batch_size"] == 4
    assert state["setup"]["max_epochs"] == 1
    assert (path / "config.yaml").read_text() == "max_epochs: 1\n"
    assert load_file(path / "model" / "model-00001-of-00001.safetensors")


@pytest.mark.holds("CK-06")
def test_a_checkpoint_holds_everything_that_training_goes_on_from(tmp_path: Path) -> None:
    with open_checkpoint(fit(tmp_path, precision="16-mixed").last_checkpoint) as reader:
        assert {"model", "optimizer"} <= {*reader.kinds}
        assert {
            "progress", "optimizers", "schedulers", "precision", "callbacks", "loggers", "keepers", "datamodule",
            "generators", "position", "metrics", "metric_objects", "hyper_parameters", "custom", "setup", "task_class",
        } <= {*reader.state}  # fmt: skip
        assert reader.state["precision"]
        assert {"python", "numpy", "torch"} <= {*reader.state["generators"]}


@pytest.mark.holds("CK-10")
def test_a_weights_only_checkpoint_is_small_evaluates_and_is_no_place_to_resume_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    policy = CheckpointPolicy(weights_only=True, fsync=False)
    trainer = quiet(max_epochs=1, checkpoint=policy, run_dir=tmp_path)
    trainer.fit(Noisy(), loader(16, 4), held_out())
    path = trainer.last_checkpoint
    assert not (path / "optimizer").exists()
    measured = quiet().validate(Noisy(), held_out(), ckpt_path=path, verbose=False)
    assert measured == [{"val/loss": trainer.callback_metrics["val/loss"]}]
    with pytest.raises(CheckpointError, match=r"(weights only|only weights)"):
        quiet(max_epochs=2, run_dir=tmp_path).fit(Noisy(), loader(16, 4), ckpt_path="last")
    quiet(max_epochs=1).fit(Noisy(), loader(16, 4), ckpt_path=path, restore=RestorePolicy(only="model"))


# Checkpoints that cannot be used ------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    file = path / "model" / "model-00001-of-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def tampered(path: Path) -> None:
    file = path / "model" / "model-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def newer(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "version": manifest["version"] + 1}))


def foreign(path: Path) -> None:
    (path / "manifest.json").write_text(json.dumps({"format": "something-else"}))


def without_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def torch_file(path: Path) -> None:
    shutil.rmtree(path)
    torch.save({"state_dict": {}}, path)


@pytest.mark.holds("CK-08", "R1")
@pytest.mark.parametrize("stage", ["fit", "validate"])
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (truncated, r"model-00001-of-00001\.safetensors is truncated.*Fix: use another checkpoint"),
        (tampered, r"model-00001-of-00001\.safetensors was damaged or changed.*Fix: use another checkpoint"),
        (newer, r"manifest\.json is of format 2.*Fix: upgrade"),
        (foreign, r"manifest\.json.*Fix:"),
        (without_manifest, r"is not a checkpoint: it has no manifest\.json.*Fix: pass the folder"),
        (torch_file, r"is a file, and a checkpoint is a folder.*Fix:"),
        (shutil.rmtree, r"There is no checkpoint at .*beside it there is step-"),
    ],
)
def test_each_says_which_file_is_wrong_and_what_to_do(stage: str, spoil: Any, match: str, tmp_path: Path) -> None:
    trainer = fit(tmp_path, epochs=2)
    earlier, path = sorted(trainer.last_checkpoint.parent.glob("step-*"))
    before = {file: file.read_bytes() for file in earlier.rglob("*") if file.is_file()}
    spoil(path)
    task = Noisy()
    fresh = [each.clone() for each in weights(task)]
    with pytest.raises(CheckpointError, match=f"(?s){match}") as caught:
        getattr(quiet(max_epochs=3, run_dir=tmp_path), stage)(task, loader(16, 4), ckpt_path=path)
    assert path.name in str(caught.value)
    assert equal(weights(task), fresh)
    assert {file: file.read_bytes() for file in before} == before
    assert quiet().validate(task, loader(16, 4), ckpt_path=earlier, verbose=False)


@pytest.mark.holds("CK-08")
def test_a_best_that_is_gone_or_was_never_measured(tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    shutil.rmtree(trainer.best_checkpoint)
    with pytest.raises(CheckpointError, match=r"best\.json names step-.*Fix:"):
        quiet(run_dir=tmp_path).test(Noisy(), held_out(), ckpt_path="best")
    plain = quiet(max_epochs=1, checkpoint=CheckpointPolicy(fsync=False), run_dir=tmp_path / "plain")
    plain.fit(Noisy(), loader(16, 4))
    with pytest.raises(CheckpointError, match=r"names no best checkpoint.*CheckpointPolicy\(monitor="):
        quiet(run_dir=tmp_path / "plain").test(Noisy(), held_out(), ckpt_path="best")


@pytest.mark.holds("R56", "R45")
def test_averaged_weights_are_evaluated_where_that_is_asked_for(tmp_path: Path) -> None:
    from taskloom.callbacks import EMAWeightAveraging

    torch.manual_seed(0)
    trainer = quiet(EMAWeightAveraging(decay=0.5), max_epochs=2, checkpoint=BEST, run_dir=tmp_path)
    trainer.fit(Noisy(), loader(16, 4), held_out())
    path = trainer.last_checkpoint
    in_fit = json.loads((path / "manifest.json").read_text())["metrics"]["val/loss"]["value"]
    averaged = RestorePolicy(weights="average")
    measured = quiet().validate(Noisy(), held_out(), ckpt_path=path, verbose=False, restore=averaged)
    assert measured[0]["val/loss"] == in_fit
    assert quiet().validate(Noisy(), held_out(), ckpt_path=path, verbose=False)[0]["val/loss"] != in_fit
    task = Noisy.load_from_checkpoint(path, restore=averaged)
    assert quiet().validate(task, held_out(), verbose=False)[0]["val/loss"] == in_fit
