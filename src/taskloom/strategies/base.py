"""How a module is spread over processes and devices; one file beside this one per way.

A strategy owns an accelerator, a precision and an environment. It wraps the module and the optimizers, runs backward
passes and steps, speaks for the group of processes, says which part of the data a rank reads, and names the tensor
shards a checkpoint consists of. It knows nothing of loops, callbacks or files, so `Fabric` and `Trainer` share the one
hierarchy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.accelerators import Accelerator
from taskloom.checkpoint import Shard
from taskloom.core.policies import GradientClipping
from taskloom.launch import Launcher
from taskloom.launch.environments import Environment
from taskloom.precision import Precision

Value = TypeVar("Value")
ReduceOperation = Literal["mean", "sum", "min", "max"]


class Strategy(ABC):
    """See the module's text. Third parties register one through the entry point group `taskloom.strategies`.

    A strategy is constructed with its own options only; `connect` then gives it the rest of the graph, once.

    Attributes:
        name: what a user types.
        takes_several_devices: it starts or joins more than one process, or drives more than one device.
        accelerator: the devices.
        precision: the dtype policy.
        environment: the place of this process among the others.
        device: of this process.
        device_mesh: a `torch.distributed.DeviceMesh` where the model is split, else None.
    """

    name: ClassVar[str]
    takes_several_devices: ClassVar[bool] = True
    accelerator: Accelerator
    precision: Precision
    environment: Environment
    device: torch.device
    device_mesh: Any = None

    # The graph --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def connect(
        self,
        accelerator: Accelerator,
        precision: Precision,
        devices: Sequence[int],
        num_nodes: int,
        environment: Environment,
    ) -> None:
        """Take the rest of the graph and choose this process's device. Starts nothing.

        Raises:
            ValueError: the strategy cannot run on them; says why and what to choose.
        """

    @property
    @abstractmethod
    def launcher(self) -> Launcher:
        """What starts the processes this strategy needs."""

    @abstractmethod
    def start(self) -> None:
        """Activate the device and join the process group, in every process, before any tensor is made."""

    @abstractmethod
    def close(self) -> None:
        """Leave the process group. Harmless when called twice."""

    # Places -----------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Processes in all."""

    @property
    @abstractmethod
    def global_rank(self) -> int:
        """Number of this process."""

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.environment.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        return self.environment.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this process speaks for all."""
        return self.global_rank == 0

    @property
    @abstractmethod
    def data_parallel_size(self) -> int:
        """Into how many parts the data is sharded; smaller than the world where ranks share a model."""

    @property
    @abstractmethod
    def data_parallel_rank(self) -> int:
        """Which part this rank reads."""

    # Module and optimizers --------------------------------------------------------------------------------------------

    def init_context(self, *, empty: bool = False) -> AbstractContextManager[Any]:
        """Context in which layers are created on the right device and in the right dtype.

        Args:
            empty: leave out the initialisation of weights that a checkpoint is about to replace.
        """
        return nullcontext()

    @abstractmethod
    def setup_module(self, module: nn.Module) -> nn.Module:
        """Convert, move and wrap a module; the result is what is called.

        Parameters may be replaced, so optimizers come after.
        """

    @abstractmethod
    def setup_optimizers(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> list[Optimizer]:
        """Return the optimizers to step for the wrapped `module`."""

    @abstractmethod
    def unwrap(self, module: nn.Module) -> nn.Module:
        """Return the module that `setup_module` was given."""

    @abstractmethod
    def bind_step(self, module: nn.Module, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a callable that runs `step`, a method of the unwrapped module, so that the wrapping takes part."""

    @abstractmethod
    def backward(self, loss: Tensor, module: nn.Module | None, run: Callable[[Tensor], None] | None = None) -> None:
        """Run the backward pass of a 0-dim loss, scaled as the precision asks.

        Args:
            loss: the unscaled loss.
            module: the wrapped module it was computed with.
            run: replaces `loss.backward()`, where the user's task has a `backward` of its own.
        """

    @abstractmethod
    def backward_sync(self, module: nn.Module, enabled: bool) -> AbstractContextManager[Any]:
        """Context of a micro-batch; with `enabled` False gradients are not communicated yet."""

    @abstractmethod
    def unscale_gradients(self, optimizer: Optimizer) -> None:
        """Bring gradients to their true size before they are looked at; harmless when called twice."""

    @abstractmethod
    def scale_gradients(self, optimizer: Optimizer, factor: float | Tensor) -> None:
        """Multiply every gradient of an optimizer's parameters, to normalise a window by its true weight."""

    @abstractmethod
    def clip_gradients(self, module: nn.Module, optimizer: Optimizer, clipping: GradientClipping) -> Tensor | None:
        """Clip unscaled gradients; return their norm before clipping (0-dim, on the device) unless clipping by value.

        Raises:
            NonFiniteError: the norm is not finite and the clipping says to stop; no gradient has been changed then.
        """

    @abstractmethod
    def step(self, optimizer: Optimizer, closure: Callable[[], Any] | None = None) -> bool:
        """Step an optimizer; return False where the precision skipped it."""

    # Collectives ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def barrier(self, name: str = "") -> None:
        """Wait for every process."""

    @abstractmethod
    def broadcast(self, value: Value, source: int = 0) -> Value:
        """Return rank `source`'s value (a tensor or any data) on every rank."""

    @abstractmethod
    def all_gather(self, value: Any, *, sync_grads: bool = False) -> Any:
        """Gather tensors of all ranks, in a new leading dimension of length world size if there is more than one."""

    @abstractmethod
    def all_reduce(self, value: Any, operation: ReduceOperation = "mean") -> Any:
        """Reduce tensors, or collections of them, over all ranks."""

    @abstractmethod
    def any_rank(self, flag: bool) -> bool:
        """Return on every rank whether the flag is set on any."""

    # Checkpoints ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def model_shards(self, module: nn.Module) -> Iterable[Shard]:
        """Yield this rank's pieces of parameters and persistent buffers, by their names in the unwrapped module."""

    @abstractmethod
    def aliases(self, module: nn.Module) -> dict[str, str]:
        """Return `{name: stored name}` of tied tensors, which a checkpoint stores once."""

    @abstractmethod
    def load_model(self, module: nn.Module, tensors: Iterable[tuple[str, Tensor]], *, strict: bool = True) -> None:
        """Copy whole named tensors into the wrapped module, one at a time.

        Raises:
            CheckpointError: a name or a shape does not fit.
        """

    @abstractmethod
    def optimizer_shards(self, module: nn.Module, optimizers: Mapping[str, Optimizer]) -> Iterable[Shard]:
        """Yield this rank's pieces of the optimizer moments, named `<parameter name>.<slot>`."""

    @abstractmethod
    def optimizer_state(self, module: nn.Module, optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
        """Return what is not a moment, as `taskloom.optim.state.named_optimizer_state` describes it, by optimizer."""

    @abstractmethod
    def load_optimizers(
        self,
        module: nn.Module,
        optimizers: Mapping[str, Optimizer],
        state: Mapping[str, Any],
        tensors: Iterable[tuple[str, Tensor]],
    ) -> None:
        """Restore what the two methods above gave.

        Raises:
            CheckpointError: an optimizer, a group or a parameter is missing or does not fit.
        """
