"""Making a fit out of a task, loaders and the settings of a Trainer: the steps between `setup` and `on_fit_start`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any
from warnings import warn

from torch import nn

from taskloom.checkpoint import CheckpointKeeper
from taskloom.core.data import DataModule
from taskloom.core.errors import TaskloomWarning, explain
from taskloom.core.hooks import overridden
from taskloom.core.policies import GradientClipping
from taskloom.core.task import TaskModule
from taskloom.data import NamedLoader, named_loaders
from taskloom.data.reloading import ReloadedLoader, Reloading
from taskloom.loop.evaluate import EvaluateLoop
from taskloom.loop.fit import FitLoop
from taskloom.loop.folder import CHECKPOINTS
from taskloom.loop.limits import Limits
from taskloom.loop.optimization import ManualOptimization, choose_optimization
from taskloom.loop.position import generators_of
from taskloom.loop.restoring import Restoration, restore_fit
from taskloom.loop.run import Run
from taskloom.loop.saving import Saver
from taskloom.loop.schedule import Schedulers
from taskloom.loop.window import Window
from taskloom.optim import parse_optimizers

if TYPE_CHECKING:
    from taskloom.trainer import Trainer


def one_source(loaders: Any, datamodule: DataModule | None, name: str) -> tuple[Any, DataModule | None]:
    """Return loaders and data module, of which only one was passed; a data module may come in the place of loaders.

    Raises:
        ValueError: both were passed.
    """
    if loaders is None:
        return None, datamodule
    if datamodule is not None:
        raise ValueError(
            explain(
                f"{name} and datamodule were both passed",
                why="one of them would be ignored",
                fix="pass the loaders, or the data module",
            )
        )
    return (None, loaders) if isinstance(loaders, DataModule) else (loaders, None)


def user_loaders(run: Run, given: Any, name: str) -> Any:
    """Return the loaders of a stage: those passed, else the data module's, else the task's; None where nobody has any.

    Args:
        run: the parts of the stage.
        given: what was passed to the Trainer's method.
        name: of the method that makes them, such as `train_dataloader`.
    """
    if given is not None:
        return given
    method, _ = _loader_method(run, name)
    return method() if method is not None else None


def _loader_method(run: Run, name: str) -> tuple[Callable[[], Any] | None, int]:
    """Return the method that makes loaders, and after how many epochs it is to make them anew; 0 for never."""
    data = run.datamodule
    method = overridden(data, name, DataModule) if data is not None else None
    if data is not None and method is not None:
        return method, data.reload_dataloaders_every_n_epochs
    return overridden(run.task, name, TaskModule), run.task.reload_dataloaders_every_n_epochs


def _fit_loaders(trainer: Trainer, run: Run, given: Any, name: str) -> Any:
    """Return the loaders of a fit, which may be such as are made anew every few epochs."""
    method, every = _loader_method(run, name)
    if given is not None or method is None or not every or trainer.settings.limits.overfit is not None:
        return user_loaders(run, given, name)
    progress, make = trainer.progress, partial(_one_loader, method) if name == "train_dataloader" else method

    def make_in(epoch: int) -> Any:
        present, progress.epochs = progress.epochs, epoch
        try:
            return make()
        finally:
            progress.epochs = present

    reloading = Reloading(make_in, every, lambda: progress.epochs)
    made = reloading.made
    if isinstance(made, Mapping):
        return {key: ReloadedLoader(reloading, itemgetter(key)) for key in made}
    if isinstance(made, Sequence):
        return [ReloadedLoader(reloading, itemgetter(number)) for number in range(len(made))]
    return ReloadedLoader(reloading, lambda made: made)


def _one_loader(method: Callable[[], Any]) -> Any:
    return named_loaders(method(), None, "train")[0].loader


def build_fit(trainer: Trainer, run: Run, train: Any, validate: Any, restoration: Restoration | None) -> FitLoop:
    """Load, wrap, configure and restore, in the order of the contract."""
    settings = trainer.settings
    if overridden(run.task, "training_step", TaskModule) is None:
        raise TypeError(
            explain(
                f"{type(run.task).__name__} has no training_step, so it cannot be fitted",
                fix="write `def training_step(self, batch, batch_idx): ... return loss`",
            )
        )
    loader = _training_loader(trainer, run, train)
    trainer.parts.train = loader
    limits = Limits(settings.epochs, settings.steps, settings.seconds, loader.length, settings.accumulation)
    trainer.parts.limits = limits
    evaluated = _validation_loaders(trainer, run, validate, loader)
    trainer.parts.evaluated = evaluated
    run.module = run.strategy.setup_module(run.task)
    _compile(run.task, settings.compile)
    run.strategy.precision.check(run.task)
    setup = parse_optimizers(run.task.configure_optimizers())
    kind = choose_optimization(run, setup.optimizers)
    if kind is ManualOptimization:
        _check_manual(trainer, run.task)
    setup.optimizers[:] = run.strategy.setup_optimizers(run.module, setup.optimizers)
    schedulers = Schedulers(setup.schedulers, run.task, trainer.progress, run.metrics, validates=bool(evaluated))
    window = Window(settings.accumulation, run.strategy)
    optimization = kind(run, trainer.progress, window, setup, schedulers, settings.clipping, trainer.debug)
    keepers = trainer.make_keepers(CHECKPOINTS)
    saver = Saver(run, optimization, loader, keepers)
    trainer.parts.saver = saver
    validation = EvaluateLoop(run, "validate", evaluated, settings.validation) if evaluated else None
    loop = FitLoop(
        run,
        loader,
        optimization,
        validation,
        limits=limits,
        saver=saver,
        logs=settings.logs,
        policy=settings.validation,
        accumulation=settings.accumulation,
    )
    trainer.parts.fit, trainer.parts.evaluation = loop, validation
    if restoration is not None:
        restore_fit(run, restoration, optimization, saver, keepers, loader)
    if not run.task.training:
        warn(
            explain(
                f"{type(run.task).__name__} is in evaluation mode and is trained in it: no dropout, frozen statistics",
                fix="call task.train() before fit, or in on_fit_start",
            ),
            TaskloomWarning,
            stacklevel=2,
        )
    window.batches = settings.accumulation.at_epoch(trainer.progress.epochs)  # known before the first epoch begins
    return loop


def _training_loader(trainer: Trainer, run: Run, given: Any) -> NamedLoader:
    loaders = _fit_loaders(trainer, run, given, "train_dataloader")
    if loaders is None:
        raise ValueError(
            explain(
                f"There are no training batches for {type(run.task).__name__}",
                fix="pass train_dataloaders or a datamodule to fit, or write train_dataloader",
            )
        )
    limits = trainer.settings.limits
    overfits = limits.overfit is not None
    (named,) = limited_loaders(loaders, limits.overfit if overfits else limits.train, "train")
    return _same_batches(run, named) if overfits else named


def _same_batches(run: Run, loader: NamedLoader) -> NamedLoader:
    """Read the batches to overfit on, and keep them: the same in the same order each epoch, however they are drawn."""
    from taskloom.data.kept import KeptBatches
    from taskloom.data.sources import source_of

    generators = generators_of(run)
    batches = KeptBatches(loader.loader, partial(source_of, loader.loader, generators), generators, loader.length)
    return NamedLoader(loader.name, batches, len(batches), exact=True)


def limited_loaders(loaders: Any, limit: int | float | None, stage: str) -> list[NamedLoader]:
    """Return uniform loaders with the limit of their stage applied.

    Raises:
        ValueError: the limit leaves no batch of one of them.
    """
    named = named_loaders(loaders, limit, stage)
    for loader in named:
        if not loader.length:
            raise ValueError(
                explain(
                    f"limit_batches leaves no batch of the {stage} loader{f' {loader.name!r}' if loader.name else ''}",
                    got=limit,
                    fix=f"limit_batches={{'{stage}': 1}} for one batch"
                    + (", or 0 to leave validation out" if stage == "validate" else ""),
                )
            )
    return named


def _validation_loaders(trainer: Trainer, run: Run, given: Any, training: NamedLoader) -> list[NamedLoader]:
    limits = trainer.settings.limits
    loaders = _fit_loaders(trainer, run, given, "val_dataloader")
    if loaders is None or limits.validate == 0:
        return []
    if overridden(run.task, "validation_step", TaskModule) is None:
        warn(
            explain(
                f"There are validation batches, but {type(run.task).__name__} has no validation_step; it is not "
                f"validated"
            ),
            TaskloomWarning,
            stacklevel=2,
        )
        return []
    return [training] if limits.overfit is not None else limited_loaders(loaders, limits.validate, "validate")


def _check_manual(trainer: Trainer, task: TaskModule) -> None:
    settings, name = trainer.settings, type(task).__name__
    if settings.clipping != GradientClipping():
        raise ValueError(
            explain(
                f"gradient_clip_val has no effect on {name}, which optimises by hand",
                fix="remove it and call self.clip_gradients(optimizer, 1.0) before optimizer.step()",
            )
        )
    if settings.accumulation.batches != 1:
        raise ValueError(
            explain(
                f"accumulate_grad_batches has no effect on {name}, which optimises by hand",
                fix="remove it and call optimizer.step() every few batches",
            )
        )


def _compile(task: nn.Module, options: bool | dict[str, Any]) -> None:
    """Compile the task's layers in place, by torch's own switch; names of parameters stay as they are."""
    if options is False:
        return
    for child in task.children():
        if next(child.parameters(), None) is not None:
            child.compile(**({} if options is True else options))


def keepers_of(folder: Any, policies: Any, run_id: str) -> list[CheckpointKeeper]:
    """Return a keeper per policy, told apart by number where settings are equal."""
    return [
        CheckpointKeeper(folder, policy, run_id, name=str(number) if number else "")
        for number, policy in enumerate(policies)
    ]
