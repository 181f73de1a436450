"""The part of `Fabric` that speaks for the group of processes, and to people."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from taskloom.checkpoint.files import make_folder
from taskloom.checkpoint.mirror import LogMirror
from taskloom.checkpoint.place import is_remote, run_root
from taskloom.core.policies import RunFolder
from taskloom.core.seed import seed_everything
from taskloom.data.generators import NAMES, Generators, OwnGenerator, synchronize
from taskloom.strategies import Strategy
from taskloom.strategies.base import ReduceOperation

if TYPE_CHECKING:
    from taskloom.loggers import Logger

Value = TypeVar("Value")


class Processes:
    """Ranks, collectives, callbacks and logging. `Fabric` fills the attributes.

    Attributes:
        strategy: that speaks for the group.
        callbacks: whose methods `call` runs.
        loggers: where `log_dict` goes.
    """

    strategy: Strategy
    callbacks: list[Any]
    loggers: list[Logger]
    _run_dir: RunFolder
    _run_folder: Path | None = None
    _mirror: LogMirror | None = None
    _logged = 0

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.strategy.world_size

    @property
    def global_rank(self) -> int:
        """Number of this process."""
        return self.strategy.global_rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its machine."""
        return self.strategy.local_rank

    @property
    def node_rank(self) -> int:
        """Number of this machine."""
        return self.strategy.node_rank

    @property
    def is_global_zero(self) -> bool:
        """Whether this process speaks for all."""
        return self.strategy.is_global_zero

    # Collectives ------------------------------------------------------------------------------------------------------

    def barrier(self, name: str = "") -> None:
        """Wait until every process is here."""
        self.strategy.barrier(name)

    def broadcast(self, obj: Value, src: int = 0) -> Value:
        """Return rank `src`'s value (a tensor or any data) on every rank."""
        return self.strategy.broadcast(obj, src)

    def all_gather(self, data: Any, sync_grads: bool = False) -> Any:
        """Gather tensors, or collections of them, from all ranks.

        Args:
            data: of the same shapes on every rank.
            sync_grads: let gradients flow back to the ranks.

        Returns:
            The same with a new leading dimension of length world size; as it was if there is one process.
        """
        return self.strategy.all_gather(data, sync_grads=sync_grads)

    def all_reduce(self, data: Any, reduce_op: ReduceOperation = "mean") -> Any:
        """Reduce tensors, or collections of them, over all ranks."""
        return self.strategy.all_reduce(data, reduce_op)

    @contextmanager
    def rank_zero_first(self, local: bool = False) -> Generator[None, None, None]:
        """Context that rank 0 (of each machine if `local`) runs before the others, to download for them, say."""
        rank = self.local_rank if local else self.global_rank
        if rank:
            self.barrier("rank_zero_first")
        try:
            yield
        finally:
            if not rank:
                self.barrier("rank_zero_first")

    # To people --------------------------------------------------------------------------------------------------------

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on rank 0 only."""
        if self.is_global_zero:
            builtins.print(*args, **kwargs)  # noqa: T201 - that is what it is for

    def seed_everything(self, seed: int | None = None, workers: bool = True, device_specific: bool = False) -> int:
        """Seed Python, NumPy and torch, and return the seed.

        Args:
            seed: from 0 to 2**32 - 1; drawn by rank 0 when None.
            workers: accepted for Lightning's signature; see `taskloom.seed_everything`.
            device_specific: add the rank, so that processes draw different numbers.
        """
        chosen = self.broadcast(seed_everything(seed, workers=workers))
        return seed_everything(chosen, workers=workers, device_specific=device_specific, rank=self.global_rank)

    def synchronize_generators(self, names: Collection[str] = NAMES, *own: OwnGenerator) -> None:
        """Let chosen random generators go on, in every process, from the state they have on rank 0.

        Args:
            names: out of `"python"`, `"numpy"`, `"torch"` (on the CPU) and `"device"`.
            own: further generators, such as a sampler's; as many and in the same order on every rank.

        Raises:
            ValueError: a name is not known.
        """
        synchronize(Generators(self.strategy.accelerator, self.strategy.device), names, own, self.broadcast)

    def call(self, hook_name: str, *args: Any, **kwargs: Any) -> None:
        """Call the method of that name of every callback that has one."""
        for callback in self.callbacks:
            hook: Callable[..., Any] | None = getattr(callback, hook_name, None)
            if callable(hook):
                hook(*args, **kwargs)

    @property
    def logger(self) -> Logger:
        """The first logger.

        Raises:
            IndexError: there is none.
        """
        return self.loggers[0]

    def log(self, name: str, value: Any, step: int | None = None) -> None:
        """Send one value to the loggers; see `log_dict`."""
        self.log_dict({name: value}, step)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Send values to the loggers, on rank 0.

        Args:
            metrics: numbers or 0-dim tensors, by name. A tensor is read from its device, which waits for it.
            step: x of the values; by default the number of calls so far.
        """
        x = self._logged if step is None else step
        self._logged = x + 1
        if not self.loggers or not self.is_global_zero:
            return
        self._start_loggers()
        plain = {name: value.item() if isinstance(value, Tensor) else float(value) for name, value in metrics.items()}
        for logger in self.loggers:
            logger.log_metrics(plain, step=x, epoch=0)

    @property
    def run_folder(self) -> Path:
        """The folder of the run; made on first use. Where it lies in a store, loggers write to a copy on this disk."""
        if self._run_folder is None:
            name = self._run_dir.name or f"fabric-{datetime.now():%Y%m%d-%H%M%S-%f}"
            self._run_folder = run_root(self._run_dir) / name
            make_folder(self._run_folder)
        return self._run_folder

    def _start_loggers(self) -> None:
        if self._run_folder is None:
            folder = self.run_folder
            self._mirror = LogMirror(folder, Path(self._run_dir.log_root)) if is_remote(folder) else None
            for logger in self.loggers:
                logs = self._mirror.local if self._mirror is not None else folder
                logger.start(logs, run_name=folder.name, project=self._run_dir.project)

    def _finish_loggers(self) -> None:
        if self._run_folder is not None:
            for logger in self.loggers:
                logger.finish("finished")
            if self._mirror is not None:
                self._mirror.copy()
            self._run_folder, self._mirror = None, None
