"""Records every hook of a run. As a script it writes the golden traces anew; read the difference before a commit."""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))

from loop.tiny import Line, samples

from taskloom import Callback, CheckpointPolicy, DataModule, Trainer
from taskloom.callbacks import EarlyStopping
from taskloom.callbacks.base import HOOKS
from taskloom.core.hooks import TaskHooks, TransferHooks

TRACES = Path(__file__).parent / "traces"
STEPS = ("training_step", "validation_step", "test_step", "predict_step")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
OF_TASK = (
    *(name for name in {**vars(TransferHooks), **vars(TaskHooks)} if not name.startswith("_")),
    *STEPS,
    *("configure_callbacks", "configure_optimizers", "backward", "optimizer_zero_grad", "lr_scheduler_step"),
    "configure_gradient_clipping",
)
OF_DATA = ("prepare_data", "setup", "teardown", "on_exception", "state_dict", *LOADERS)


class Trace:
    """Lines of `epochs/steps  hook(batch)  who`, where those who take part in one moment share a line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.trainer: Trainer | None = None

    def add(self, who: str, what: str) -> None:
        progress = self.trainer.progress
        moment = f"{progress.epochs}/{progress.steps}  {what:35}"
        if self.lines and self.lines[-1].startswith(moment) and who not in self.lines[-1][len(moment) :]:
            self.lines[-1] += f" {who}"
        else:
            self.lines.append(f"{moment} {who}")

    def recorded(self, who: str, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(method).parameters)

        def call(*arguments: Any, **keywords: Any) -> Any:
            given = {**dict(zip(names, arguments, strict=False)), **keywords}
            shown = [str(given[each]) for each in ("stage", "batch_idx") if each in given]
            if "scheduler" in given:
                shown.append(type(given["scheduler"]).__name__)
            if given.get("dataloader_idx"):
                shown.append(f"loader {given['dataloader_idx']}")
            self.add(who, f"{name}({', '.join(shown)})")
            return method(*arguments, **keywords)

        return call

    def record(self, who: str, owner: Any, names: tuple[str, ...]) -> Any:
        """Replace methods of an object by ones that tell of each call."""
        for name in names:
            vars(owner)[name] = self.recorded(who, name, getattr(owner, name))
        return owner


class Data(DataModule):
    def __init__(self, train: int) -> None:
        super().__init__()
        self.train = train

    def train_dataloader(self) -> Any:
        return DataLoader(samples(self.train), batch_size=2)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(4), batch_size=2)

    def test_dataloader(self) -> Any:
        return [DataLoader(samples(2), batch_size=2), DataLoader(samples(2), batch_size=2)]

    predict_dataloader = test_dataloader


class Traced(Line):
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        optimizer.register_step_pre_hook(lambda *_: self.trace.add("optimizer", "step"))
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"},
            torch.optim.lr_scheduler.StepLR(optimizer, 1),
            {"scheduler": plateau, "monitor": "val/loss"},
        ]


class Closure(Traced):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any) -> None:
        self.trace.add("task", f"optimizer_step({batch_idx})")
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class Manual(Traced):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()[0]
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clip_gradients(optimizer, 1.0)
        optimizer.step()
        scheduler.step()


class Failing(Traced):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 1:
            raise KeyError("this batch is broken")
        return super().training_step(batch, batch_idx)


class Other(Callback):
    pass


class First(Callback):
    before = (Other,)


class Monitoring(EarlyStopping):
    pass


def trace(task: Line, stage: str = "fit", train: int = 10, folder: Path | None = None, **arguments: Any) -> list[str]:
    """Run a stage with everything recorded; the training has `train` samples, the validation 2 batches."""
    lines = Trace()
    task.trace = lines
    callbacks = [
        lines.record("other", Other(), HOOKS),
        lines.record("first", First(), ("on_train_start", "on_train_end")),
        lines.record("monitoring", Monitoring("val/loss", patience=99), ("on_validation_end", "on_train_epoch_end")),
    ]
    trainer = Trainer(
        accelerator="cpu", logger=False, progress=False, callbacks=callbacks, run_dir=folder or "runs", **arguments
    )
    lines.trainer = trainer
    lines.record("task", task, OF_TASK)
    data = lines.record("data", Data(train), OF_DATA)
    try:
        getattr(trainer, stage)(task, datamodule=data)
    except KeyError as error:
        lines.add("caller", f"got {error!r}")
    return lines.lines


WINDOWS = {"max_epochs": 2, "accumulate_grad_batches": 2, "val_check_interval": "1 steps", "num_sanity_val_steps": 1}
EVERY = CheckpointPolicy(monitor="val/loss", every="1 epoch")
RUNS: dict[str, Callable[..., list[str]]] = {
    # 5 batches: windows of 2, 2 and 1; a validation after each step, so also in the middle and at the end of an epoch
    "automatic": lambda **where: trace(Traced(), **WINDOWS, checkpoint=EVERY, **where),
    "closure": lambda **where: trace(Closure(), **{**WINDOWS, "max_epochs": 1}, checkpoint=False, **where),
    "manual": lambda **where: trace(Manual(), train=4, max_epochs=1, checkpoint=False, **where),
    "max_steps": lambda **where: trace(Traced(), max_steps=2, num_sanity_val_steps=0, checkpoint=EVERY, **where),
    "exception": lambda **where: trace(Failing(), max_epochs=1, num_sanity_val_steps=0, checkpoint=False, **where),
    "validate": lambda **where: trace(Traced(), "validate", **where),
    "test": lambda **where: trace(Traced(), "test", **where),
    "predict": lambda **where: trace(Traced(), "predict", **where),
}

if __name__ == "__main__":
    for run, make in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            (TRACES / f"{run}.txt").write_text("\n".join(make(folder=Path(folder))) + "\n")
