"""`TaskModule`: a model, how it learns, and what it reports, in one class with Lightning's names."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.core.attachment import Attachment
from taskloom.core.errors import explain
from taskloom.core.hooks import TaskHooks
from taskloom.core.hparams import HyperparametersMixin
from taskloom.core.loss import StepOutput

if TYPE_CHECKING:
    from taskloom.checkpoint import RestorePolicy
    from taskloom.core.policies import GradientClipping

Task = TypeVar("Task", bound="TaskModule")


class TaskModule(Attachment, TaskHooks, HyperparametersMixin, nn.Module):
    """A model together with its training, validation, test and prediction steps and its optimizers.

    Subclass it, build layers in `__init__`, and write `training_step` and `configure_optimizers`; everything else is
    optional. A `LightningModule` becomes a `TaskModule` by changing its import and its base class.

    Attributes:
        automatic_optimization: set to False in `__init__` to call `manual_backward` and `optimizer.step()` yourself.
        example_input_array: an input of `forward`, for the summary table and the graph of a logger.
        strict_loading: whether a checkpoint must hold exactly this module's tensors.
    """

    automatic_optimization: bool = True
    example_input_array: Any = None
    strict_loading: bool = True

    def __init__(self) -> None:
        super().__init__()
        self._default_optimizer: Callable[..., Optimizer] | None = None
        self._default_lr_scheduler: Any = None
        self._toggled: list[Tensor] = []

    # Steps ------------------------------------------------------------------------------------------------------------

    # The steps take anything here, so that a type checker accepts an override with the arguments it needs:
    # `(batch)`, `(batch, batch_idx)`, and `(batch, batch_idx, dataloader_idx)` where there are several loaders.

    def training_step(self, *args: Any, **kwargs: Any) -> StepOutput:
        """Compute the loss of one micro-batch: `training_step(self, batch, batch_idx)`.

        Args:
            *args: the batch that the training loader yielded, on the device, and its number in the epoch, from 0.
            **kwargs: none; for type checkers.

        Returns:
            A 0-dim tensor (the mean over the micro-batch), `Loss(sum, weight)`, a dict with either under `"loss"`, or
            `Skip` (or `None`) to leave the batch out. In manual optimisation whatever you like.
        """
        raise NotImplementedError(
            explain(
                f"{type(self).__name__} has no training_step",
                fix="write `def training_step(self, batch, batch_idx): ... return loss`",
            )
        )

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one batch; report with `self.log`."""
        raise NotImplementedError(
            explain(
                f"{type(self).__name__} has no validation_step",
                fix="write `def validation_step(self, batch, batch_idx): ...`",
            )
        )

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        """Test on one batch; report with `self.log`."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no test_step", fix="write `def test_step(self, batch, batch_idx): ...`")
        )

    def predict_step(self, *args: Any, **kwargs: Any) -> Any:
        """Return predictions for one batch; by default `self(batch)`."""
        return self(args[0])

    def num_tokens(self, batch: Any) -> int:
        """Return how many tokens a batch holds, for the token counter and tokens per second; 0 counts none."""
        return 0

    # Data -------------------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> Any:
        """Return the training loader, when no loader or data module is passed to `fit`."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no train_dataloader", fix="pass loaders or a data module to fit")
        )

    def val_dataloader(self) -> Any:
        """Return a validation loader, a list of them, or a dict that names them."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no val_dataloader", fix="pass loaders or a data module")
        )

    def test_dataloader(self) -> Any:
        """Return a test loader, a list of them, or a dict that names them."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no test_dataloader", fix="pass loaders or a data module")
        )

    def predict_dataloader(self) -> Any:
        """Return a prediction loader, a list of them, or a dict that names them."""
        raise NotImplementedError(
            explain(f"{type(self).__name__} has no predict_dataloader", fix="pass loaders or a data module")
        )

    # Optimisation -----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return the optimizers and schedulers.

        Any of: an optimizer; a list of them; `([optimizers], [schedulers])`; a dict with `"optimizer"` and optionally
        `"lr_scheduler"` (a scheduler or a dict with `scheduler`, `interval` "epoch" or "step", `frequency`, `monitor`,
        `strict`, `name`); a list of such dicts; or `None` to train without one. Several optimizers need manual
        optimisation.
        """
        if self._default_optimizer is None:
            raise NotImplementedError(
                explain(
                    f"{type(self).__name__} has no configure_optimizers",
                    fix="write `def configure_optimizers(self): return torch.optim.AdamW(self.parameters(), "
                    "lr=1e-3)`, or pass --optimizer adamw on the command line",
                )
            )
        optimizer = self._default_optimizer([parameter for parameter in self.parameters() if parameter.requires_grad])
        if self._default_lr_scheduler is None:
            return optimizer
        scheduler = self._default_lr_scheduler
        if isinstance(scheduler, Mapping):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {**scheduler, "scheduler": scheduler["scheduler"](optimizer)},
            }
        # Chosen by name: once per optimizer step, whatever the world size or the accumulation (architecture, section
        # 6).
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler(optimizer), "interval": "step"}}

    def set_default_optimizer(self, optimizer: Callable[..., Optimizer], lr_scheduler: Any = None) -> None:
        """Choose what `configure_optimizers` returns when it is not overridden; `task fit --optimizer` ends here.

        Args:
            optimizer: called with the trainable parameters.
            lr_scheduler: called with the optimizer; or a dict with such a callable under `"scheduler"` beside
                `interval` and the other keys that `configure_optimizers` knows. Steps once per optimizer step unless it
                says otherwise.
        """
        self._default_optimizer, self._default_lr_scheduler = optimizer, lr_scheduler

    def configure_callbacks(self) -> Any:
        """Return a callback or a list of them, to add to the Trainer's or to replace those of the same class."""
        return []

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip the complete, unscaled gradients before the step; override to clip by a rule of your own."""
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def clip_gradients(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | GradientClipping | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of an optimizer's parameters.

        Args:
            optimizer: whose parameters.
            gradient_clip_val: largest norm or absolute value; `None` uses the `Trainer`'s setting.
            gradient_clip_algorithm: `"norm"` or `"value"`.
        """
        self.trainer.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass; override to pass `retain_graph` or to change how gradients arise."""
        loss.backward(*args, **kwargs)  # type: ignore[no-untyped-call]  # torch leaves this method untyped

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Backward pass of manual optimisation: scales, synchronises and calls the hooks as the strategy needs."""
        self.trainer.manual_backward(loss, *args, **kwargs)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Take an optimizer step; override to warm up a rate or to step on a schedule.

        Args:
            epoch: number of the epoch, from 0.
            batch_idx: number of the batch in it, from 0.
            optimizer: steps, with unscaling and clipping, when its `step(closure=...)` is called.
            optimizer_closure: runs training step and backward pass of the window's last batch; must be called, usually
                by `step`.
        """
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Clear the gradients at the opening of a window."""
        optimizer.zero_grad()

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a scheduler when it is due; `metric` is the value it monitors, or None."""
        if metric is None:
            scheduler.step()
        else:
            scheduler.step(metric)

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """Return the optimizer, or the list of them, for manual optimisation.

        Args:
            use_pl_optimizer: False returns the bare torch optimizers, whose `step` neither scales nor counts.
        """
        found = self.trainer.task_optimizers if use_pl_optimizer else self.trainer.optimizers
        return found[0] if len(found) == 1 else list(found)

    def lr_schedulers(self) -> Any:
        """Return the scheduler, the list of them, or None."""
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return None if not found else found[0] if len(found) == 1 else found

    def toggle_optimizer(self, optimizer: Any) -> None:
        """Let only the parameters of `optimizer` require gradients, until `untoggle_optimizer` or the next toggle."""
        self.untoggle_optimizer(optimizer)
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        others = (group["params"] for other in self.trainer.optimizers for group in other.param_groups)
        # A parameter of several optimizers comes by several times and is switched off the first time only.
        self._toggled = [
            parameter.requires_grad_(False)
            for parameter in chain.from_iterable(others)
            if id(parameter) not in own and parameter.requires_grad
        ]

    def untoggle_optimizer(self, optimizer: Any) -> None:
        """Undo `toggle_optimizer`: every parameter requires gradients as it did before."""
        for parameter in self._toggled:
            parameter.requires_grad_(True)
        self._toggled = []

    @contextmanager
    def toggled_optimizer(self, optimizer: Any) -> Generator[None, None, None]:
        """`toggle_optimizer` for the length of a `with` block."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    # Reporting --------------------------------------------------------------------------------------------------------

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = True,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        metric_attribute: str | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """Report a value; it costs no transfer, no wait and no communication until the next flush.

        Args:
            name: of the metric, such as `"train/loss"`.
            value: a number, a 0-dim tensor, `Loss(sum, weight)` or a `torchmetrics.Metric`, which is reset after its
                epoch.
            prog_bar: show it in the progress bar.
            logger: send it to the loggers.
            on_step: report the latest value at each flush, as `<name>_step` if `on_epoch` is set as well; by default
                in hooks of a training batch only. In evaluation, which does not flush, the last value is reported.
            on_epoch: reduce over the epoch, as `<name>_epoch` if `on_step` is set as well; by default everywhere but
                in hooks of a training batch.
            reduce_fx: `"mean"` (weighted by batch size), `"sum"`, `"min"` or `"max"`.
            enable_graph: accepted for Lightning's signature; what is reported is a number, so no graph is kept alive.
            sync_dist: accepted for Lightning's signature; epoch values are always exact over all processes.
            sync_dist_group: accepted for Lightning's signature.
            add_dataloader_idx: append the loader's name or number when there are several.
            batch_size: weight of the value in the epoch's mean; read from the batch where its tensors agree on it.
            metric_attribute: accepted for Lightning's signature.
            rank_zero_only: log on rank 0 only, without reduction over processes.

        Raises:
            ValueError: the name was logged before with other options, as another kind of value or in hooks of another
                level (batch, epoch), or the weight of a mean cannot be read from the batch.
            TypeError: the value is none of those above.
            RuntimeError: called in a hook from which nothing is reported, such as `on_fit_start` or
                `on_validation_end`.
        """
        if self._metrics is None:
            self.warn_unattached("log")
            return
        self._metrics.log(
            name,
            value,
            (prog_bar, logger, on_step, on_epoch, reduce_fx, add_dataloader_idx, rank_zero_only),
            batch_size,
        )

    def log_dict(
        self,
        dictionary: Mapping[str, Any],
        prog_bar: bool = False,
        logger: bool = True,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = True,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        rank_zero_only: bool = False,
    ) -> None:
        """`log` for every item of a mapping (a dict or a `torchmetrics.MetricCollection`), with the same options."""
        if self._metrics is None:
            self.warn_unattached("log_dict")
            return
        options = (prog_bar, logger, on_step, on_epoch, reduce_fx, add_dataloader_idx, rank_zero_only)
        self._metrics.log_all(dictionary, options, batch_size)

    # Life -------------------------------------------------------------------------------------------------------------

    def freeze(self: Task) -> Task:
        """Stop learning: no parameter requires gradients, evaluation mode. Returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = False
        self.eval()
        return self

    def unfreeze(self: Task) -> Task:
        """Learn again: every parameter requires gradients, training mode. Returns self."""
        for parameter in self.parameters():
            parameter.requires_grad = True
        self.train()
        return self

    @classmethod
    def load_from_checkpoint(
        cls: type[Task],
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        restore: RestorePolicy | None = None,
        **kwargs: Any,
    ) -> Task:
        """Rebuild a task from a checkpoint: call its class with the saved hyper-parameters and load the weights.

        Args:
            checkpoint_path: a checkpoint folder.
            map_location: device the task is moved to.
            hparams_file: YAML or JSON file whose values replace the saved ones.
            strict: whether the tensors must match exactly; by default the task's `strict_loading`.
            restore: how names and shapes are matched, and which set of weights is loaded.
            **kwargs: arguments that replace or complete the saved ones.
        """
        # The only upward call of this floor: the classmethod is where users of Lightning look for it.
        rebuild = import_module("taskloom.checkpoint.task").rebuild_task
        chosen = {"hparams_file": hparams_file, "strict": strict, "restore": restore}
        task: Task = rebuild(cls, checkpoint_path, **chosen, arguments=kwargs)
        return task.to(map_location)
