"""The beginning and the end of every stage: set-up, failure, Ctrl-C, and cleaning up, the same for all of them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

import torch

from taskloom.callbacks import Callback
from taskloom.callbacks.base import check_hook_names, ordered
from taskloom.core.data import DataModule
from taskloom.core.errors import Preempted, explain
from taskloom.core.task import TaskModule
from taskloom.loop.determinism import determinism
from taskloom.loop.facts import StageName, Status
from taskloom.loop.preemption import settings_of
from taskloom.loop.run import Hooks, Run
from taskloom.metrics import MetricStore

if TYPE_CHECKING:
    from taskloom.trainer import Trainer

_STATUS: dict[type[BaseException], Status] = {KeyboardInterrupt: "interrupted", Preempted: "preempted"}


@contextmanager
def stage(
    trainer: Trainer, name: StageName, task: TaskModule, datamodule: DataModule | None
) -> Generator[Run, None, None]:
    """Prepare a stage, hand out its parts, and clean up whatever happens.

    A failure is reported to the hooks, leaves a checkpoint where the weights are whole (Ctrl-C), and is raised again.
    So is `Preempted`, which a loop raises where no work is in hand, once the checkpoint is written.
    """
    if not isinstance(task, TaskModule):
        raise TypeError(
            explain(
                "The task must be an instance of taskloom.TaskModule",
                got=task,
                fix="derive your class from TaskModule, and pass an instance rather than the class",
            )
        )
    if datamodule is not None and not isinstance(datamodule, DataModule):
        raise TypeError(
            explain(
                "The data module must be an instance of taskloom.DataModule",
                got=datamodule,
                fix="derive your class from DataModule, and pass an instance rather than the class",
            )
        )
    if trainer.state.stage is not None:
        raise RuntimeError(
            explain(
                f"{name} was called while {trainer.state.stage} runs",
                why="a Trainer runs one stage at a time",
                fix="use another Trainer, or trainer.request('validate') for a validation at the next step",
            )
        )
    with ExitStack() as cleanup:
        run = _prepare(trainer, name, task, datamodule, cleanup)
        try:
            try:
                _set_up(run, name)
                cleanup.enter_context(_interrupts(trainer))
                trainer.leave_if_preempted()
                yield run
            except Preempted as preempted:
                trainer.save_preempted(preempted)
                raise
        except BaseException as error:
            try:
                _failed(run, error)
            finally:  # after a second Ctrl-C too
                _tear_down_after_failure(run, name)
            raise
        trainer.succeeded()
        _tear_down(run, name)


def _prepare(
    trainer: Trainer, name: StageName, task: TaskModule, datamodule: DataModule | None, cleanup: ExitStack
) -> Run:
    """Gather the parts of a stage; `cleanup` undoes it, whatever happens."""
    cleanup.callback(trainer.end)
    trainer.begin(name)
    cleanup.callback(task.attach, None, None)
    task.attach(trainer, None)
    if datamodule is not None:
        datamodule.trainer = trainer
    callbacks = _with_own_callbacks(trainer.callbacks, task)
    trainer.active_callbacks = callbacks
    cleanup.enter_context(trainer.preemption.listening(settings_of(callbacks), trainer.print))
    cleanup.callback(trainer.record.reporter.close)
    cleanup.enter_context(determinism(trainer.determinism))
    if trainer.debug.detect_anomaly:
        cleanup.enter_context(torch.autograd.set_detect_anomaly(True))
    run = Run(
        trainer,
        task,
        datamodule,
        Hooks(trainer, task, callbacks),
        MetricStore(trainer.strategy),
        trainer.record.reporter,
        trainer.settings.evaluation_precision,
    )
    trainer.parts.run = run
    task.attach(trainer, run.metrics)
    return run


def _with_own_callbacks(callbacks: Sequence[Callback], task: TaskModule) -> list[Callback]:
    """Add the task's callbacks; one of the same class takes the place of the Trainer's."""
    own = task.configure_callbacks()
    own = list(own) if isinstance(own, Sequence) else [own]
    for callback in own:
        check_hook_names(callback)
    replaced = {type(callback) for callback in own}
    return ordered([callback for callback in callbacks if type(callback) not in replaced] + own)


def _set_up(run: Run, name: StageName) -> None:
    task, datamodule, strategy = run.task, run.datamodule, run.strategy
    for owner in (datamodule, task):
        if owner is None:
            continue
        if (strategy.local_rank if owner.prepare_data_per_node else strategy.global_rank) == 0:
            owner.prepare_data()
    strategy.barrier("prepare_data")
    run.trainer.leave_if_preempted()
    if datamodule is not None:
        datamodule.setup(name)
    for hook in run.hooks.of("setup"):
        hook(name)
    with strategy.init_context():
        task.configure_model()


def _tear_down(run: Run, name: StageName) -> None:
    if run.datamodule is not None:
        run.datamodule.teardown(name)
    for hook in run.hooks.of("teardown"):
        hook(name)


def _tear_down_after_failure(run: Run, name: StageName) -> None:
    """Tear down; what fails here as well is only told of, because the first error is the one to look at."""
    with _told(run, "teardown"):
        _tear_down(run, name)


def _failed(run: Run, error: BaseException) -> None:
    """Tell everybody of a failure; what fails while they are told must not hide it."""
    trainer = run.trainer
    trainer.state.status = _STATUS.get(type(error), "failed")
    hooks = list(run.hooks.of_callbacks("on_exception"))
    if run.datamodule is not None:
        hooks.insert(0, run.datamodule.on_exception)
    for hook in hooks:
        with _told(run, "on_exception"):
            hook(error)
    with _told(run, "saving a checkpoint"):
        trainer.save_interrupted(error)
    with _told(run, "closing the loggers"):
        trainer.record.end()


@contextmanager
def _told(run: Run, what: str) -> Generator[None, None, None]:
    """Turn an error into a line about it."""
    try:
        yield
    except Exception as error:
        run.reporter.message(f"After the failure, {what} failed as well: {type(error).__name__}: {error}")


@contextmanager
def _interrupts(trainer: Trainer) -> Generator[None, None, None]:
    """Let the first Ctrl-C wait for the step in hand, so that the checkpoint it leaves is whole; not the second.

    A handler that the user's program installed is left alone.
    """
    usable = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if not usable:
        yield
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if trainer.interrupt_requested or not trainer.in_training_batch:
            raise KeyboardInterrupt
        trainer.request_interrupt()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
