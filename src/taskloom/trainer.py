"""`Trainer`: builds the graph, runs a loop. The only class that most users construct."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from taskloom.accelerators import Accelerator
from taskloom.callbacks import Callback
from taskloom.checkpoint import CheckpointPolicy, RestorePolicy
from taskloom.core.data import DataModule
from taskloom.core.errors import ConfigError, explain
from taskloom.core.interval import IntervalLike, parse_seconds
from taskloom.core.policies import (
    Accumulation,
    Between,
    DebugOptions,
    Determinism,
    GradientClipping,
    LimitBatches,
    LogPolicy,
    RunFolder,
    ValidationPolicy,
)
from taskloom.core.progress import Progress
from taskloom.core.seed import seed_everything
from taskloom.core.task import TaskModule
from taskloom.fabric import Fabric
from taskloom.loggers import Logger
from taskloom.loggers.group import LoggerGroup
from taskloom.loggers.resolve import resolve_loggers
from taskloom.loop.automatic import AUTOMATIC, automatic_run, find_automatic
from taskloom.loop.building import build_fit, limited_loaders, one_source, user_loaders
from taskloom.loop.control import Control, Request
from taskloom.loop.evaluate import EvaluateLoop, results, sanity_check
from taskloom.loop.facts import Parts, Status, TrainerState
from taskloom.loop.folder import Found, find_checkpoint
from taskloom.loop.limits import no_bound
from taskloom.loop.metrics_files import Results
from taskloom.loop.predict import predict
from taskloom.loop.preemption import Notice
from taskloom.loop.record import Record, class_path
from taskloom.loop.restoring import opened, restoration_of, restore_weights
from taskloom.loop.run import Run, generators_kept
from taskloom.loop.settings import ArgumentReader, Settings, callbacks_of, policies_of, sanity_batches_of
from taskloom.loop.stage import stage
from taskloom.precision import Precision
from taskloom.report import (
    ProgressReporter,
    render_metrics,
    resolve_reporter,
)
from taskloom.resolve import resolve
from taskloom.strategies import Strategy

Read = TypeVar("Read")


@dataclass(frozen=True)
class FitResult:
    """What came of a `fit`.

    Attributes:
        status: finished (a bound was reached) or stopped (`should_stop`).
        steps: optimizer steps in all.
        epochs: completed epochs in all.
        training_loss: mean over all batches of this run, NaN in manual optimisation.
        metrics: the latest value of every logged name.
        run_folder: where everything was written, None for a run that writes nothing.
        best_checkpoint: by the first policy that monitors a metric.
        last_checkpoint: the newest.
        stop_reason: why training ended.
    """

    status: Status
    steps: int
    epochs: int
    training_loss: float
    metrics: dict[str, float]
    run_folder: Path | None
    best_checkpoint: Path | None
    last_checkpoint: Path | None
    stop_reason: str


class Trainer(Control):
    """Runs a `TaskModule` on a graph of accelerator × precision × strategy.

    Args:
        accelerator: kind of device: `auto`, `cpu`, `cuda` (`gpu`), `mps`, or an `Accelerator`.
        devices: how many (`2`), which (`[0, 3]`, `"0,3"`), or `auto`.
        num_nodes: machines that take part.
        strategy: how the module is spread over devices: `auto`, `single`, or a `Strategy` with its options.
        precision: `32-true`, `64-true`, `bf16-mixed`, `16-mixed`, `bf16-true`, `16-true`, or a `Precision`.
        max_epochs: epochs to train; a fraction ends in the middle of one, -1 is no bound; `Between(min, max)` adds a
            lower bound.
        max_steps: optimizer steps to train; `Between(min, max)` adds a lower bound.
        max_time: longest time in the training loop, over all resumes: `"2 hours"`, `"00:12:00:00"`, a timedelta or its
            keywords.
        accumulate_grad_batches: micro-batches per optimizer step; `{epoch: n}` changes it, `Accumulation(...)` has the
            rest.
        gradient_clip_val: largest gradient norm, off by default; `GradientClipping(...)` clips by value, checks and
            logs.
        val_check_interval: how often to validate: `"1 epoch"`, `"500 steps"`, `"10 minutes"`, `"10%"` of the run, an
            int (batches), a float (part of an epoch), None for never; `ValidationPolicy(...)` has the rest.
        limit_batches: use less of the loaders: an int (batches), a float (part), or a mapping by stage (train,
            validate, test, predict, overfit).
        fast_dev_run: run one batch (or so many) of every stage and write nothing, to see whether the code runs.
        num_sanity_val_steps: validation batches before training, so that a mistake there shows at once.
        logger: True for CSV, a name (`csv`, `jsonl`, `tensorboard`), a `Logger`, a list of them, or False. A `validate`
            or `test` without a `fit` before it logs to loggers that are named here only.
        log_every_n_steps: optimizer steps between flushes of metrics; `"1%"` of the run; `LogPolicy(...)` has the rest.
        callbacks: instances of `Callback`, called in this order.
        checkpoint: True for the newest once per epoch, a `CheckpointPolicy`, several of them, or False.
        run_dir: folder of all runs; `RunFolder(...)` names this one.
        progress: True shows a bar on a terminal and plain lines elsewhere; `rich`, `plain`, `none` or False.
        compile: compile the task's layers with `torch.compile`; a mapping passes its options.
        seed: seed every random generator before anything is built.
        deterministic: let torch use deterministic algorithms only; `"warn"` where it can; `Determinism(...)` also says
            whether cuDNN tries which is fastest (`benchmark`).
        debug: watch for anomalies, slowly; `DebugOptions(...)` chooses.

    Raises:
        ConfigError: with every problem of the arguments.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        devices: int | str | list[int] = "auto",
        num_nodes: int = 1,
        strategy: str | Strategy = "auto",
        precision: str | int | Precision = "32-true",
        max_epochs: int | float | Between | None = None,
        max_steps: int | Between | None = None,
        max_time: str | timedelta | dict[str, float] | None = None,
        accumulate_grad_batches: int | dict[int, int] | Accumulation = 1,
        gradient_clip_val: float | GradientClipping | None = None,
        val_check_interval: IntervalLike | ValidationPolicy | None = "1 epoch",
        limit_batches: int | float | dict[str, int | float] | LimitBatches | None = None,
        fast_dev_run: bool | int = False,
        num_sanity_val_steps: int = 2,
        logger: bool | str | Logger | list[str | Logger] = True,
        log_every_n_steps: int | str | LogPolicy = 50,
        callbacks: Sequence[Callback] = (),
        checkpoint: bool | CheckpointPolicy | list[CheckpointPolicy] = True,
        run_dir: str | Path | RunFolder = "runs",
        progress: bool | str | ProgressReporter = True,
        compile: bool | dict[str, Any] = False,  # noqa: A002 - the name users know from torch.compile
        seed: int | None = None,
        deterministic: bool | Literal["warn"] | Determinism = False,
        debug: bool | DebugOptions = False,
    ) -> None:
        if fast_dev_run:
            limit_batches, max_epochs, max_steps = int(fast_dev_run), 1, None
            logger, checkpoint, num_sanity_val_steps, val_check_interval = False, False, 0, "1 epoch"
        read = ArgumentReader()
        if seed is not None:
            read.value("seed", seed_everything, seed)
        self.callbacks = read.value("callbacks", callbacks_of, callbacks) or []
        self.settings = Settings(
            epochs=read.policy("max_epochs", Between, max_epochs),
            steps=read.policy("max_steps", Between, max_steps),
            seconds=read.value("max_time", lambda given: math.inf if given is None else parse_seconds(given), max_time)
            or math.inf,
            accumulation=read.policy("accumulate_grad_batches", Accumulation, accumulate_grad_batches),
            clipping=read.policy("gradient_clip_val", GradientClipping, gradient_clip_val),
            validation=read.policy("val_check_interval", ValidationPolicy, val_check_interval),
            limits=read.policy("limit_batches", LimitBatches, limit_batches),
            logs=read.policy("log_every_n_steps", LogPolicy, log_every_n_steps),
            folder=read.policy("run_dir", RunFolder, run_dir),
            policies=read.value("checkpoint", policies_of, checkpoint) or (),
            compile=compile,
            seed=seed,
            sanity_batches=read.value("num_sanity_val_steps", sanity_batches_of, num_sanity_val_steps) or 0,
            dry=bool(fast_dev_run),
        )
        loggers = LoggerGroup(read.value("logger", resolve_loggers, logger) or [])
        reporter = read.value("progress", resolve_reporter, progress)
        parts = {"accelerator": accelerator, "devices": devices, "num_nodes": num_nodes, "strategy": strategy}
        graph = read.value("", lambda given: resolve(**given), {**parts, "precision": precision})
        if graph is not None:
            self.settings = read.evaluation_precision(self.settings, graph)
        self.debug = read.policy("debug", DebugOptions, debug)
        self.determinism = read.policy("deterministic", Determinism, deterministic)
        if read.problems or graph is None or reporter is None:
            raise ConfigError(read.problems)
        self.fabric = Fabric.from_graph(graph)
        self.active_callbacks = list(self.callbacks)
        self.state, self.progress, self.parts, self.results = TrainerState(), Progress(), Parts(), Results()
        self.record = Record(self, loggers, reporter, shows=progress is not False, asked=logger is not True)
        self._should_stop, self.stop_reason = False, ""
        self.interrupt_requested = False
        self._requests: set[Request] = set()
        self.preemption = Notice(self.look_between_windows)

    @classmethod
    def barebones(cls, **arguments: Any) -> Trainer:
        """Return a Trainer that only runs the loop: no logger, no checkpoints, no progress, no sanity check."""
        return cls(**{"logger": False, "checkpoint": False, "progress": False, "num_sanity_val_steps": 0, **arguments})

    # Stages -----------------------------------------------------------------------------------------------------------

    def fit(
        self,
        task: TaskModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
        restore: RestorePolicy | None = None,
    ) -> FitResult:
        """Train a task.

        Args:
            task: to train.
            train_dataloaders: a loader (any iterable of batches); or a data module.
            val_dataloaders: a loader, a list of them, or a dict that names them.
            datamodule: makes the loaders instead.
            ckpt_path: continue from a checkpoint: `"last"`, `"best"`, a path, or a run folder. `"auto"` continues the
                run of this name, or of this job, if it has a checkpoint, and begins it otherwise; `"hpc"` is the same.
            restore: what to take from it, everything by default; `RestorePolicy(only="model")` starts a new training
                from its weights.

        Raises:
            ValueError, TypeError: task, loaders or settings do not fit together; says what, why and the remedy.
            CheckpointError: the checkpoint cannot be continued from.
            Preempted: a signal asked the process to leave, and the checkpoint to continue from is written; not caught,
                it ends the process with exit code 75.
            NonFiniteError: the loss is not finite and the policy is to stop.
        """
        train_dataloaders, datamodule = one_source(train_dataloaders, datamodule, "train_dataloaders")
        if val_dataloaders is not None:
            one_source(val_dataloaders, datamodule, "val_dataloaders")
        if self.settings.epochs.max is None and self.settings.steps.max is None and math.isinf(self.settings.seconds):
            raise ValueError(no_bound())
        with stage(self, "fit", task, datamodule) as run, opened(self._find(ckpt_path, task)) as reader:
            restoration = restoration_of(reader, restore, named=ckpt_path is not None)
            resumed = reader if restoration is not None and restoration.continues else None
            self.record.open(task, resumed, loggers=restoration is None or restoration.takes("loggers"))
            loop = build_fit(self, run, train_dataloaders, val_dataloaders, restoration)
            self.record.begin(run, resumed)
            self.record.tell(restoration)
            run.call("on_fit_start")
            if loop.validation is not None and resumed is None:
                self._validate_before(run, loop.validation)
            loop.run()
            run.call("on_fit_end")
        return self._result()

    def _validate_before(self, run: Run, validation: EvaluateLoop) -> None:
        """Validate before the first step: a few batches that are forgotten, and whole where the policy says so."""
        if self.settings.sanity_batches:
            with self.staged("sanity"), generators_kept(run.strategy):
                sanity_check(validation, self.settings.sanity_batches)
        if self.settings.validation.on_start:
            with self.staged("validate"), generators_kept(run.strategy):
                validation.evaluate()

    def validate(
        self,
        task: TaskModule,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        restore: RestorePolicy | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate a task on validation data, exactly as `fit` does. Needs no optimizer.

        Args:
            task: to evaluate.
            dataloaders: a loader, a list of them, or a dict that names them.
            datamodule: makes the loaders instead.
            ckpt_path: load these weights first: `"last"`, `"best"`, a path, or a run folder.
            verbose: print a table.
            restore: how names and shapes of the weights are matched, and which set of them is loaded.

        Returns:
            The metrics of each loader.
        """
        return self._evaluate("validate", task, dataloaders, datamodule, ckpt_path, verbose, restore)

    def test(
        self,
        task: TaskModule,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
        restore: RestorePolicy | None = None,
    ) -> list[dict[str, float]]:
        """Evaluate a task on test data; like `validate` with the hooks and the step of the test."""
        return self._evaluate("test", task, dataloaders, datamodule, ckpt_path, verbose, restore)

    def predict(
        self,
        task: TaskModule,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool = True,
        ckpt_path: str | Path | None = None,
        restore: RestorePolicy | None = None,
    ) -> list[Any]:
        """Run `predict_step` over data.

        Args:
            task: to predict with.
            dataloaders: a loader, a list of them, or a dict that names them.
            datamodule: makes the loaders instead.
            return_predictions: False drops each output once the hooks saw it, for data larger than memory.
            ckpt_path: load these weights first.
            restore: how they are matched, as in `validate`.

        Returns:
            What `predict_step` returned for each batch; a list per loader when there are several.
        """
        dataloaders, datamodule = one_source(dataloaders, datamodule, "dataloaders")
        with stage(self, "predict", task, datamodule) as run:
            loaders = self._loaders(run, dataloaders, "predict_dataloader", "predict")
            self.parts.predicted = loaders
            self._load_for_evaluation(run, ckpt_path, restore)
            return predict(run, loaders, self.settings.validation, keep=return_predictions)

    def _evaluate(
        self,
        name: Literal["validate", "test"],
        task: TaskModule,
        dataloaders: Any,
        datamodule: DataModule | None,
        ckpt_path: str | Path | None,
        verbose: bool,
        restore: RestorePolicy | None,
    ) -> list[dict[str, float]]:
        dataloaders, datamodule = one_source(dataloaders, datamodule, "dataloaders")
        with stage(self, name, task, datamodule) as run:
            loaders = self._loaders(
                run, dataloaders, "val_dataloader" if name == "validate" else "test_dataloader", name
            )
            self.parts.evaluated = loaders
            self._load_for_evaluation(run, ckpt_path, restore)
            loop = EvaluateLoop(run, name, loaders, self.settings.validation)
            self.parts.evaluation = loop
            measured = results(loop, loop.evaluate())
        if verbose and self.is_global_zero:
            self.print(render_metrics(measured, stage=name, loaders=[loader.name for loader in loaders if loader.name]))
        return measured

    def _loaders(self, run: Run, given: Any, method: str, name: str) -> Any:
        loaders = user_loaders(run, given, method)
        if loaders is None:
            raise ValueError(
                explain(f"There are no batches to {name}", fix=f"pass dataloaders or a datamodule, or write {method}")
            )
        return limited_loaders(loaders, vars(self.settings.limits)[name], name)

    def _load_for_evaluation(self, run: Run, ckpt_path: str | Path | None, restore: RestorePolicy | None) -> None:
        policy = restore and restore.for_evaluation(str(self.state.stage))
        run.module = run.strategy.setup_module(run.task)
        with opened(self._find(ckpt_path, run.task)) as reader:
            restoration = restoration_of(reader, policy, named=ckpt_path is not None)
            if reader is None or restoration is None:
                return
            restore_weights(run, restoration)
            self.record.tell(restoration)
            if not self.progress.micro_batches and "progress" in reader.state:
                # So that the values have the x of the training that the weights come from.
                self.progress.load_state_dict(reader.state["progress"])

    def _find(self, ckpt_path: str | Path | None, task: TaskModule) -> Found | None:
        self.record.automatic = None
        if ckpt_path in AUTOMATIC and self.parts.stage == "fit":
            self.record.automatic = automatic_run(self.settings.folder, type(task).__name__, os.environ)
            found = find_automatic(self.record.automatic)
            if found is not None:
                self.record.tell_found(found)
            return found
        if ckpt_path is None:
            return None
        ckpt_path = "last" if ckpt_path in AUTOMATIC else ckpt_path
        found = find_checkpoint(ckpt_path, self.settings.folder, self.run_folder, task_class=class_path(task))
        self.record.tell_found(found)
        return found

    def _result(self) -> FitResult:
        fit = self._fit_loop("result")
        return FitResult(
            status=self.state.status,
            steps=self.progress.steps,
            epochs=self.progress.epochs,
            training_loss=fit.mean_training_loss,
            metrics=dict(self.metric_values),
            run_folder=self.run_folder,
            best_checkpoint=self.best_checkpoint,
            last_checkpoint=self.last_checkpoint,
            stop_reason=self.stop_reason,
        )
