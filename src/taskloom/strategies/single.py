"""One process, one device: nothing is wrapped, so a step costs what the bare loop costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, TypeVar
from warnings import warn

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from taskloom.accelerators import Accelerator
from taskloom.checkpoint import Shard, find_aliases
from taskloom.checkpoint.weights import copy_into
from taskloom.core.errors import CheckpointError, NonFiniteError, TaskloomWarning, explain
from taskloom.core.policies import GradientClipping
from taskloom.launch import InProcess, Launcher
from taskloom.launch.environments import Environment
from taskloom.optim.groups import check_groups, parameter_names, parameters_of
from taskloom.optim.state import named_optimizer_state, named_optimizer_tensors, restore_optimizer, taken_over
from taskloom.precision import Precision
from taskloom.strategies.base import ReduceOperation, Strategy
from taskloom.strategies.initialisation import SkipInitialisation

Value = TypeVar("Value")


class SingleStrategy(Strategy):
    """The module runs in this process, on one device, unwrapped."""

    name = "single"
    takes_several_devices = False

    def connect(
        self,
        accelerator: Accelerator,
        precision: Precision,
        devices: Sequence[int],
        num_nodes: int,
        environment: Environment,
    ) -> None:
        """Take the rest of the graph.

        Raises:
            ValueError: more than one device, machine or process was asked for.
        """
        asked = {"devices": len(devices), "machines": num_nodes, "processes": environment.world_size}
        for what, count in asked.items():
            if count != 1:
                raise ValueError(
                    explain(
                        f"Strategy 'single' runs on one device and was given {count} {what}",
                        why="each of them would train a model of its own" if what == "processes" else "",
                        fix="devices=1, num_nodes=1, or a strategy for several devices",
                    )
                )
        self.accelerator, self.precision, self.environment = accelerator, precision, environment
        self.device = accelerator.device(devices[0])
        precision.connect(self.device)
        self._scales_loss = precision.scales_loss

    @property
    def launcher(self) -> Launcher:
        """This process."""
        return InProcess()

    def start(self) -> None:
        """Activate the device."""
        self.accelerator.activate(self.device)
        advice = self.accelerator.advice(self.precision.policy.compute, self.device)
        if advice:
            warn(advice, TaskloomWarning, stacklevel=2)

    def close(self) -> None:
        """Do nothing: there is no process group."""

    world_size = 1
    global_rank = 0
    data_parallel_size = 1
    data_parallel_rank = 0

    # Module and optimizers --------------------------------------------------------------------------------------------

    def init_context(self, *, empty: bool = False) -> AbstractContextManager[Any]:
        """Context in which layers are created on the device and in the parameter dtype."""
        stack = ExitStack()
        stack.enter_context(self.precision.init_context())
        stack.enter_context(self.device)
        if empty:
            stack.enter_context(SkipInitialisation())
        return stack

    def setup_module(self, module: nn.Module) -> nn.Module:
        """Convert and move the module, in place.

        Raises:
            ValueError: it has parameters on the meta device.
            RuntimeError: its tensors are not what the precision says.
        """
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_meta:
                raise ValueError(
                    explain(
                        f"{name!r} is on the meta device and has no values",
                        fix="create the module under fabric.init_module(empty_init=True), or call "
                        "module.to_empty(device=...) and load its weights",
                    )
                )
        self.precision.convert_module(module)
        module.to(self.device)
        self.precision.check(module)
        return module

    def setup_optimizers(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> list[Optimizer]:
        """Check the groups and return the optimizers."""
        check_groups(module, optimizers)
        return list(optimizers)

    def unwrap(self, module: nn.Module) -> nn.Module:
        """Return the module."""
        return module

    def bind_step(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return the step itself."""
        return step

    def backward(
        self, loss: Tensor, module: nn.Module | None = None, run: Callable[[Tensor], None] | None = None
    ) -> None:
        """Run the backward pass."""
        if self._scales_loss:
            loss = self.precision.scale(loss)
        if run is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            run(loss)

    def backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """Do nothing: there is nobody to exchange gradients with."""
        return nullcontext()

    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Undo the loss scale."""
        if self._scales_loss:
            self.precision.unscale(optimizer)

    @torch.no_grad()
    def scale_gradients(self, optimizer: Optimizer, factor: float | Tensor) -> None:
        """Multiply every gradient, in place."""
        _multiply(list(_gradients(optimizer)), factor)

    @torch.no_grad()
    def clip_gradients(self, module: nn.Module, optimizer: Optimizer, clipping: GradientClipping) -> Tensor | None:
        """Clip by the joint norm of all of the optimizer's gradients, or element by element.

        Returns:
            The norm before clipping, 0-dim on the device, unless elements are clipped and neither the norm nor the
            check was asked for.

        Raises:
            NonFiniteError: the norm is not finite and the clipping says to stop; names the first such gradient. Under a
                loss scale nothing is raised, because an overflow makes the scale skip the step.
        """
        gradients = list(_gradients(optimizer))
        norm = None
        if clipping.max_value is None or clipping.error_if_nonfinite or clipping.log_norm:
            norm = get_total_norm(gradients, clipping.norm_type)
            if clipping.error_if_nonfinite and not self._scales_loss and not torch.isfinite(norm):
                raise _nonfinite_gradient(module, optimizer, norm)
        if not gradients:
            return norm
        if clipping.max_norm is not None and norm is not None:
            # As torch.nn.utils.clip_grads_with_norm_ does, with no branch that would wait for the device.
            _multiply(gradients, torch.clamp(clipping.max_norm / (norm + 1e-6), max=1.0))
        elif clipping.max_value is not None:
            torch._foreach_clamp_min_(gradients, -clipping.max_value)
            torch._foreach_clamp_max_(gradients, clipping.max_value)
        return norm

    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> bool:
        """Step the optimizer."""
        if self._scales_loss:
            return self.precision.step(optimizer, closure)
        if closure is None:
            optimizer.step()
        else:
            optimizer.step(closure)
        return True

    # Collectives ------------------------------------------------------------------------------------------------------

    def barrier(self, name: str = "") -> None:
        """Do nothing: there is nobody to wait for."""

    def broadcast(self, value: Value, source: int = 0) -> Value:
        """Return the value."""
        return value

    def all_gather(self, value: Any, *, sync_grads: bool = False) -> Any:
        """Return the value."""
        return value

    def all_reduce(self, value: Any, operation: ReduceOperation = "mean") -> Any:
        """Return the value."""
        return value

    def any_rank(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def model_shards(self, module: nn.Module) -> Iterator[Shard]:
        """Yield every parameter and persistent buffer whole; tied ones under each of their names.

        Raises:
            CheckpointError: the module's state holds something that is not a tensor, which would be lost.
        """
        for name, tensor in module.state_dict().items():
            if not isinstance(tensor, Tensor):
                raise CheckpointError(
                    explain(
                        f"{name!r} in the state of {type(module).__name__} is not a tensor",
                        got=type(tensor).__name__,
                        why="weights are stored as tensors and nothing else, so that loading them runs no code",
                        fix="return a tensor from get_extra_state, or keep the value in a buffer",
                    )
                )
            yield Shard.whole(name, tensor)

    def aliases(self, module: nn.Module) -> dict[str, str]:
        """Return the names that share one tensor; the first is the stored one."""
        state = module.state_dict()
        return find_aliases((name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor))

    def load_model(self, module: nn.Module, tensors: Iterable[tuple[str, Tensor]], *, strict: bool = True) -> None:
        """Copy tensors into the module as they come."""
        missing, unexpected = copy_into(module, tensors)
        if strict and (missing or unexpected):
            raise CheckpointError(_mismatch(module, missing, unexpected))

    def optimizer_shards(self, module: nn.Module, optimizers: Mapping[str, Optimizer]) -> Iterator[Shard]:
        """Yield every moment and counter that is a tensor, whole."""
        names = parameter_names(module)
        for optimizer in optimizers.values():
            for name, tensor in named_optimizer_tensors(optimizer, names):
                yield Shard.whole(name, tensor)

    def optimizer_state(self, module: nn.Module, optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
        """Return what `named_optimizer_state` returns, per optimizer."""
        names = parameter_names(module)
        return {name: named_optimizer_state(optimizer, names) for name, optimizer in optimizers.items()}

    def load_optimizers(
        self,
        module: nn.Module,
        optimizers: Mapping[str, Optimizer],
        state: Mapping[str, Any],
        tensors: Iterable[tuple[str, Tensor]],
    ) -> None:
        """Restore the optimizers, their groups in any order."""
        if set(optimizers) != set(state):
            raise CheckpointError(
                explain(
                    "The checkpoint holds other optimizers",
                    got=f"{', '.join(sorted(state)) or 'none'} for {', '.join(sorted(optimizers)) or 'none'}",
                    fix="return the optimizers that wrote it from configure_optimizers, or load its weights only",
                )
            )
        names = parameter_names(module)
        found = taken_over(tensors, names)
        for name, optimizer in optimizers.items():
            restore_optimizer(name, optimizer, names, state[name], found)


def _gradients(optimizer: Optimizer) -> Iterator[Tensor]:
    """Yield the gradients as dense tensors to change in place; of a sparse one its values, summed per index."""
    for parameter in parameters_of(optimizer):
        if parameter.grad is None:
            continue
        if parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            yield parameter.grad.values()
        else:
            yield parameter.grad


def _multiply(tensors: list[Tensor], factor: float | Tensor) -> None:
    if not isinstance(factor, Tensor):
        if tensors:
            torch._foreach_mul_(tensors, factor)
        return
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor)
    for device, beside in by_device.items():
        torch._foreach_mul_(beside, factor.to(device))


def _nonfinite_gradient(module: nn.Module, optimizer: Optimizer, norm: Tensor) -> NonFiniteError:
    names = parameter_names(module)
    bad = [
        names.get(parameter, "a parameter of another module")
        for parameter in parameters_of(optimizer)
        if parameter.grad is not None and not torch.isfinite(parameter.grad.to_dense()).all()
    ]
    return NonFiniteError(
        explain(
            f"The gradient norm is {norm.item()}",
            got=f"gradients that are not finite: {', '.join(bad[:5]) or 'none, but their norm overflows'}",
            why="clipping would spread it to every parameter",
            fix="lower the learning rate, look at the loss of this batch, or pass error_if_nonfinite=False",
        )
    )


def _mismatch(module: nn.Module, missing: list[str], unexpected: list[str]) -> str:
    parts = [
        f"{label} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for label, names in (("missing:", missing), ("not in the module:", unexpected))
        if names
    ]
    return explain(
        f"The checkpoint does not hold the tensors of {type(module).__name__}",
        got="; ".join(parts),
        fix="build the model as it was saved, or pass strict=False to load what fits",
    )
