"""Files that are kept with a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from taskloom import Callback, Logger, TaskModule, Trainer
from taskloom.callbacks.base import HOOKS


class Shelf(Logger):
    name = "shelf"

    def __init__(self) -> None:
        self.kept: list[tuple[str, str | None]] = []

    def log_metrics(self, metrics, step, epoch=None):
        pass

    def log_artifact(self, path, *, name=None):
        self.kept.append((path.name, name))


class Watch(Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_push_begin(self, trainer, task, path):
        self.seen.append(f"push {path.name}")

    def on_log(self, trainer, task, metrics, step):
        self.seen.append(f"log {sorted(metrics)} at {step}")

    def on_exception(self, trainer, task, exception):
        self.seen.append(f"exception {exception}")


class Line(TaskModule):
    def __init__(self, note: Path, fails: bool = False) -> None:
        super().__init__()
        self.net, self.note, self.fails = torch.nn.Linear(2, 1), note, fails

    def training_step(self, batch, batch_idx):
        loss = self.net(batch).mean()
        self.log("loss", loss)
        if batch_idx == 1:
            self.trainer.log_artifact(self.note, name="note")
            if self.fails:
                raise OSError("gone")
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.holds("CB-03")
def test_callbacks_see_logs_pushes_and_failures(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("kept")
    shelf, watch = Shelf(), Watch()
    batches = torch.utils.data.DataLoader(torch.randn(8, 2), batch_size=4)
    options = {"max_epochs": 1, "accelerator": "cpu", "progress": False, "checkpoint": False, "log_every_n_steps": 1}
    Trainer(**options, logger=shelf, callbacks=[watch]).fit(Line(note), batches)
    assert shelf.kept == [("note.txt", "note")]
    assert watch.seen == ["log ['loss'] at 1", "push note.txt", "log ['loss'] at 2"]
    failing = Watch()
    with pytest.raises(OSError, match="gone"):
        Trainer(**options, logger=False, callbacks=[failing]).fit(Line(note, fails=True), batches)
    assert failing.seen == ["log ['loss'] at 1", "push note.txt", "exception gone"]


@pytest.mark.holds("CB-03")
def test_every_moment_of_lightning_has_its_hook() -> None:
    stages = ("train", "validation", "test", "predict")
    wanted = {f"on_{stage}_{moment}" for stage in stages for moment in ("start", "end", "epoch_start", "epoch_end")}
    wanted |= {f"on_{stage}_batch_{moment}" for stage in stages for moment in ("start", "end")}
    wanted |= {"setup", "teardown", "on_fit_start", "on_fit_end", "on_sanity_check_start", "on_sanity_check_end"}
    wanted |= {"on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"}
    wanted |= {"on_exception", "on_save_checkpoint", "on_load_checkpoint", "on_log", "on_push_begin"}
    assert set(HOOKS) == wanted


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing at .*absent"):
        Trainer(max_epochs=1).log_artifact(tmp_path / "absent")
