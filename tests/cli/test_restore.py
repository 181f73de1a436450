"""`--restore.*`, and what a command takes from a checkpoint beside its weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from cli.command import Run

MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from taskloom import DataModule, TaskModule


class Net(TaskModule):
    def __init__(self, hidden: int = 4, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.encoder = torch.nn.Linear(3, hidden)
        self.head = torch.nn.Linear(hidden, 1)

    def step(self, batch):
        return ((self.head(self.encoder(batch[0])) - batch[1]) ** 2).mean()

    def training_step(self, batch, batch_idx):
        print("rate", self.optimizers().param_groups[0]["lr"])
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.step(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Other(Net):
    def __init__(self, hidden: int, note: str = "none"):
        super().__init__(hidden)
        self.backbone = self.encoder
        del self.encoder

    def step(self, batch):
        return ((self.head(self.backbone(batch[0])) - batch[1]) ** 2).mean()


class Data(DataModule):
    def loader(self):
        x = torch.arange(36.0).reshape(12, 3) / 36
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = loader
"""

CONFIG = "{seed: 1, max_epochs: 1, accelerator: cpu, progress: plain, task: net.Net, data: net.Data}"


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> str:
    """The last checkpoint of a short run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    Path("net.py").write_text(MODULE)
    Path("cfg.yaml").write_text(CONFIG)
    outcome = run(["fit", "--config", "cfg.yaml", "--task.hidden", "5"])
    assert outcome.code == 0, outcome.err
    return str(next(Path("runs").glob("*/checkpoints/step-*")))


@pytest.mark.holds("R38")
@pytest.mark.parametrize(
    "written",
    [
        ["--restore.set", "optimizer.lr=1e-5"],
        ["--restore.set.optimizer.lr", "1e-5"],
        ["--config", "restore.yaml"],
        ["--restore", "{set: {optimizer.lr: 1.0e-5}}"],
    ],
)
def test_a_new_learning_rate_from_the_command_line(written: list[str], checkpoint: str, run: Run) -> None:
    Path("restore.yaml").write_text("restore:\n  set:\n    optimizer.lr: 1.0e-5\n")
    both = [] if written[0] != "--config" else ["--config", "cfg.yaml", "--task.hidden", "5"]
    outcome = run(["fit", *both, "--ckpt_path", checkpoint, "--max_epochs", "2", *written])
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("rate 1e-05") == 3
    assert "Set           optimizer.lr 0.1 to 1e-05" in outcome.out
    assert "restore" not in yaml.safe_load(next(Path("runs").glob("*/config.1.yaml")).read_text())


@pytest.mark.holds("R38")
def test_parts_and_patterns_from_the_command_line(checkpoint: str, run: Run) -> None:
    chosen = ["--restore.only", "model,optimizer,loops", "--restore.check", "off"]
    outcome = run(["fit", "--ckpt_path", checkpoint, "--max_epochs", "2", *chosen])
    assert outcome.code == 0, outcome.err
    assert "Restored      model, optimizer, loops\n" in outcome.out
    other = ["--config", "cfg.yaml", "--task", "net.Other", "--task.hidden", "6", "--restore.only", "model"]
    renamed = ["--restore.rename", "encoder.*: backbone.*", "--restore.resize", "true"]
    outcome = run(["fit", *other, *renamed, "--ckpt_path", checkpoint])
    assert outcome.code == 0, outcome.err
    assert "Renamed       encoder.* to backbone.*" in outcome.out
    assert "Resized       backbone.weight (5, 3) to (6, 3), backbone.bias (5,) to (6,), head.weight" in outcome.out
    assert len([*Path("runs").iterdir()]) == 2


@pytest.mark.holds("R38")
@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            ["--restore.only", "modell"],
            "flag --restore.only: restore: restore.only: a checkpoint has no part",
        ),
        (["--restore.onyl", "model"], "Did you mean 'only'?"),
        (["--restore.data", "again"], "restore.data"),
        (["--restore.ignore", "haed.*"], "nothing is called 'haed.*'"),
    ],
)
def test_mistakes(written: list[str], message: str, checkpoint: str, run: Run) -> None:
    outcome = run(["fit", "--ckpt_path", checkpoint, "--max_epochs", "2", *written])
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.holds("R23")
def test_the_configuration_of_a_checkpoint_is_the_lowest_layer_and_changes_are_printed(
    checkpoint: str, run: Run
) -> None:
    plain = run(["test", "--ckpt_path", checkpoint])
    assert plain.code == 0, plain.err
    assert plain.err == ""
    Path("more.yaml").write_text("task: {init_args: {lr: 0.5}}\nseed: 2\n")
    arguments = ["test", "--ckpt_path", checkpoint, "--config", "more.yaml", "--seed", "3"]
    outcome = run(arguments)
    assert outcome.code == 0, outcome.err
    assert "task.lr: 0.1 in the checkpoint, now 0.5 (more.yaml:1)\n" in outcome.err
    assert "seed: 1 in the checkpoint, now '3' (flag --seed)\n" in outcome.err
    printed = yaml.safe_load(run([*arguments, "--print_config"]).out)
    assert (printed["seed"], printed["task"]["init_args"]) == (3, {"hidden": 5, "lr": 0.5})


@pytest.mark.holds("R23", "R56")
def test_test_and_validate_need_no_other_argument_and_agree(checkpoint: str, run: Run) -> None:
    manifest = json.loads((Path(checkpoint) / "manifest.json").read_text())
    outcome = run(["validate", "--ckpt_path", checkpoint])
    assert outcome.code == 0, outcome.err
    assert f"{manifest['metrics']['val/loss']['value']:.4g}"[:5] in outcome.out


@pytest.mark.holds("R23")
def test_weights_load_into_a_class_whose_arguments_changed(checkpoint: str, run: Run) -> None:
    """One is gone and one is new: those of the checkpoint that are still taken are used, the others are told of."""
    changed = MODULE.replace("hidden: int = 4, lr: float = 0.1", "hidden: int, depth: int").replace(
        "self.hparams.lr", "1"
    )
    Path("net.py").write_text(changed)
    sys.modules.pop("net", None)
    outcome = run(["test", "--ckpt_path", checkpoint, "--task.depth", "2"])
    assert outcome.code == 0, outcome.err
    assert "task.lr: 0.1 in the checkpoint is left out: net.Net does not take it\n" in outcome.err
    assert "test/loss" in outcome.out
    missing = run(["test", "--ckpt_path", checkpoint])
    assert missing.code == 2
    assert "depth" in missing.err


@pytest.mark.holds("R23")
def test_another_class_starts_without_the_arguments_of_the_one_before(checkpoint: str, run: Run) -> None:
    arguments = ["test", "--ckpt_path", checkpoint, "--task", "net.Other", "--task.hidden", "5"]
    refused = run(arguments)
    assert refused.code == 1
    assert "was written by another task, net.Net" in refused.err
    outcome = run([*arguments, "--restore.rename", "encoder.*: backbone.*"])
    assert outcome.code == 0, outcome.err
    assert "test/loss" in outcome.out


@pytest.mark.holds("R14", "R23")
def test_a_checkpoint_brings_no_code_of_its_own(checkpoint: str, run: Run) -> None:
    """The configuration beside it names classes of the project, never of a folder that came with the checkpoint."""
    folder = Path(checkpoint)
    (folder / "evil").mkdir()
    (folder / "evil" / "theirs.py").write_text("raise SystemExit('code of the checkpoint ran')")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.update(import_from=[str(folder / "evil")], task="theirs.Net")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    outcome = run(["test", "--ckpt_path", checkpoint])
    assert outcome.code == 2
    assert "code of the checkpoint ran" not in outcome.err
    assert "which came with the checkpoint" in outcome.err
    assert "theirs" not in sys.modules
