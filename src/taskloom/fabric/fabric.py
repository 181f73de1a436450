"""`Fabric`: the resolved graph as one object, for people who write their own training loop.

    fabric = Fabric(precision="bf16-mixed")
    fabric.launch()
    model, optimizer = fabric.setup(model, optimizer)
    for batch in fabric.setup_dataloaders(loader):
        optimizer.zero_grad()
        fabric.backward(loss_of(model, batch))
        optimizer.step()

The names are those of Lightning Fabric. Nothing of the user's is patched: what `setup` returns are thin objects around
the module and the optimizers, and loaders are not rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from taskloom.core.errors import explain
from taskloom.core.policies import RunFolder
from taskloom.core.transfer import move_to_device
from taskloom.data.skipping import WithoutFirst
from taskloom.fabric.checkpoints import Checkpoints
from taskloom.fabric.module import FabricLoader, FabricModule
from taskloom.fabric.processes import Processes
from taskloom.fabric.training import Training, bare
from taskloom.fabric.window import Window
from taskloom.optim import TaskOptimizer, parameters_of, unique_names, warn_unoptimized
from taskloom.resolve import Graph, resolve

if TYPE_CHECKING:
    from taskloom.accelerators import Accelerator
    from taskloom.loggers import Logger
    from taskloom.precision import Precision
    from taskloom.strategies import Strategy

Value = TypeVar("Value")
Own = TypeVar("Own", bound="Fabric")


class Fabric(Training, Checkpoints, Processes):
    """An accelerator, a precision and a strategy, with everything a training loop asks of them.

    Args:
        accelerator: `auto`, `gpu`, `cpu`, `cuda`, `mps`, or an object.
        devices: how many (`2`), which (`"0,3"`, `[0, 3]`), all (`-1`), or as many as the strategy can use (`"auto"`).
        num_nodes: machines.
        strategy: `auto`, `single`, or an object with its options.
        precision: `32-true`, `64-true`, `bf16-true`, `16-true`, `bf16-mixed`, `16-mixed`, or an object with its
            options.
        callbacks: objects whose methods `call` runs.
        loggers: where `log` and `log_dict` go.
        run_dir: folder below which loggers write; `RunFolder(root, name)` names the run.
        seed: for Python, NumPy and torch, set at the launch.

    Raises:
        ConfigError: with every problem that was found.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        devices: int | str | Sequence[int] = "auto",
        num_nodes: int = 1,
        strategy: str | Strategy = "auto",
        precision: str | int | Precision = "32-true",
        callbacks: Sequence[Any] = (),
        loggers: Logger | Sequence[Logger] = (),
        run_dir: str | Path | RunFolder = "runs",
        seed: int | None = None,
    ) -> None:
        graph = resolve(
            accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy, precision=precision
        )
        self._adopt(graph)
        self.callbacks = list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]
        self.loggers: list[Logger] = list(loggers) if isinstance(loggers, Sequence) else [loggers]
        self._run_dir = RunFolder.of(run_dir)
        self._seed = seed

    @classmethod
    def from_graph(cls: type[Own], graph: Graph) -> Own:
        """Make a fabric of objects that are resolved already."""
        made = cls.__new__(cls)
        made._adopt(graph)
        made.callbacks, made.loggers, made._run_dir, made._seed = [], [], RunFolder(), None
        return made

    def _adopt(self, graph: Graph) -> None:
        self.graph = graph
        self.strategy, self.precision, self.accelerator = graph.strategy, graph.precision, graph.accelerator
        self.environment, self.num_nodes = graph.environment, graph.num_nodes
        self.device = graph.strategy.device
        self._started = False
        self._modules: list[FabricModule] = []
        self._wrapped: nn.Module | None = None  # the wrapped module, where there is only one
        self._optimizers: list[TaskOptimizer] = []
        self._prepare_checkpoints()
        self._window: Window | None = None
        self._open_windows: dict[tuple[int, ...], Window] = {}

    # Life -------------------------------------------------------------------------------------------------------------

    def launch(self, function: Callable[..., Value] | None = None, *args: Any, **kwargs: Any) -> Value | None:
        """Start the processes that the strategy needs, or take this one.

        Args:
            function: called in each process with this fabric and the other arguments; without one, the script goes on.
            *args: passed to it.
            **kwargs: passed to it.

        Returns:
            What rank 0's function returned.
        """
        result: Value | None = self.strategy.launcher.launch(self._enter, function, args, kwargs)
        return result

    def _enter(
        self, function: Callable[..., Value] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Value | None:
        self.start()
        return None if function is None else function(self, *args, **kwargs)

    def start(self) -> None:
        """Activate the device and join the other processes, where they have been launched. Harmless when repeated."""
        if self._started:
            return
        self._started = True
        self.strategy.start()
        self.device = self.strategy.device
        if self._seed is not None:
            self.seed_everything(self._seed)

    def _require_start(self) -> None:
        if not self._started and self.strategy.launcher.starts_processes:
            raise RuntimeError(
                explain(
                    "Fabric has not been launched",
                    why=f"strategy {self.strategy.name!r} needs processes that do not exist yet",
                    fix="call fabric.launch() before set-up",
                )
            )
        self.start()

    def close(self) -> None:
        """Finish the loggers and leave the process group. Harmless when repeated."""
        self._finish_loggers()
        self.strategy.close()
        self._started = False

    def __enter__(self: Own) -> Own:
        self.launch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Set-up -----------------------------------------------------------------------------------------------------------

    def setup(self, *objects: Any) -> Any:
        """Set up modules and optimizers together.

        Args:
            *objects: modules and optimizers, in any order; each optimizer trains one of the modules.

        Returns:
            What stands for them, in the same order; one object by itself.

        Raises:
            TypeError: one is neither.
            ValueError: an object is set up already, or an optimizer trains none of the modules, or a parameter is in
                two groups.
        """
        modules = [each for each in objects if isinstance(each, nn.Module)]
        optimizers = [each for each in objects if isinstance(each, Optimizer)]
        for each in objects:
            if not isinstance(each, (nn.Module, Optimizer)):
                raise TypeError(
                    explain(
                        "setup takes modules and optimizers",
                        got=type(each).__name__,
                        fix="setup_dataloaders takes loaders",
                    )
                )
        made: dict[int, Any] = {id(module): self.setup_module(module) for module in modules}
        if optimizers:
            for optimizer, wrapped in zip(optimizers, self._wrap_optimizers(optimizers), strict=True):
                made[id(optimizer)] = wrapped
            for module in modules:
                warn_unoptimized(module, optimizers)
        results = tuple(made[id(each)] for each in objects)
        return results[0] if len(results) == 1 else results

    def setup_module(self, module: nn.Module) -> FabricModule:
        """Convert, move and wrap a module.

        Raises:
            ValueError: it is set up already.
        """
        self._require_start()
        if isinstance(module, FabricModule) or any(each._original is module for each in self._modules):
            raise ValueError(explain(f"{type(module).__name__} is set up already", fix="set every module up once"))
        wrapped = self.strategy.setup_module(module)
        made = FabricModule(module, wrapped, self.strategy)
        self._modules.append(made)
        self._wrapped = wrapped if len(self._modules) == 1 else None
        return made

    def setup_optimizers(self, *optimizers: Optimizer) -> Any:
        """Wrap optimizers of modules that are set up.

        Returns:
            A `TaskOptimizer`, or a tuple of them.

        Raises:
            ValueError: an optimizer is set up already, or trains no module that is set up.
        """
        made = self._wrap_optimizers(optimizers)
        return made[0] if len(made) == 1 else tuple(made)

    def _wrap_optimizers(self, optimizers: Sequence[Optimizer]) -> list[TaskOptimizer]:
        for optimizer in optimizers:
            if isinstance(optimizer, TaskOptimizer) or any(optimizer is each.optimizer for each in self._optimizers):
                raise ValueError(
                    explain(f"{type(optimizer).__name__} is set up already", fix="set every optimizer up once")
                )
        holders = [self._holder(optimizer) for optimizer in optimizers]
        replaced: dict[int, Optimizer] = {}
        for holder in dict.fromkeys(holders):  # all optimizers of a module in one call
            own = [optimizer for optimizer, other in zip(optimizers, holders, strict=True) if other is holder]
            replaced.update(zip(map(id, own), self.strategy.setup_optimizers(holder, own), strict=True))
        names = unique_names([*(each.optimizer for each in self._optimizers), *optimizers])[len(self._optimizers) :]
        made = [
            TaskOptimizer(replaced[id(optimizer)], name, self.strategy.step)
            for optimizer, name in zip(optimizers, names, strict=True)
        ]
        self._optimizers += made
        return made

    def _holder(self, optimizer: Optimizer) -> nn.Module:
        """Return the wrapped module whose parameters an optimizer trains; a list of them if it trains several."""
        trained = set(parameters_of(optimizer))
        own = [module._wrapped for module in self._modules if not trained.isdisjoint(module.parameters())]
        if not own:
            raise ValueError(
                explain(
                    f"{type(optimizer).__name__} trains no module that is set up",
                    why="strategies may replace parameters, so modules come first",
                    fix="fabric.setup(model, optimizer), or setup_module(model) before setup_optimizers(optimizer)",
                )
            )
        return own[0] if len(own) == 1 else nn.ModuleList(own)

    def setup_dataloaders(self, *loaders: Iterable[Any], move_to_device: bool = True) -> Any:
        """Let the batches of loaders arrive on the device.

        Args:
            *loaders: any iterables of batches. They are not rebuilt; one that needs nothing is returned as it is.
            move_to_device: False leaves batches where the loader puts them.

        Returns:
            What to iterate over instead, in the same order; one loader by itself.
        """
        self._require_start()
        moves = move_to_device and self.device.type != "cpu"
        made = tuple(FabricLoader(loader, self.device) if moves else loader for loader in loaders)
        return made[0] if len(made) == 1 else made

    def skip_first_batches(self, loader: Iterable[Any], count: int) -> Any:
        """Return a loader without its first batches, for going on in the middle of an epoch.

            for batch in fabric.skip_first_batches(loader, done) if done else loader:

        The samples of a map-style `DataLoader` that are left out are not read. Its order is the same as without
        skipping if its generators are what they were when the epoch began, as with `sampler.set_epoch`.

        Args:
            loader: the user's, or one that `setup_dataloaders` returned.
            count: batches to leave out.

        Raises:
            ValueError: `count` is negative.
        """
        if isinstance(loader, FabricLoader):
            return loader.over(WithoutFirst(loader.loader, count))
        return WithoutFirst(loader, count)

    def init_module(self, empty_init: bool = False) -> AbstractContextManager[Any]:
        """Context in which layers are born on the device and in the parameter dtype.

        Args:
            empty_init: leave out the initialisation of weights, where all of them are loaded afterwards.
        """
        self._require_start()
        return self.strategy.init_context(empty=empty_init)

    def init_tensor(self) -> AbstractContextManager[Any]:
        """Context in which tensors are born on the device and in the parameter dtype."""
        return self.init_module()

    def unwrap(self, module: nn.Module, keep_fp32_wrapper: bool = False) -> nn.Module:
        """Return the user's module of one that was set up.

        Args:
            module: what `setup` returned; another module is returned as it is.
            keep_fp32_wrapper: keep running it under the precision, with inputs and outputs converted, and leave out
                only what the strategy wrapped around it.
        """
        if not isinstance(module, FabricModule):
            return module
        return (
            FabricModule(module._original, module._original, self.strategy) if keep_fp32_wrapper else module._original
        )

    def free_memory(self) -> None:
        """Forget the modules and optimizers that were set up and give cached device memory back."""
        self._modules, self._optimizers, self._wrapped = [], [], None
        self._window, self._open_windows = None, {}
        self.accelerator.empty_cache()

    def to_device(self, obj: Any) -> Any:
        """Return a module, a tensor, or any collection of tensors on the device."""
        if isinstance(obj, nn.Module):
            return obj.to(self.device)
        return move_to_device(obj, self.device)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def _unwrapped(self, each: Any) -> Any:
        """Return what the strategy works on: the wrapped module, torch's optimizer."""
        if isinstance(each, FabricModule):
            return each._wrapped
        return bare(each) if isinstance(each, Optimizer) else each
