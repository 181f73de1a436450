"""`ModelCheckpoint`: Lightning's way of saying what a `CheckpointPolicy` says."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from taskloom.callbacks.base import Callback
from taskloom.checkpoint import CheckpointKeeper, CheckpointPolicy
from taskloom.core.errors import ConfigError, explain

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

# What Lightning offers and this project decides by itself, with what to write instead.
_ELSEWHERE = {
    "dirpath": "checkpoints go below the run's folder: Trainer(run_dir=...) or RunFolder(name=...) chooses that",
    "filename": "checkpoints are called step-00001000, and their metrics stand in manifest.json; read best_model_path",
    "auto_insert_metric_name": "metrics stand in a checkpoint's manifest.json, not in its name",
    "enable_version_counter": "a run has its own folder, so nothing is overwritten",
    "save_on_train_epoch_end": "a checkpoint is written after the validation that is due at its step",
}


class ModelCheckpoint(Callback):
    """Adds a `CheckpointPolicy` to the `Trainer`'s own; `Trainer(checkpoint=CheckpointPolicy(...))` says the same.

    Args:
        dirpath: not offered; the error says what to use.
        filename: not offered.
        monitor: name of the logged metric that says which checkpoints are best.
        verbose: print when a checkpoint is written.
        save_last: keep the newest one as well.
        save_top_k: how many of the best to keep; -1 for all, 0 for none. Without a monitor 1 keeps the newest.
        save_weights_only: leave out what a resume needs.
        mode: whether a lower ("min") or a higher ("max") metric is better.
        every_n_train_steps: save every so many optimizer steps.
        train_time_interval: save this often in time.
        every_n_epochs: save every so many epochs; 1 by default.
        save_on_exception: save one more when training fails, as `OnExceptionCheckpoint` does; Ctrl-C always saves.
        save_on_train_epoch_end: not offered.
        auto_insert_metric_name: not offered.
        enable_version_counter: not offered.

    Raises:
        ConfigError: an argument is not offered here, or several intervals are given; lists every problem.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_weights_only: bool = False,
        mode: Literal["min", "max"] = "min",
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_exception: bool = False,
        save_on_train_epoch_end: bool | None = None,
        auto_insert_metric_name: bool = True,
        enable_version_counter: bool = True,
    ) -> None:
        changed = {
            "dirpath": dirpath is not None,
            "filename": filename is not None,
            "auto_insert_metric_name": not auto_insert_metric_name,
            "enable_version_counter": not enable_version_counter,
            "save_on_train_epoch_end": save_on_train_epoch_end is False,
        }
        problems = [
            explain(f"ModelCheckpoint has no {name}", fix=f"leave it out; {_ELSEWHERE[name]}")
            for name, given in changed.items()
            if given
        ]
        intervals = {
            "every_n_train_steps": every_n_train_steps,
            "train_time_interval": train_time_interval,
            "every_n_epochs": every_n_epochs,
        }
        given = {name: value for name, value in intervals.items() if value}
        if len(given) > 1:
            problems.append(
                explain(
                    "ModelCheckpoint takes one interval", got=given, fix="use two ModelCheckpoints for two intervals"
                )
            )
        if problems:
            raise ConfigError(problems)
        self.monitor = monitor
        self.saves_on_exception = save_on_exception
        self.mode, self.verbose = mode, verbose
        self.save_top_k, self.save_last = save_top_k, save_last
        self._keeper: CheckpointKeeper | None = None
        newest = 1 if save_last or (monitor is None and save_top_k == 1) else 0
        self.policy: CheckpointPolicy | None = None
        if newest or save_top_k:
            self.policy = CheckpointPolicy(
                monitor=monitor,
                mode=mode,
                save_top_k=save_top_k,
                keep_last=newest,
                every=_every(every_n_train_steps, train_time_interval, every_n_epochs),
                weights_only=save_weights_only,
            )

    @property
    def state_key(self) -> str:
        """Several of them may save by several metrics."""
        return f"ModelCheckpoint(policy={self.policy!r})"

    def checkpoint_policies(self) -> tuple[CheckpointPolicy, ...]:
        """Return the policy that the arguments mean."""
        return () if self.policy is None else (self.policy,)

    def on_fit_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Find what keeps the checkpoints of this policy."""
        self._keeper = next((keeper for keeper in trainer.checkpoints if keeper.policy is self.policy), None)

    def on_save_checkpoint(self, trainer: Trainer, task: TaskModule, checkpoint: dict[str, Any]) -> None:
        """Say so."""
        if self.verbose:
            trainer.print(f"ModelCheckpoint: saving step {trainer.global_step}")

    @property
    def best_model_path(self) -> str:
        """The best checkpoint, without a monitor the newest; empty when there is none yet."""
        if self._keeper is None:
            return ""
        path = self._keeper.best_path if self.monitor is not None else self._keeper.last_path
        return "" if path is None else str(path)

    @property
    def best_model_score(self) -> Tensor | None:
        """Its metric, 0-dim float64."""
        score = None if self._keeper is None else self._keeper.best_score
        return None if score is None else torch.tensor(score, dtype=torch.float64)

    @property
    def last_model_path(self) -> str:
        """The newest checkpoint; empty when there is none yet."""
        path = None if self._keeper is None else self._keeper.last_path
        return "" if path is None else str(path)

    @property
    def best_k_models(self) -> dict[str, Tensor]:
        """The kept checkpoints that have a metric, best first, with it."""
        if self._keeper is None:
            return {}
        kept = {path.name: path for path in self._keeper.kept}
        entries = [
            (value, kept[name])
            for name, _, value in self._keeper.state_dict()["entries"]
            if value is not None and name in kept
        ]
        entries.sort(key=lambda entry: -entry[0] if self.mode == "max" else entry[0])
        most = len(entries) if self.save_top_k == -1 else self.save_top_k
        return {str(path): torch.tensor(value, dtype=torch.float64) for value, path in entries[:most]}


def _every(steps: int | None, seconds: timedelta | None, epochs: int | None) -> str | timedelta:
    if steps:
        return f"{steps} steps"
    return seconds or f"{epochs or 1} epochs"
