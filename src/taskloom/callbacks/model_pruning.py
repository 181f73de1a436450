"""`ModelPruning`: train with part of the weights held at zero. Arguments are those of Lightning's callback.

The choice of weights is `torch.nn.utils.prune`'s. Its way of applying them, a parameter `weight_orig` and a buffer
`weight_mask` in place of `weight`, is not used: it renames what is in checkpoints and breaks modules that are wrapped
or compiled. Masks are kept here instead and multiplied onto the weights after every optimizer step, which gives the
same forward passes. The lottery ticket hypothesis is Frankle and Carbin's (arXiv:1803.03635).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, Union, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from taskloom.callbacks.base import Callback
from taskloom.core.errors import explain, nearest

if TYPE_CHECKING:
    from taskloom.core.task import TaskModule
    from taskloom.trainer import Trainer

_METHODS: dict[str, Callable[..., Any]] = {
    "l1_unstructured": prune.l1_unstructured,
    "random_unstructured": prune.random_unstructured,
    "ln_structured": prune.ln_structured,
    "random_structured": prune.random_structured,
}
_TORCH: Any = prune  # its functions have no types
Amount = Union[int, float]
Schedule = Callable[[int], Any]


@runtime_checkable
class _Resampled(Protocol):
    """torch's convention for layers that can draw their parameters anew."""

    def reset_parameters(self) -> None: ...


class ModelPruning(Callback):
    """Prunes at the end of epochs; pruned weights are zero from then on, in every forward pass and every checkpoint.

    Pruning again prunes what is left: an `amount` of 0.5 leaves a half, then a quarter.

    Args:
        pruning_fn: `"l1_unstructured"`, `"random_unstructured"`, `"ln_structured"`, `"random_structured"`, or a
            function `(module, name, amount)` that works like those of `torch.nn.utils.prune`.
        parameters_to_prune: (module, parameter name) pairs; all modules of the task by default.
        parameter_names: names of the parameters to prune in them.
        use_global_unstructured: choose among all weights together rather than within each parameter; for unstructured
            functions.
        amount: part (float from 0 to 1) or number (int) of the weights to prune, or a function of the epoch that
            returns it.
        apply_pruning: whether to prune in an epoch, or a function of the epoch that returns it.
        make_pruning_permanent: kept for Lightning's signature; pruned weights are plain zeros at every moment, and
            `masks` says which they are.
        use_lottery_ticket_hypothesis: after pruning give the weights that are left the values they had when training
            began; or a function of the epoch that returns whether to.
        resample_parameters: give them new random values instead.
        pruning_dim: dimension along which whole slices are pruned, for structured functions.
        pruning_norm: n of the norm that `"ln_structured"` compares slices by.
        verbose: 1 prints how much is pruned, 2 prints it per parameter.
        prune_on_train_epoch_end: prune at the end of the epoch; False prunes at the end of its validation.

    Raises:
        ValueError: an argument cannot be meant.
    """

    def __init__(
        self,
        pruning_fn: str | Callable[..., Any],
        parameters_to_prune: Sequence[tuple[nn.Module, str]] = (),
        parameter_names: Sequence[str] = ("weight", "bias"),
        use_global_unstructured: bool = True,
        amount: Amount | Schedule = 0.5,
        apply_pruning: bool | Schedule = True,
        make_pruning_permanent: bool = True,
        use_lottery_ticket_hypothesis: bool | Schedule = True,
        resample_parameters: bool = False,
        pruning_dim: int | None = None,
        pruning_norm: int | None = None,
        verbose: int = 0,
        prune_on_train_epoch_end: bool = True,
    ) -> None:
        self._structured = pruning_fn in ("ln_structured", "random_structured")
        self._function = self._resolve(pruning_fn, use_global_unstructured, pruning_dim, pruning_norm)
        if not make_pruning_permanent:
            raise ValueError(
                explain(
                    "ModelPruning has no pruning that is not permanent",
                    why="no parameter is renamed or wrapped here, so there is nothing to remove at the end",
                    fix="leave make_pruning_permanent out, and read `masks` to know what was pruned",
                )
            )
        if not callable(amount) and (amount < 0 or (isinstance(amount, float) and amount > 1)):
            raise ValueError(
                explain("The amount of ModelPruning is a part from 0.0 to 1.0 or a number of weights", got=amount)
            )
        self.pruning_fn, self.parameter_names = pruning_fn, tuple(parameter_names)
        self.use_global_unstructured = use_global_unstructured
        self.amount, self.apply_pruning = amount, apply_pruning
        self.use_lottery_ticket_hypothesis = use_lottery_ticket_hypothesis
        self.resample_parameters = resample_parameters
        self.verbose = verbose
        self.prune_on_train_epoch_end = prune_on_train_epoch_end
        self._given = list(parameters_to_prune)
        self._parameters: dict[str, nn.Parameter] = {}
        self._owners: dict[str, nn.Module] = {}
        self._masks: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self._step = -1
        self._fitting = False

    @staticmethod
    def _resolve(
        function: str | Callable[..., Any], together: bool, dim: int | None, norm: int | None
    ) -> Callable[..., Any]:
        if not isinstance(function, str):
            return function
        if function not in _METHODS:
            known = ", ".join(_METHODS)
            problem = f"There is no pruning function {function!r}"
            raise ValueError(explain(problem, fix=f"use one of {known}.{nearest(function, _METHODS)}"))
        if function in ("l1_unstructured", "random_unstructured"):
            return _METHODS[function]
        if together:
            problem = f"{function!r} cannot choose among all weights together"
            raise ValueError(explain(problem, fix="pass use_global_unstructured=False"))
        by_norm = function == "ln_structured"
        if dim is None or (by_norm and norm is None):
            problem = f"{function!r} needs pruning_dim{' and pruning_norm' if by_norm else ''}"
            fix = "pass pruning_dim=0, pruning_norm=2 to prune whole output channels by their Euclidean norm"
            raise ValueError(explain(problem, fix=fix))
        options = {"dim": dim, "n": norm} if by_norm else {"dim": dim}
        return lambda module, name, amount: _METHODS[function](module, name, amount=amount, **options)

    # State
    # ----------------------------------------------------------------------------------------------------------------

    @property
    def masks(self) -> dict[str, Tensor]:
        """Which weights are left, by the parameter's name in the task: 1 for those that are, 0 for those pruned."""
        return dict(self._masks)

    @property
    def sparsity(self) -> float:
        """The pruned part of the weights that can be pruned."""
        total = sum(parameter.numel() for parameter in self._parameters.values())
        pruned = sum(mask.numel() - int(mask.sum()) for mask in self._masks.values())
        return pruned / total if total else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the masks, and the first values where they will be needed."""
        return {"masks": {name: mask.bool() for name, mask in self._masks.items()}, "first": dict(self._first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self._masks, self._first = dict(state["masks"]), dict(state["first"])

    # Hooks
    # ----------------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, task: TaskModule, stage: str) -> None:
        """Notice whether it is a training, because `validate` prunes nothing."""
        self._fitting = stage == "fit"

    def on_fit_start(self, trainer: Trainer, task: TaskModule) -> None:
        """Find the parameters, and remember their first values for the lottery ticket."""
        self._find(task)
        rewinds = self.use_lottery_ticket_hypothesis is not False and not self.resample_parameters
        if rewinds and not self._first:
            self._first = {name: each.detach().cpu().clone() for name, each in self._parameters.items()}
        self._masks = {name: mask.to(self._parameters[name]) for name, mask in self._masks.items()}

    def on_train_batch_end(self, trainer: Trainer, task: TaskModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hold the pruned weights at zero after a step."""
        if self._masks and trainer.global_step != self._step:
            self._step = trainer.global_step
            self._apply()

    def on_train_epoch_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Prune."""
        if self.prune_on_train_epoch_end:
            self._prune(trainer)

    def on_validation_end(self, trainer: Trainer, task: TaskModule) -> None:
        """Prune, where that was asked for."""
        if not self.prune_on_train_epoch_end and self._fitting and not trainer.sanity_checking:
            self._prune(trainer)

    # Pruning
    # --------------------------------------------------------------------------------------------------------------

    def _find(self, task: TaskModule) -> None:
        pairs = self._given or [(module, name) for module in task.modules() for name in self.parameter_names]
        names = {id(parameter): name for name, parameter in task.named_parameters()}
        for module, name in pairs:
            parameter = dict(module.named_parameters(recurse=False)).get(name)
            if parameter is not None and id(parameter) in names:
                self._parameters[names[id(parameter)]] = parameter
                self._owners[names[id(parameter)]] = module
            elif self._given:
                problem = f"{type(module).__name__} has no parameter {name!r} in the task"
                raise ValueError(explain(problem, fix="pass (module, name) pairs of the task's own modules"))
        if not self._parameters:
            raise ValueError(
                explain(
                    "ModelPruning found nothing to prune",
                    got=self.parameter_names,
                    fix="pass the names of parameters that the task's modules have",
                )
            )

    def _prune(self, trainer: Trainer) -> None:
        epoch = trainer.current_epoch
        if not _at(self.apply_pruning, epoch):
            return
        amount = _at(self.amount, epoch)
        if not amount:
            return
        before = self.sparsity
        with torch.inference_mode(False), torch.no_grad():  # a validation's hooks run in inference mode
            if self.use_global_unstructured:
                self._prune_together(amount)
            else:
                for name, parameter in self._parameters.items():
                    if parameter.ndim > 1 or not self._structured:  # a bias has no slices
                        self._masks[name] = self._mask(parameter.detach(), self._masks.get(name), amount)
            self._rewind(epoch)
        self._apply()
        if self.verbose and trainer.is_global_zero:
            self._say(trainer, before)

    def _prune_together(self, amount: Amount) -> None:
        parameters = self._parameters.values()
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
        masks = [self._masks.get(name, torch.ones_like(each)) for name, each in self._parameters.items()]
        known = torch.cat([mask.flatten() for mask in masks])
        mask = self._mask(flat, known, amount)
        pieces = torch.split(mask, [parameter.numel() for parameter in parameters])
        for (name, parameter), piece in zip(self._parameters.items(), pieces, strict=True):
            self._masks[name] = piece.reshape(parameter.shape).to(parameter)

    def _mask(self, weights: Tensor, known: Tensor | None, amount: Amount) -> Tensor:
        """Return the mask of some weights, from a scratch module that torch prunes in the usual way."""
        scratch = nn.Module()
        scratch.register_parameter("weight", nn.Parameter(weights.clone(), requires_grad=False))
        if known is not None:
            _TORCH.custom_from_mask(scratch, "weight", known)
        self._function(scratch, "weight", amount=amount)
        return dict(scratch.named_buffers())["weight_mask"].to(weights)

    def _rewind(self, epoch: int) -> None:
        if not _at(self.use_lottery_ticket_hypothesis, epoch):
            return
        if self.resample_parameters:
            for module in {id(owner): owner for owner in self._owners.values()}.values():
                if isinstance(module, _Resampled):
                    module.reset_parameters()
            return
        for name, parameter in self._parameters.items():
            parameter.copy_(self._first[name])

    @torch.no_grad()
    def _apply(self) -> None:
        for name, mask in self._masks.items():
            self._parameters[name].mul_(mask)

    def _say(self, trainer: Trainer, before: float) -> None:
        trainer.print(f"ModelPruning: {before:.1%} → {self.sparsity:.1%} of {len(self._parameters)} parameters pruned")
        if self.verbose > 1:
            for name, mask in self._masks.items():
                trainer.print(f"  {name}: {mask.numel() - int(mask.sum())} of {mask.numel()} weights")


def _at(value: Any, epoch: int) -> Any:
    return value(epoch) if callable(value) else value
