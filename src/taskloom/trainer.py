"""`Trainer`: builds the graph, runs a loop. The only class that most users construct."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from taskloom.accelerators import Accelerator
from taskloom.callbacks import Callback
from taskloom.callbacks.base import check_hook_names
from taskloom.checkpoint import CheckpointKeeper, CheckpointPolicy, CheckpointReader, open_checkpoint, write_checkpoint
from taskloom.core.data import DataModule
from taskloom.core.errors import ConfigError, explain
from taskloom.core.interval import IntervalLike, parse_seconds
from taskloom.core.policies import (
    Accumulation,
    Between,
    DebugOptions,
    GradientClipping,
    LimitBatches,
    LogPolicy,
    RunFolder,
    ValidationPolicy,
)
from taskloom.core.progress import Progress
from taskloom.core.seed import seed_everything
from taskloom.core.task import TaskModule
from taskloom.data import named_loaders
from taskloom.fabric import Fabric
from taskloom.loggers import Logger
from taskloom.loggers.group import LoggerGroup
from taskloom.loggers.resolve import resolve_loggers
from taskloom.loop.building import build_fit, keepers_of, user_loaders
from taskloom.loop.evaluate import EvaluateLoop, results, sanity_check
from taskloom.loop.facts import Facts, Parts, StageName, Status, TrainerState
from taskloom.loop.folder import find_checkpoint, make_run_folder, run_folder_of
from taskloom.loop.predict import predict
from taskloom.loop.restoring import restore_weights
from taskloom.loop.run import Run, generators_kept
from taskloom.loop.stage import stage
from taskloom.precision import Precision
from taskloom.report import (
    ProgressReporter,
    batch_line,
    closing_lines,
    next_commands,
    render_metrics,
    resolve_reporter,
    start_lines,
)
from taskloom.strategies import Strategy

Read = TypeVar("Read")
Request = Literal["save", "validate", "log"]


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


@dataclass(frozen=True)
class Settings:
    """The constructor's arguments, read."""

    epochs: Between
    steps: Between
    seconds: float
    accumulation: Accumulation
    clipping: GradientClipping
    validation: ValidationPolicy
    limits: LimitBatches
    logs: LogPolicy
    folder: RunFolder
    policies: tuple[CheckpointPolicy, ...]
    compile: bool | dict[str, Any]


@dataclass
class _Reader:
    """Reads arguments and gathers what is wrong with them, so that all problems are told at once."""

    problems: list[str] = field(default_factory=list)

    def read(self, name: str, convert: Callable[[Any], Read], value: Any, otherwise: Read) -> Read:
        try:
            return convert(value)
        except ConfigError as error:
            self.problems.extend(f"{name}: {problem}" for problem in error.problems)
        except (TypeError, ValueError, ImportError) as error:
            self.problems.append(f"{name}: {error}")
        return otherwise


class Trainer(Facts):
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
            int
            (batches), a float (part of an epoch), None for never; `ValidationPolicy(...)` has the rest.
        limit_batches: use less of the loaders: an int (batches), a float (part), or a mapping by stage (train,
            validate, test,
            predict, overfit).
        fast_dev_run: run one batch (or so many) of every stage and write nothing, to see whether the code runs.
        num_sanity_val_steps: validation batches before training, so that a mistake there shows at once.
        logger: True for CSV, a name (`csv`, `jsonl`, `tensorboard`), a `Logger`, a list of them, or False.
        log_every_n_steps: optimizer steps between flushes of metrics; `"1%"` of the run; `LogPolicy(...)` has the rest.
        callbacks: instances of `Callback`, called in this order.
        checkpoint: True for the newest once per epoch, a `CheckpointPolicy`, several of them, or False.
        run_dir: folder of all runs; `RunFolder(...)` names this one.
        progress: True shows a bar on a terminal and plain lines elsewhere; `rich`, `plain`, `none` or False.
        compile: compile the task's layers with `torch.compile`; a mapping passes its options.
        seed: seed every random generator before anything is built.
        deterministic: let torch use deterministic algorithms only; `"warn"` where it can.
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
        max_epochs: float | Between | None = None,
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
        deterministic: bool | Literal["warn"] = False,
        debug: bool | DebugOptions = False,
    ) -> None:
        reader = _Reader()
        if fast_dev_run:
            limit_batches, max_epochs, max_steps = int(fast_dev_run), 1, None
            logger, checkpoint, num_sanity_val_steps, val_check_interval = False, False, 0, "1 epoch"
        if seed is not None:
            reader.read("seed", seed_everything, seed, 0)
        self.callbacks = list(callbacks)
        reader.read("callbacks", lambda given: [check_hook_names(callback) for callback in given], self.callbacks, [])
        self.settings = Settings(
            epochs=reader.read("max_epochs", Between.of, max_epochs, Between()),
            steps=reader.read("max_steps", Between.of, max_steps, Between()),
            seconds=math.inf if max_time is None else reader.read("max_time", parse_seconds, max_time, math.inf),
            accumulation=reader.read(
                "accumulate_grad_batches", Accumulation.of, accumulate_grad_batches, Accumulation()
            ),
            clipping=reader.read("gradient_clip_val", GradientClipping.of, gradient_clip_val, GradientClipping()),
            validation=reader.read("val_check_interval", ValidationPolicy.of, val_check_interval, ValidationPolicy()),
            limits=reader.read("limit_batches", LimitBatches.of, limit_batches, LimitBatches()),
            logs=reader.read("log_every_n_steps", LogPolicy.of, log_every_n_steps, LogPolicy()),
            folder=RunFolder.of(run_dir),
            policies=reader.read("checkpoint", _policies, checkpoint, ()),
            compile=compile,
        )
        self.logger_group = LoggerGroup(reader.read("logger", resolve_loggers, logger, []))
        self.reporter = reader.read("progress", resolve_reporter, progress, resolve_reporter(False))
        self.shows_progress = progress is not False
        graph = {
            "accelerator": accelerator,
            "devices": devices,
            "num_nodes": num_nodes,
            "strategy": strategy,
            "precision": precision,
        }
        fabric = reader.read("graph", lambda given: Fabric(**given), graph, None)
        if reader.problems or fabric is None:
            raise ConfigError([problem.removeprefix("graph: ") for problem in reader.problems])
        self.fabric = fabric
        self.debug, self.deterministic = DebugOptions.of(debug), deterministic
        self.num_sanity_val_steps = num_sanity_val_steps
        self.state, self.progress, self.parts = TrainerState(), Progress(), Parts()
        self.config_text: str | None = None
        self.run_folder: Path | None = None
        self.run_id = secrets.token_hex(8)
        self.should_stop, self.stop_reason = False, ""
        self.interrupt_requested = False
        self._requests: set[Request] = set()
        self._started_at, self._first_step = 0.0, 0

    @classmethod
    def barebones(cls, **arguments: Any) -> Trainer:
        """Return a Trainer that does nothing beside the loop: no logger, no checkpoints, no progress, no sanity
        check.
        """
        return cls(**{"logger": False, "checkpoint": False, "progress": False, "num_sanity_val_steps": 0, **arguments})

    # Stages -----------------------------------------------------------------------------------------------------------

    def fit(
        self,
        task: TaskModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
    ) -> FitResult:
        """Train a task.

        Args:
            task: to train.
            train_dataloaders: a loader (any iterable of batches); or a data module.
            val_dataloaders: a loader, a list of them, or a dict that names them.
            datamodule: makes the loaders instead.
            ckpt_path: continue from a checkpoint: `"last"`, `"best"`, a path, or a run folder.

        Raises:
            ValueError, TypeError: task, loaders or settings do not fit together; says what, why and the remedy.
            CheckpointError: the checkpoint cannot be continued from.
            NonFiniteError: the loss is not finite and the policy is to stop.
        """
        if isinstance(train_dataloaders, DataModule):
            train_dataloaders, datamodule = None, train_dataloaders
        if self.settings.epochs.max is None and self.settings.steps.max is None and math.isinf(self.settings.seconds):
            raise ValueError(
                explain(
                    "Nothing bounds the training",
                    why="max_epochs, max_steps and max_time are all None",
                    fix="pass max_epochs=10, max_steps=10_000 or max_time='2 hours' to the Trainer; max_epochs=-1 "
                    "trains until it is stopped",
                )
            )
        with stage(self, "fit", task, datamodule) as run:
            reader = self._open(ckpt_path)
            self._open_folder(task, reader)
            loop = build_fit(self, run, train_dataloaders, val_dataloaders, reader)
            self._announce(run, reader)
            run.call("on_fit_start")
            if loop.validation is not None and self.num_sanity_val_steps and reader is None:
                with self.staged("sanity"), generators_kept(run.strategy):
                    sanity_check(loop.validation, self.num_sanity_val_steps)
            if loop.validation is not None and self.settings.validation.on_start and reader is None:
                with self.staged("validate"), generators_kept(run.strategy):
                    loop.validation.evaluate()
            self._started_at, self._first_step = time.perf_counter(), self.progress.steps
            loop.run()
            run.call("on_fit_end")
        return self._result()

    def validate(
        self,
        task: TaskModule,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
    ) -> list[dict[str, float]]:
        """Evaluate a task on validation data, exactly as `fit` does. Needs no optimizer.

        Args:
            task: to evaluate.
            dataloaders: a loader, a list of them, or a dict that names them.
            datamodule: makes the loaders instead.
            ckpt_path: load these weights first: `"last"`, `"best"`, a path, or a run folder.
            verbose: print a table.

        Returns:
            The metrics of each loader.
        """
        return self._evaluate("validate", task, dataloaders, datamodule, ckpt_path, verbose)

    def test(
        self,
        task: TaskModule,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        ckpt_path: str | Path | None = None,
        verbose: bool = True,
    ) -> list[dict[str, float]]:
        """Evaluate a task on test data; like `validate` with the hooks and the step of the test."""
        return self._evaluate("test", task, dataloaders, datamodule, ckpt_path, verbose)

    def predict(
        self,
        task: TaskModule,
        dataloaders: Any = None,
        datamodule: DataModule | None = None,
        return_predictions: bool = True,
        ckpt_path: str | Path | None = None,
    ) -> list[Any]:
        """Run `predict_step` over data.

        Args:
            task: to predict with.
            dataloaders: a loader, a list of them, or a dict that names them.
            datamodule: makes the loaders instead.
            return_predictions: False drops each output once the hooks saw it, for data larger than memory.
            ckpt_path: load these weights first.

        Returns:
            What `predict_step` returned for each batch; a list per loader when there are several.
        """
        if isinstance(dataloaders, DataModule):
            dataloaders, datamodule = None, dataloaders
        with stage(self, "predict", task, datamodule) as run:
            loaders = self._loaders(run, dataloaders, "predict_dataloader", "predict")
            self.parts.predicted = loaders
            self._load_for_evaluation(run, ckpt_path)
            return predict(run, loaders, self.settings.validation, keep=return_predictions)

    def _evaluate(
        self,
        name: Literal["validate", "test"],
        task: TaskModule,
        dataloaders: Any,
        datamodule: DataModule | None,
        ckpt_path: str | Path | None,
        verbose: bool,
    ) -> list[dict[str, float]]:
        if isinstance(dataloaders, DataModule):
            dataloaders, datamodule = None, dataloaders
        with stage(self, name, task, datamodule) as run:
            loaders = self._loaders(
                run, dataloaders, "val_dataloader" if name == "validate" else "test_dataloader", name
            )
            self.parts.evaluated = loaders
            self._load_for_evaluation(run, ckpt_path)
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
        return named_loaders(loaders, vars(self.settings.limits)[name], name)

    def _load_for_evaluation(self, run: Run, ckpt_path: str | Path | None) -> None:
        run.module = run.strategy.setup_module(run.task)
        reader = self._open(ckpt_path)
        if reader is not None:
            restore_weights(run, reader)
            reader.close()

    # Control ----------------------------------------------------------------------------------------------------------

    def request(self, what: Request) -> None:
        """Ask for something at the next step, beside its interval: `"save"`, `"validate"` or `"log"`."""
        if what not in ("save", "validate", "log"):
            raise ValueError(
                explain(
                    "A Trainer takes no such request",
                    got=what,
                    fix="use 'save', 'validate' or 'log', or set should_stop = True",
                )
            )
        self._requests.add(what)
        self._wake()

    @property
    def should_stop(self) -> bool:
        """Set it to True to end training at the next step; bounds from below (`Between`) are respected."""
        return self._should_stop

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        self._should_stop = stop
        if stop:
            self._wake()

    def save_checkpoint(self, path: str | Path, weights_only: bool = False) -> None:
        """Write a checkpoint of the fit in hand, or the last one, to `path` (a folder), and return once it is
        verified.
        """
        saver = self.parts.saver
        if saver is None:
            raise RuntimeError(
                explain(
                    "There is nothing to save yet",
                    why="no fit has been started",
                    fix="call it in a hook of fit or after it",
                )
            )
        write_checkpoint(Path(path), saver.content(weights_only=weights_only), weights_only=weights_only)

    def add_callback(self, callback: Callback) -> None:
        """Add a callback to the stages to come."""
        check_hook_names(callback)
        self.callbacks.append(callback)

    def pop_callback(self, callback: Callback | type[Callback]) -> Callback | None:
        """Remove a callback, or the first of a class, and return it; None where there is none."""
        found = next(
            (
                each
                for each in self.callbacks
                if each is callback or (isinstance(callback, type) and isinstance(each, callback))
            ),
            None,
        )
        if found is not None:
            self.callbacks.remove(found)
        return found

    def remove_callback(self, callback: Callback | type[Callback]) -> None:
        """Remove a callback, or the first of a class."""
        self.pop_callback(callback)

    def manual_backward(self, loss: Tensor, *arguments: Any, **keywords: Any) -> None:
        """See `TaskModule.manual_backward`."""
        fit = self._fit_loop("manual_backward")
        if fit.run_parts.task.automatic_optimization:
            raise RuntimeError(
                explain(
                    "manual_backward was called in automatic optimisation",
                    why="the loop runs the backward pass itself",
                    fix="return the loss, or set self.automatic_optimization = False in __init__",
                )
            )
        fit.optimization.backward(loss, *arguments, **keywords)

    def clip_gradients(
        self, optimizer: Optimizer, value: float | GradientClipping | None = None, algorithm: str | None = None
    ) -> None:
        """See `TaskModule.clip_gradients`."""
        clipping = self.settings.clipping if value is None else GradientClipping.of(value)
        if algorithm == "value":
            clipping = GradientClipping(max_value=clipping.max_norm or clipping.max_value)
        fit = self._fit_loop("clip_gradients")
        fit.optimization.clip(
            next((each.optimizer for each in fit.optimization.task_optimizers if each is optimizer), optimizer),
            clipping,
        )

    def print(self, *values: object, sep: str = " ") -> None:
        """Print above the progress display, on rank 0."""
        if self.is_global_zero:
            self.reporter.message(sep.join(str(value) for value in values))

    @property
    def log_dir(self) -> Path | None:
        """Lightning's name of `run_folder`."""
        return self.run_folder

    # What loops and stages call ---------------------------------------------------------------------------------------

    def begin(
        self, name: StageName, task: TaskModule, datamodule: DataModule | None, callbacks: Sequence[Callback]
    ) -> None:
        """A stage begins: forget the last one."""
        self.fabric.launch()
        self.parts = Parts()
        self.active_callbacks = list(callbacks)
        self.state = TrainerState("running", name)
        self.interrupt_requested = False
        if name == "fit":
            self.should_stop, self.stop_reason = False, ""
            self._requests.clear()
            self.progress = Progress()

    def succeeded(self) -> None:
        """A stage ended well."""
        stopped = self.state.stage == "fit" and self.should_stop
        if self.state.stage == "fit" and not self.stop_reason and self.parts.limits is not None:
            self.stop_reason = "should_stop was set" if stopped else self.parts.limits.reason(self.progress)
        self.state.status = "stopped" if stopped else "finished"
        self._close_loggers()

    def failed(self, error: BaseException) -> None:
        """A stage ended badly; after Ctrl-C the weights are whole, so they are saved."""
        if isinstance(error, KeyboardInterrupt) and self.parts.saver is not None:
            self.stop_reason = "Ctrl-C"
            self.parts.saver.at_end()
        self._close_loggers()

    @contextmanager
    def staged(self, name: StageName) -> Generator[None, None, None]:
        """Be in another stage for the length of a `with` block."""
        before, self.state.stage = self.state.stage, name
        try:
            yield
        finally:
            self.state.stage = before

    def take_requests(self) -> set[Request]:
        """Return what was asked for, once.

        Raises:
            KeyboardInterrupt: the user pressed Ctrl-C; this is the moment between two steps that it waited for.
        """
        if self.interrupt_requested:
            raise KeyboardInterrupt
        taken, self._requests = self._requests, set()
        return taken

    def request_interrupt(self) -> None:
        """Ctrl-C was pressed while a batch was being trained on."""
        self.interrupt_requested = True
        self._wake()

    @property
    def in_training_batch(self) -> bool:
        """Whether weights or gradients may be half changed now."""
        return self.state.stage == "fit" and self.parts.fit is not None and self.parts.fit.running

    def report(self, metrics: Mapping[str, float], hooks: Sequence[Callable[..., Any]]) -> None:
        """Send flushed metrics to loggers and callbacks."""
        if not metrics:
            return
        shown = (
            {name: value for name, value in metrics.items() if math.isfinite(value)}
            if self.settings.logs.nan_filter
            else metrics
        )
        if self.is_global_zero:
            self.logger_group.log_metrics(shown, step=self.progress.steps, epoch=self.progress.epochs)
        for hook in hooks:
            hook(metrics, self.progress.steps)

    def make_keepers(self, folder: str) -> list[CheckpointKeeper]:
        """Make the keepers of a fit from the Trainer's policies and those that callbacks bring."""
        brought = [policy for callback in self.active_callbacks for policy in callback.checkpoint_policies()]
        policies = [*self.settings.policies, *brought]
        if self.run_folder is not None:
            self.parts.keepers = keepers_of(self.run_folder / folder, policies, self.run_id)
        return self.parts.keepers

    def _wake(self) -> None:
        # The constructor sets should_stop before there are parts.
        parts = vars(self).get("parts")
        if parts is not None and parts.fit is not None:
            parts.fit.wake()

    # Folders, loggers, lines ------------------------------------------------------------------------------------------

    def _open(self, ckpt_path: str | Path | None) -> CheckpointReader | None:
        if ckpt_path is None:
            return None
        return open_checkpoint(find_checkpoint(ckpt_path, self.settings.folder, self.run_folder), verify=True)

    def _open_folder(self, task: TaskModule, reader: CheckpointReader | None) -> None:
        writes = self.logger_group.loggers or self.settings.policies
        resumed = run_folder_of(reader.path) if reader is not None else None
        if resumed is not None and reader is not None:
            self.run_folder, self.run_id = resumed, reader.manifest.run_id
        elif writes:
            self.run_folder = make_run_folder(self.settings.folder, type(task).__name__)
            self.run_id = secrets.token_hex(8)
        if self.run_folder is None or not self.is_global_zero:
            return
        if self.config_text is not None:
            number = len(list(self.run_folder.glob("config*.yaml")))
            (self.run_folder / (f"config.{number}.yaml" if number else "config.yaml")).write_text(self.config_text)
        if reader is not None:
            self.logger_group.load_state_dict(reader.state.get("loggers", {}))
        self.logger_group.start(
            self.run_folder,
            run_name=self.run_folder.name,
            project=self.settings.folder.project,
            resumed=resumed is not None,
        )

    def _announce(self, run: Run, reader: CheckpointReader | None) -> None:
        if not self.is_global_zero:
            return
        if self.settings.logs.hyperparameters:
            owners = [owner for owner in (run.datamodule, run.task) if owner is not None and owner.logs_hparams]
            merged = {name: value for owner in owners for name, value in owner.hparams_initial.items()}
            if merged:
                self.logger_group.log_hyperparameters(merged)
        if not self.shows_progress:
            return
        strategy = self.strategy
        self.print(
            start_lines(
                device=self.accelerator.describe(self.device),
                precision=f"{self.precision}",
                strategy=f"{strategy.name}, {strategy.world_size} process" + ("es" if strategy.world_size > 1 else ""),
                batch=batch_line(
                    getattr(self.train_dataloader, "batch_size", None),
                    self.settings.accumulation.at_epoch(self.progress.epochs),
                    strategy.data_parallel_size,
                ),
                run_folder=self.run_folder,
                resumed_from=reader.path if reader is not None else None,
            )
        )

    def _close_loggers(self) -> None:
        if self.state.stage == "fit" and self.is_global_zero:
            self.logger_group.finish(self.state.status)
            self.reporter.close()
            self._print_closing()

    def _print_closing(self) -> None:
        if not self.shows_progress or self.parts.fit is None:
            return
        checkpoint = self.best_checkpoint or self.last_checkpoint
        self.reporter.message(
            closing_lines(
                status=self.state.status,
                steps=self.progress.steps,
                epochs=self.progress.epochs,
                seconds=time.perf_counter() - self._started_at,
                steps_this_run=self.progress.steps - self._first_step,
                reason=self.stop_reason,
                metrics=self._metrics(),
                run_folder=self.run_folder,
                best=self.best_checkpoint,
                last=self.last_checkpoint,
                logs=self.logger_group.locations(),
                next_commands=next_commands(
                    config=self.run_folder / "config.yaml"
                    if self.run_folder is not None and self.config_text is not None
                    else None,
                    checkpoint=checkpoint,
                    resume=self.state.status in ("interrupted", "failed"),
                    tests=type(self.task_module).test_step is not TaskModule.test_step,
                ),
            )
        )

    def _result(self) -> FitResult:
        fit = self._fit_loop("result")
        return FitResult(
            status=self.state.status,
            steps=self.progress.steps,
            epochs=self.progress.epochs,
            training_loss=fit.mean_training_loss,
            metrics=dict(self._metrics()),
            run_folder=self.run_folder,
            best_checkpoint=self.best_checkpoint,
            last_checkpoint=self.last_checkpoint,
            stop_reason=self.stop_reason,
        )


def _policies(checkpoint: Any) -> tuple[CheckpointPolicy, ...]:
    if checkpoint is True:
        return (CheckpointPolicy(),)
    if checkpoint is False or checkpoint is None:
        return ()
    given = [checkpoint] if isinstance(checkpoint, CheckpointPolicy) else list(checkpoint)
    for policy in given:
        if not isinstance(policy, CheckpointPolicy):
            raise TypeError(explain("checkpoint takes True, False, a CheckpointPolicy or a list of them", got=policy))
    return tuple(given)
