"""What users and loops tell a `Trainer`: to stop, to save, to add a callback; and the turns its state takes."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from taskloom.callbacks import Callback
from taskloom.callbacks.base import check_hook_names
from taskloom.checkpoint import CheckpointKeeper, CheckpointPolicy
from taskloom.checkpoint.place import place_of
from taskloom.core.errors import NonFiniteError, Preempted, explain
from taskloom.core.policies import GradientClipping
from taskloom.core.progress import Progress
from taskloom.loop.building import keepers_of
from taskloom.loop.facts import Facts, Parts, StageName, TrainerState
from taskloom.loop.metrics_files import Results, render_results, write_results
from taskloom.loop.preemption import Notice, requeue, settings_of
from taskloom.loop.statistics import recompute_batch_norm

if TYPE_CHECKING:
    from taskloom.loop.fit import FitLoop
    from taskloom.loop.saving import Saver

Request = Literal["save", "validate", "log"]


class Control(Facts):
    """The verbs of a `Trainer` beside its stages; the constructor of `Trainer` fills what they act on."""

    results: Results
    stop_reason: str
    interrupt_requested: bool
    preemption: Notice
    _should_stop: bool
    _requests: set[Request]

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
        self.look_between_windows()

    @property
    def requests(self) -> set[Request]:
        """What was asked for and has not been done yet."""
        return self._requests

    @property
    def should_stop(self) -> bool:
        """Set it to True to end training at the next step; bounds from below (`Between`) are respected."""
        return self._should_stop

    @should_stop.setter
    def should_stop(self, stop: bool) -> None:
        self._should_stop = stop
        if stop:
            self.look_between_windows()

    def save_checkpoint(self, path: str | Path, weights_only: bool = False) -> None:
        """Write a checkpoint of the fit in hand, or the last one, to the folder `path`; return once it is verified.

        The disk is made to confirm it unless a policy of the run says `fsync=False`.

        Args:
            path: a folder, or a URL such as `s3://bucket/kept/step-1000`.
            weights_only: leave out what only a training needs.
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
        with saver.attached() if self.state.stage is None else nullcontext():
            saver.save_elsewhere(place_of(path, self.settings.folder), weights_only=weights_only)

    def log_artifact(self, path: str | Path, name: str | None = None) -> None:
        """Keep a file or folder with the run, in every logger that can; callbacks see it first in `on_push_begin`.

        Args:
            path: of what exists.
            name: that the loggers shall know it by.

        Raises:
            FileNotFoundError: there is nothing at `path`.
        """
        found = Path(path)
        if not found.exists():
            raise FileNotFoundError(explain(f"There is nothing at {found} to keep with the run"))
        for hook in self._run("log_artifact").hooks.of_callbacks("on_push_begin"):
            hook(found)
        if self.is_global_zero:
            self.record.loggers.log_artifact(found, name=name)

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
        fit = self._fit_loop("clip_gradients")
        fit.optimization.clip(
            next((each.optimizer for each in fit.optimization.task_optimizers if each is optimizer), optimizer),
            self._clipping(value, algorithm),
        )

    def _clipping(self, value: float | GradientClipping | None, algorithm: str | None) -> GradientClipping:
        """Return how to clip: a number replaces the bound of the Trainer's setting and keeps the rest of it."""
        if algorithm not in (None, "norm", "value"):
            raise ValueError(
                explain("Gradients are clipped by 'norm' or by 'value'", got=algorithm, fix="leave it out for 'norm'")
            )
        own = self.settings.clipping
        if isinstance(value, GradientClipping):
            return value
        bound = value if value is not None else own.max_norm or own.max_value
        by_value = algorithm == "value" or (algorithm is None and value is None and own.max_value is not None)
        return replace(own, max_norm=None if by_value else bound, max_value=bound if by_value else None)

    def pause_schedulers(self, paused: bool = True) -> None:
        """Let the schedulers of `configure_optimizers` rest, while something else sets the learning rates of a fit."""
        self._fit_loop("pause_schedulers").optimization.schedulers.paused = paused

    def recompute_batch_norm(self) -> None:
        """Replace the running statistics of batch normalisation by those of one pass over the training data.

        For weights that were not trained with the statistics they are to be used with, such as averages. The pass calls
        `training_step` without gradients, what it logs is forgotten. To be called in `on_train_end`.
        """
        self._fit_loop("recompute_batch_norm")
        recompute_batch_norm(self._run("recompute_batch_norm"), self.parts, "train")

    def log_metrics(self, split: str, metrics: Mapping[str, float] | None = None) -> None:
        """Print the metrics of a split as a table, on rank 0; see `save_metrics`."""
        self.print(render_results(split, self.results.of(split, metrics)))

    def save_metrics(self, split: str, metrics: Mapping[str, float] | None = None, combined: bool = True) -> Path:
        """Write metrics to `<split>_results.json` in the run's folder, on rank 0, and return the path.

        Args:
            split: `"train"`, `"validate"`, `"test"`, or `"all"` of them.
            metrics: by default those of the last fit, validation (also one within fit) or test of this Trainer.
            combined: put them into `all_results.json` as well, beside those that are there.

        Raises:
            ValueError: there is no such split.
            RuntimeError: nothing was measured for it, or the run has no folder.
        """
        values = self.results.of(split, metrics)
        if self.run_folder is None:
            raise RuntimeError(
                explain(
                    "There is no run folder to save metrics in",
                    why="this Trainer has not fitted, or its run writes nothing",
                    fix="call fit first with a logger or with checkpoints, or write the values that validate returns",
                )
            )
        if self.is_global_zero:
            write_results(self.run_folder, split, values, combined=combined)
        return self.run_folder / f"{split}_results.json"

    def print(self, *values: object, sep: str = " ") -> None:
        """Print above the progress display, on rank 0."""
        if self.is_global_zero:
            self.record.reporter.message(sep.join(str(value) for value in values))

    # What loops and stages call ---------------------------------------------------------------------------------------

    def begin(self, name: StageName) -> None:
        """A stage begins: forget the last one, but for what an evaluation between two fits must not lose."""
        self.fabric.launch()
        self.state = TrainerState("running", name)
        self.interrupt_requested = False
        last, self.parts = self.parts, Parts(stage=name)
        if name == "fit":
            self.should_stop, self.stop_reason = False, ""
            self._requests.clear()
            self.progress = Progress()
        else:
            self.parts.saver, self.parts.keepers = last.saver, last.keepers

    def succeeded(self) -> None:
        """A stage ended well."""
        stopped = self.state.stage == "fit" and self.should_stop
        if self.state.stage == "fit" and not self.stop_reason and self.parts.limits is not None:
            self.stop_reason = "should_stop was set" if stopped else self.parts.limits.reason(self.progress)
        self.state.status = "stopped" if stopped else "finished"
        self.results.record(self)
        self.record.end()

    def save_interrupted(self, error: BaseException) -> None:
        """A stage ended badly; after Ctrl-C the weights are whole, so they are saved, and else where that is asked."""
        fit, saver = self.parts.fit, self.parts.saver
        if self.parts.stage != "fit" or fit is None or saver is None:
            return
        try:
            self._save_after(error, fit, saver)
        finally:
            saver.settle()

    def _save_after(self, error: BaseException, fit: FitLoop, saver: Saver) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.stop_reason = "Ctrl-C"
            saver.at_end()
        elif isinstance(error, Exception) and any(each.saves_on_exception for each in self.active_callbacks):
            spoilt = isinstance(error, NonFiniteError)
            outcome = "the weights may not be finite" if spoilt else fit.save_after_failure()
            if isinstance(outcome, str):
                self.record.reporter.message(f"No checkpoint was saved after the failure, because {outcome}.")

    def save_preempted(self, preempted: Preempted) -> None:
        """Save a fit that was asked to leave, if there is anything to save, and hand its job back."""
        fit, saver = self.parts.fit, self.parts.saver
        fits = self.parts.stage == "fit"
        if fits and fit is not None and saver is not None:
            fit.read_losses()  # weights that a loss of NaN has spoilt are not worth keeping
            saver.agenda.stop = self.stop_reason if self.should_stop else None
            preempted.checkpoint = saver.save_to_continue()
        self.stop_reason = f"{preempted.signal} arrived"
        if fits and preempted.checkpoint is None:
            self.stop_reason += f"; nothing was saved, because {self._why_unsaved()}"
        if fits and self.is_global_zero:
            outcome = requeue(
                settings_of(self.active_callbacks),
                preempted.signal,
                saved=preempted.checkpoint is not None,
                environment=os.environ,
            )
            preempted.requeued = outcome.done
            self.stop_reason += f"; {outcome.text}" if outcome.text else ""

    def _why_unsaved(self) -> str:
        return "no step had been made" if not self.progress.steps else "the run keeps no checkpoints"

    def end(self) -> None:
        """No stage is running any more."""
        self.state.stage = None

    @contextmanager
    def staged(self, name: StageName) -> Generator[None, None, None]:
        """Be in another stage for the length of a `with` block."""
        before, self.state.stage = self.state.stage, name
        try:
            yield
        finally:
            self.state.stage = before

    @property
    def is_asked(self) -> bool:
        """Whether something is to be looked at after the next step, whatever was planned."""
        asked_to_end = self._should_stop or self.interrupt_requested or self.preemption.received is not None
        return asked_to_end or bool(self._requests)

    @property
    def preemption_requested(self) -> bool:
        """Whether a signal has asked this process to leave; hooks that take long may look at it and return."""
        return self.preemption.received is not None

    def leave_if_preempted(self, *, all_meet: bool = True) -> None:
        """Leave if any process was asked to; a loop calls it where no work is in hand.

        Args:
            all_meet: every process calls it now. Else, with several of them, it waits for the next such moment.

        Raises:
            Preempted: leave.
        """
        received = self.preemption.received
        if all_meet:
            leaves = self.strategy.any_rank(received is not None)
        else:
            leaves = received is not None and self.world_size == 1
        if leaves:
            self.preemption.answer()
            raise Preempted(received or "a signal to another process")

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
        self.look_between_windows()

    @property
    def in_training_batch(self) -> bool:
        """Whether weights or gradients may be half changed now."""
        return self.state.stage == "fit" and self.parts.fit is not None and self.parts.fit.running

    @property
    def checkpoint_policies(self) -> list[CheckpointPolicy]:
        """The Trainer's own policies and those that callbacks bring; none in a run that writes nothing."""
        if self.settings.dry:
            return []
        brought = [policy for callback in self.active_callbacks for policy in callback.checkpoint_policies()]
        return [*self.settings.policies, *brought]

    def make_keepers(self, folder: str) -> list[CheckpointKeeper]:
        """Make the keepers of a fit, one per policy."""
        if self.run_folder is not None:
            self.parts.keepers = keepers_of(self.run_folder / folder, self.checkpoint_policies, self.run_id)
        return self.parts.keepers

    def look_between_windows(self) -> None:
        """Have the fit in hand look, after the batch in hand, at what has happened; may be called in any thread."""
        if self.parts.fit is not None:
            self.parts.fit.wake()
