"""The command line with the real Trainer: a run, its folder, its checkpoint tested and continued, and Ctrl-C."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cli.command import Run

MODULE = """
import signal

import torch

from taskloom import Callback, DataModule, TaskModule


class Net(TaskModule):
    def __init__(self, features: int, hidden: int = 4, lr: float = 0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(features, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1))

    def loss(self, batch):
        return self.net(batch).pow(2).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", self.loss(batch))

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return {"output": self.net(batch)[:, 0]}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Data(DataModule):
    def __init__(self, rows: int = 12):
        self.rows = rows
        self.width = 3

    def loader(self):
        return torch.utils.data.DataLoader(torch.linspace(0, 1, self.rows * 3).reshape(-1, 3), batch_size=4)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class PressCtrlC(Callback):
    def __init__(self, step: int = 2):
        self.step = step

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGINT)
"""

CONFIG = """
seed: 1
max_epochs: 2
accelerator: cpu
progress: false
checkpoint: {monitor: val/loss}
task: net.Net
data: net.Data
link:
  - data.width=task.features
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "net.py").write_text(MODULE)
    (tmp_path / "configs" / "cfg.yaml").write_text(CONFIG)


def only_run() -> Path:
    [folder] = Path("runs").iterdir()
    return folder


@pytest.mark.holds("CL-01", "CL-04", "R31", "R55")
def test_fit_then_test_predict_and_continue(run: Run) -> None:
    """The run folder's configuration is whole: testing and continuing need no other argument."""
    outcome = run(["fit", "--config", "configs/cfg.yaml", "--task.hidden", "5"])
    assert outcome.code == 0, outcome.err
    folder = only_run()
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["task"]["init_args"] == {"features": 3, "hidden": 5, "lr": 0.1}
    assert saved["precision"] == "32-true"
    assert saved["import_from"] == ["configs"]

    # the module stands beside a configuration that these commands do not name
    tested = run(["test", "--ckpt_path", str(folder)])
    assert tested.code == 0, tested.err
    assert "test/loss" in tested.out
    last = run(["validate", "--ckpt_path", "last"])
    assert "val/loss" in last.out, last.err
    predicted = run(["predict", "--ckpt_path", "best", "--output", "p.jsonl"])
    assert predicted.code == 0, predicted.err
    rows = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert isinstance(rows[0]["output"], float)

    continued = run(["fit", "--ckpt_path", "last", "--max_epochs", "3"])
    assert continued.code == 0, continued.err
    assert "max_epochs: 2 in the checkpoint, now '3' (flag --max_epochs)" in continued.err
    again = yaml.safe_load((only_run() / "config.1.yaml").read_text())
    assert again["max_epochs"] == 3
    assert saved["max_epochs"] == 2


@pytest.mark.holds("LC-30")
def test_ctrl_c_leaves_a_checkpoint_and_exits_with_130(run: Run) -> None:
    outcome = run(["fit", "--config", "configs/cfg.yaml", "--callbacks", "net.PressCtrlC"])
    assert outcome.code == 130
    assert "Traceback" not in outcome.err
    continued = run(["validate", "--ckpt_path", "last"])
    assert continued.code == 0, continued.err
    state = json.loads((only_run() / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert json.dumps(state).count('"steps": 2') >= 1
