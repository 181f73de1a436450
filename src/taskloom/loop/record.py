"""What a run leaves behind and shows: its folder, its loggers, the lines at its start and at its end."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

from taskloom.callbacks import ModelSummary
from taskloom.checkpoint import CheckpointKeeper, CheckpointReader
from taskloom.checkpoint.files import replace_file
from taskloom.checkpoint.mirror import LogMirror
from taskloom.checkpoint.place import children, is_remote
from taskloom.core.errors import TaskloomWarning, explain
from taskloom.core.hooks import overridden
from taskloom.core.policies import RunFolder
from taskloom.core.task import TaskModule
from taskloom.loggers.group import LoggerGroup
from taskloom.loop.folder import Found, make_run_folder, require_shared, run_folder_of
from taskloom.loop.run import Run
from taskloom.report import ProgressReporter, batch_line, closing_lines, next_commands, start_lines, summarize

if TYPE_CHECKING:
    from taskloom.loop.restoring import Restoration
    from taskloom.trainer import Trainer


class Record:
    """Writes and prints for a Trainer, on rank 0.

    Args:
        trainer: whose.
        loggers: all of its.
        reporter: prints.
        shows: whether lines are printed at the start and at the end.
        asked: the loggers were named rather than there by default, so an evaluation alone logs to them too.

    Attributes:
        folder: of the run, None until one is needed.
        automatic: the run that `ckpt_path="auto"` stands for; None where it was not asked for.
        run_id: told apart from every other run's; checkpoints carry it.
        config_text: YAML of the resolved configuration.
    """

    def __init__(
        self, trainer: Trainer, loggers: LoggerGroup, reporter: ProgressReporter, *, shows: bool, asked: bool
    ) -> None:
        self._trainer, self.loggers, self.reporter, self.shows, self._asked = trainer, loggers, reporter, shows, asked
        self.folder: Path | None = None
        self.automatic: RunFolder | None = None
        self._mirror: LogMirror | None = None
        self.run_id = secrets.token_hex(8)
        self.config_text: str | None = None
        self._started_at, self._first_step = 0.0, 0
        self._started = self._unfinished = False

    def open(self, task: TaskModule, reader: CheckpointReader | None, *, loggers: bool = True) -> None:
        """Choose the folder of a fit, or go on in the one that a checkpoint lies in, and start the loggers.

        Args:
            task: that is trained.
            reader: of the checkpoint that the run goes on from.
            loggers: let them go on from their state in it.
        """
        trainer, resumed = self._trainer, False
        self.folder, self.run_id, self._started = None, secrets.token_hex(8), False
        if trainer.settings.dry:
            return
        found = run_folder_of(reader.path) if reader is not None else None
        if found is not None and reader is not None:
            self.folder, self.run_id, resumed = found, reader.manifest.run_id, True
        elif self.loggers.loggers or trainer.checkpoint_policies:
            self._make_folder(task)
        if self.folder is None or not trainer.is_global_zero:
            return
        if self.config_text is not None:
            _write_config(self.folder, self.config_text)
        if reader is not None and loggers:
            self.loggers.load_state_dict(reader.state.get("loggers", {}))
        self._start_loggers(self.folder, resumed=resumed)

    def _make_folder(self, task: TaskModule) -> None:
        """Let rank 0 make the folder of a new run, which every machine must see."""
        trainer = self._trainer
        folder = self._new_folder(task) if trainer.is_global_zero else None
        self.folder, self.run_id = trainer.strategy.broadcast((folder, self.run_id))
        if self.folder is not None and not trainer.is_global_zero:
            require_shared(self.folder, self.run_id, trainer.strategy.node_rank)

    def _new_folder(self, task: TaskModule) -> Path:
        choice = self.automatic or self._trainer.settings.folder
        return make_run_folder(choice, type(task).__name__, task_class=class_path(task), run_id=self.run_id)

    def _start_loggers(self, folder: Path, *, resumed: bool) -> None:
        self._started = self._unfinished = True
        choice, self._mirror = self._trainer.settings.folder, None
        logs = folder
        if is_remote(folder) and self.loggers.loggers:
            self._mirror = LogMirror(folder, Path(choice.log_root))
            logs = self._mirror.local
            if resumed:
                self._mirror.fetch()
        self.loggers.start(logs, run_name=folder.name, project=choice.project, resumed=resumed)

    def copy_logs(self) -> None:
        """Copy what loggers wrote to a run folder that lies in a store; nothing for one that does not."""
        if self._mirror is not None:
            self._mirror.copy()

    def tell_found(self, found: Found) -> None:
        """Say which run and checkpoint were chosen where there was a choice, and warn of damage."""
        if not self._trainer.is_global_zero:
            return
        damaged = [each for each in found.passed_over if each.damaged]
        if damaged:
            warn(
                explain(
                    f"{found.path} is continued from, because newer checkpoints are damaged",
                    got="; ".join(map(str, damaged)),
                    fix="check the disk; what was passed over is not deleted",
                ),
                TaskloomWarning,
                stacklevel=4,
            )
        if self.shows and found.lines():
            self.reporter.message("\n".join(found.lines()))

    def begin(self, run: Run, reader: CheckpointReader | None) -> None:
        """Log the hyper-parameters and print what was chosen."""
        trainer = self._trainer
        self._started_at, self._first_step = time.perf_counter(), trainer.progress.steps
        if not trainer.is_global_zero:
            return
        owners = [owner for owner in (run.datamodule, run.task) if owner is not None and owner.logs_hparams]
        merged = {name: value for owner in owners for name, value in owner.hparams_initial.items()}
        if merged and trainer.settings.logs.hyperparameters:
            self.loggers.log_hyperparameters(merged)
        if not self.shows:
            return
        strategy, precision = trainer.strategy, trainer.precision
        processes = f"{strategy.world_size} process{'es' if strategy.world_size > 1 else ''}"
        lines = start_lines(
            device=trainer.accelerator.describe(trainer.device),
            precision=f"{precision.name}: {precision.policy}",
            strategy=f"{strategy.name}, {processes}",
            batch=batch_line(trainer.micro_batch_size, trainer.accumulate_grad_batches, strategy.data_parallel_size),
            chosen=trainer.fabric.graph.chosen,
            run_folder=self.folder,
            resumed_from=reader.path if reader is not None else None,
        )
        self.reporter.message(lines)
        if not any(isinstance(callback, ModelSummary) for callback in trainer.active_callbacks):
            self.reporter.message(summarize(run.task).render())

    def tell(self, restoration: Restoration | None) -> None:
        """Print what of a checkpoint was not restored as it was saved."""
        if restoration is not None and self.shows and self._trainer.is_global_zero:
            lines = restoration.report.lines()
            if lines:
                self.reporter.message("\n".join(lines))

    def log(self, metrics: Mapping[str, float], hooks: Sequence[Callable[..., Any]]) -> None:
        """Send flushed metrics to loggers and callbacks."""
        if not metrics:
            return
        trainer, shown = self._trainer, dict(metrics)
        if trainer.settings.logs.nan_filter:
            shown = {name: value for name, value in metrics.items() if isfinite(value)}
        if trainer.is_global_zero and self._may_log():
            self.loggers.log_metrics(shown, step=trainer.progress.steps, epoch=trainer.progress.epochs)
        for hook in hooks:
            hook(metrics, trainer.progress.steps)

    def _may_log(self) -> bool:
        """Return whether there are started loggers; an evaluation without a fit before it starts those asked for."""
        trainer = self._trainer
        if not self._started and self._asked and self.loggers.loggers and not trainer.settings.dry:
            self.folder = self._new_folder(trainer.task_module)
            self._start_loggers(self.folder, resumed=False)
        return self._started

    def _log_places(self) -> list[str]:
        places = self.loggers.locations()
        if self._mirror is not None and places:
            lag = "" if self._mirror.is_complete else ", which lag behind: the store could not be reached"
            places.append(f"{self.folder} (copies of the files above{lag})")
        return places

    def end(self) -> None:
        """Close the loggers and print where everything is and what to type next."""
        trainer = self._trainer
        if not trainer.is_global_zero:
            return
        if self._unfinished:
            self._unfinished = False
            self.loggers.finish(trainer.state.status)
            self.copy_logs()
        self.reporter.close()
        if not self.shows:
            return
        if trainer.parts.fit is None:
            if trainer.state.status == "preempted":
                self.reporter.message(f"Preempted   {trainer.stop_reason}")
            return
        configured = self.config_text is not None and self.folder is not None
        resume = trainer.state.status in ("interrupted", "preempted", "failed")
        newest, best = trainer.last_checkpoint, trainer.best_checkpoint
        lines = closing_lines(
            status=trainer.state.status,
            steps=trainer.progress.steps,
            epochs=trainer.progress.epochs,
            seconds=time.perf_counter() - self._started_at,
            steps_this_run=trainer.progress.steps - self._first_step,
            reason=trainer.stop_reason,
            aside=trainer.parts.fit.aside.seconds,
            metrics=trainer.metric_values,
            run_folder=self.folder,
            best=_near(trainer.best_checkpoint),
            best_score=_score(trainer.checkpoints),
            last=_near(trainer.last_checkpoint),
            logs=self._log_places(),
            next_commands=next_commands(
                config=self.folder / "config.yaml" if configured and self.folder is not None else None,
                checkpoint=_near(newest if resume else best or newest),
                resume=resume,
                viewers=[logger.viewer for logger in self.loggers],
                tests=overridden(trainer.task_module, "test_step", TaskModule) is not None,
            ),
        )
        self.reporter.message(lines)


def class_path(task: TaskModule) -> str:
    """Return the import path of a task's class."""
    return f"{type(task).__module__}.{type(task).__qualname__}"


def _score(keepers: Sequence[CheckpointKeeper]) -> str:
    """Return what makes the best checkpoint the best."""
    ranked = (keeper for keeper in keepers if keeper.best_score is not None)
    return next((f"{keeper.policy.monitor} {keeper.best_score:.4g}" for keeper in ranked), "")


def _near(path: Path | None) -> Path | None:
    """Return a path as a person here would type it."""
    if path is None or is_remote(path):
        return path
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _write_config(folder: Path, text: str) -> None:
    """Keep the configuration of every start: a resumed run adds `config.1.yaml` and leaves the first as it is."""
    taken = {path.name for path, _ in children(folder)}
    names = ("config.yaml", *(f"config.{number}.yaml" for number in range(1, len(taken) + 2)))
    free = next(name for name in names if name not in taken)
    replace_file(folder / free, text.encode(), fsync=False)
