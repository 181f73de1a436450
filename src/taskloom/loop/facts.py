"""What a `Trainer` tells about the run it is in: facts to read, under the names Lightning gave them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from taskloom.accelerators import Accelerator
from taskloom.callbacks import Callback, EarlyStopping, ModelCheckpoint
from taskloom.checkpoint import CheckpointKeeper
from taskloom.core.data import DataModule
from taskloom.core.errors import explain
from taskloom.core.progress import Progress
from taskloom.core.task import TaskModule
from taskloom.core.transfer import count_samples
from taskloom.data import NamedLoader
from taskloom.fabric import Fabric
from taskloom.loggers import Logger
from taskloom.loop.settings import Settings
from taskloom.optim import SchedulerConfig, TaskOptimizer
from taskloom.precision import Precision
from taskloom.report import ProgressReporter
from taskloom.strategies import Strategy

if TYPE_CHECKING:
    from taskloom.loop.evaluate import EvaluateLoop
    from taskloom.loop.fit import FitLoop
    from taskloom.loop.limits import Limits
    from taskloom.loop.record import Record
    from taskloom.loop.run import Run
    from taskloom.loop.saving import Saver

Status = Literal["new", "running", "finished", "stopped", "interrupted", "preempted", "failed"]
StageName = Literal["fit", "sanity", "validate", "test", "predict"]


@dataclass
class TrainerState:
    """Where a Trainer is. Read it; the loops write it.

    Attributes:
        status: of the last stage that was started.
        stage: that runs now, None between stages.
    """

    status: Status = "new"
    stage: StageName | None = None


@dataclass
class Parts:
    """What the stage in hand, or else the last one, is made of."""

    stage: StageName | None = None
    run: Run | None = None
    fit: FitLoop | None = None
    saver: Saver | None = None
    limits: Limits | None = None
    evaluation: EvaluateLoop | None = None
    train: NamedLoader | None = None
    evaluated: list[NamedLoader] = field(default_factory=list)
    predicted: list[NamedLoader] = field(default_factory=list)
    keepers: list[CheckpointKeeper] = field(default_factory=list)


class GraphFacts:
    """Facts about the graph, the counters and the stage; the constructor of `Trainer` fills what they are read from."""

    fabric: Fabric
    progress: Progress
    settings: Settings
    state: TrainerState
    parts: Parts

    # The graph --------------------------------------------------------------------------------------------------------

    @property
    def strategy(self) -> Strategy:
        """How the module is spread."""
        return self.fabric.strategy

    @property
    def precision(self) -> Precision:
        """The dtype policy."""
        return self.fabric.precision

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's name of `precision`."""
        return self.fabric.precision

    @property
    def accelerator(self) -> Accelerator:
        """The kind of device."""
        return self.fabric.accelerator

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self.fabric.device

    @property
    def num_devices(self) -> int:
        """Devices of this machine that the run uses."""
        return max(1, self.strategy.world_size // max(1, self.fabric.num_nodes))

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """Number of this process."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this process speaks for all."""
        return self.strategy.is_global_zero

    # Counters ---------------------------------------------------------------------------------------------------------

    @property
    def current_epoch(self) -> int:
        """Completed epochs, so the number of the running one from 0."""
        return self.progress.epochs

    @property
    def global_step(self) -> int:
        """Optimizer steps; with several optimizers the batches in which any stepped."""
        return self.progress.steps

    @property
    def is_last_batch(self) -> bool:
        """Whether the training batch in hand is the last of its epoch."""
        return self.parts.fit is not None and self.parts.fit.is_last_batch

    @property
    def is_accumulating(self) -> bool:
        """Whether the window of the batch in hand goes on after it, so that no optimizer step follows it."""
        return self.parts.fit is not None and not self.parts.fit.optimization.completes

    @property
    def accumulate_grad_batches(self) -> int:
        """Micro-batches per optimizer step now; set it at the start of an epoch to change it for that epoch."""
        if self.parts.fit is not None:
            return self.parts.fit.optimization.window.batches
        return self.settings.accumulation.at_epoch(self.progress.epochs)

    @accumulate_grad_batches.setter
    def accumulate_grad_batches(self, batches: int) -> None:
        fit = self._fit_loop("accumulate_grad_batches")
        if fit.optimization.window.filled:
            raise RuntimeError(
                explain(
                    "accumulate_grad_batches cannot change within a window",
                    why="its micro-batches are scaled already",
                    fix="set it in on_train_epoch_start",
                )
            )
        fit.optimization.window.batches = batches

    @property
    def estimated_stepping_batches(self) -> float:
        """Planned optimizer steps of the whole fit, `inf` when unknown; can be read in `configure_optimizers`."""
        if self.parts.limits is None:
            raise RuntimeError(
                explain(
                    "The number of planned steps is not known yet",
                    why="the training loader has not been made",
                    fix="read it in configure_optimizers or later",
                )
            )
        return self.parts.limits.total_steps

    # Stages -----------------------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether `fit` is training (and not validating)."""
        return self.state.stage == "fit"

    @property
    def validating(self) -> bool:
        """Whether validation runs, within `fit` or by itself."""
        return self.state.stage == "validate"

    @property
    def testing(self) -> bool:
        """Whether `test` runs."""
        return self.state.stage == "test"

    @property
    def predicting(self) -> bool:
        """Whether `predict` runs."""
        return self.state.stage == "predict"

    @property
    def sanity_checking(self) -> bool:
        """Whether the validation batches before training run."""
        return self.state.stage == "sanity"

    @property
    def evaluating(self) -> bool:
        """Whether validation or test runs."""
        return self.state.stage in ("validate", "test", "sanity")

    @property
    def interrupted(self) -> bool:
        """Whether the last stage was ended by Ctrl-C."""
        return self.state.status == "interrupted"

    # Parts ------------------------------------------------------------------------------------------------------------

    def _run(self, name: str) -> Run:
        if self.parts.run is None:
            raise RuntimeError(
                explain(
                    f"Trainer.{name} is not known yet",
                    why="no stage has been started",
                    fix="read it in a hook or after fit, validate, test or predict",
                )
            )
        return self.parts.run

    def _fit_loop(self, name: str) -> FitLoop:
        if self.parts.fit is None:
            raise RuntimeError(
                explain(
                    f"Trainer.{name} is not possible now",
                    why="no fit is running",
                    fix="call it from a step or a hook of fit",
                )
            )
        return self.parts.fit


class Facts(GraphFacts):
    """Facts about the task, its data, its metrics and what is written."""

    callbacks: list[Callback]
    active_callbacks: list[Callback]
    record: Record

    # Task, data, optimizers -------------------------------------------------------------------------------------------

    @property
    def task_module(self) -> TaskModule:
        """The user's task.

        Raises:
            RuntimeError: no stage has been started.
        """
        return self._run("task_module").task

    @property
    def lightning_module(self) -> TaskModule:
        """Lightning's name of `task_module`."""
        return self.task_module

    @property
    def model(self) -> nn.Module:
        """The wrapped module that steps are called through."""
        return self._run("model").module

    @property
    def datamodule(self) -> DataModule | None:
        """The data module of the stage, or None."""
        return self._run("datamodule").datamodule

    @property
    def optimizers(self) -> list[Optimizer]:
        """The optimizers of a fit; empty otherwise."""
        return self.parts.fit.optimization.optimizers if self.parts.fit is not None else []

    @property
    def task_optimizers(self) -> list[TaskOptimizer]:
        """The optimizers as users step them in manual optimisation."""
        return self.parts.fit.optimization.task_optimizers if self.parts.fit is not None else []

    @property
    def lr_scheduler_configs(self) -> list[SchedulerConfig]:
        """The schedulers of a fit with their intervals."""
        return self.parts.fit.optimization.schedulers.configs if self.parts.fit is not None else []

    @property
    def lrs(self) -> list[float]:
        """The learning rate of every parameter group of every optimizer, in order."""
        return [
            float(group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups if "lr" in group
        ]

    @property
    def train_dataloader(self) -> Any:
        """The training loader as it was passed."""
        return self.parts.train.loader if self.parts.train is not None else None

    @property
    def val_dataloaders(self) -> list[Any]:
        """The validation loaders as they were passed."""
        return [each.loader for each in self.parts.evaluated] if self.parts.stage in ("fit", "validate") else []

    @property
    def test_dataloaders(self) -> list[Any]:
        """The test loaders as they were passed."""
        return [each.loader for each in self.parts.evaluated] if self.parts.stage == "test" else []

    @property
    def predict_dataloaders(self) -> list[Any]:
        """The prediction loaders as they were passed."""
        return [each.loader for each in self.parts.predicted]

    @property
    def num_training_batches(self) -> float:
        """Training batches per epoch after the limit, `inf` when unknown, 0 outside a fit."""
        return self.parts.train.length if self.parts.train is not None else 0

    @property
    def num_val_batches(self) -> list[float]:
        """Validation batches of each loader after the limit."""
        return [each.length for each in self.parts.evaluated] if self.parts.stage in ("fit", "validate") else []

    @property
    def num_test_batches(self) -> list[float]:
        """Test batches of each loader after the limit."""
        return [each.length for each in self.parts.evaluated] if self.parts.stage == "test" else []

    @property
    def num_predict_batches(self) -> list[float]:
        """Prediction batches of each loader after the limit."""
        return [each.length for each in self.parts.predicted]

    @property
    def num_sanity_val_batches(self) -> list[float]:
        """Validation batches of each loader that the sanity check runs."""
        return [min(length, self.settings.sanity_batches) for length in self.num_val_batches]

    @property
    def enable_validation(self) -> bool:
        """Whether this fit validates."""
        return self.parts.evaluation is not None

    @property
    def micro_batch_size(self) -> int | None:
        """Samples per device and micro-batch, as the training loader declares or the batch in hand shows; else None."""
        loader = self.train_dataloader
        if isinstance(loader, DataLoader) and loader.batch_size is not None:
            return loader.batch_size
        return count_samples(self.parts.run.metrics.batch) if self.parts.run is not None else None

    @property
    def effective_batch_size(self) -> int | None:
        """Samples per optimizer step: micro-batch × accumulation × data-parallel ranks; None if a batch hides it."""
        size = self.micro_batch_size
        return None if size is None else size * self.accumulate_grad_batches * self.strategy.data_parallel_size

    # Callbacks --------------------------------------------------------------------------------------------------------

    @property
    def checkpoint_callbacks(self) -> list[ModelCheckpoint]:
        """The callbacks that save; the Trainer's own policies are in `checkpoints`."""
        return [each for each in self.active_callbacks if isinstance(each, ModelCheckpoint)]

    @property
    def checkpoint_callback(self) -> ModelCheckpoint | None:
        """The first of them."""
        return next(iter(self.checkpoint_callbacks), None)

    @property
    def early_stopping_callbacks(self) -> list[EarlyStopping]:
        """The callbacks that end training by a metric."""
        return [each for each in self.active_callbacks if isinstance(each, EarlyStopping)]

    @property
    def early_stopping_callback(self) -> EarlyStopping | None:
        """The first of them."""
        return next(iter(self.early_stopping_callbacks), None)

    @property
    def progress_bar_callback(self) -> ProgressReporter:
        """What shows the progress, which is no callback here; Lightning's name."""
        return self.record.reporter

    # Metrics ----------------------------------------------------------------------------------------------------------

    @property
    def callback_metrics(self) -> dict[str, Tensor]:
        """The latest value of every logged name, 0-dim float64 tensors on the CPU; reading them waits for nothing."""
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.metric_values.items()}

    @property
    def logged_metrics(self) -> dict[str, float]:
        """The latest values that went to the loggers."""
        return dict(self.parts.run.metrics.logged_metrics) if self.parts.run is not None else {}

    @property
    def progress_bar_metrics(self) -> dict[str, float]:
        """The latest values in the progress bar."""
        return dict(self.parts.run.metrics.progress_bar_metrics) if self.parts.run is not None else {}

    @property
    def metric_values(self) -> dict[str, float]:
        """The same as plain numbers."""
        return self.parts.run.metrics.callback_metrics if self.parts.run is not None else {}

    @property
    def loggers(self) -> list[Logger]:
        """All loggers."""
        return self.record.loggers.loggers

    @property
    def logger(self) -> Logger | None:
        """The first logger, or None."""
        return self.loggers[0] if self.loggers else None

    # Folder and checkpoints -------------------------------------------------------------------------------------------

    @property
    def run_folder(self) -> Path | None:
        """Where the run writes; None before a fit, and for one that writes nothing."""
        return self.record.folder

    @property
    def log_dir(self) -> Path | None:
        """Lightning's name of `run_folder`."""
        return self.record.folder

    @property
    def run_id(self) -> str:
        """What tells this run from every other."""
        return self.record.run_id

    @property
    def config_text(self) -> str | None:
        """YAML of the resolved configuration, kept in run folder and checkpoints; the command line sets it."""
        return self.record.config_text

    @config_text.setter
    def config_text(self, text: str | None) -> None:
        self.record.config_text = text

    @property
    def checkpoints(self) -> list[CheckpointKeeper]:
        """One keeper per checkpoint policy: its best, its last, and what it keeps."""
        return self.parts.keepers

    @property
    def best_checkpoint(self) -> Path | None:
        """The best checkpoint of the first policy that has one."""
        return next((keeper.best_path for keeper in self.parts.keepers if keeper.best_path), None)

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint."""
        return next((keeper.last_path for keeper in self.parts.keepers if keeper.last_path), None)
