"""The averages that weight-averaging callbacks keep: where they lie, how they are updated, put in place and saved.

They are made from the strategy's own pieces of the model, so an average is cut as its parameter is, and from nothing
else. The training weights are never exchanged with them: while averages are in place the training weights are held
beside, and are forgotten only once all of them are back. So whatever interrupts a swap, and wherever, both are known.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from taskloom.checkpoint import CheckpointReader, Shard
from taskloom.checkpoint.planning import read_shards
from taskloom.core.errors import CheckpointError, explain
from taskloom.strategies import Strategy

Average = Callable[[Sequence[Tensor], Sequence[Tensor], int], Any]
"""Changes averages in place, given (averages, current values, updates so far); as torch's `multi_avg_fn`."""

Key = tuple[str, tuple[int, ...]]
_CONVERTED_AT_ONCE = 1 << 24
"""Elements that are converted to the dtype or device of the averages in one go; what an update needs beside them."""


class Averages:
    """Averages of the parameters of a task, and of its buffers where that is asked for.

    Tied weights have one average. Parameters that are frozen have none until they are trained; neither have buffers
    that are not floating point. What has no average counts as its own.

    Args:
        average: how a new value is taken in.
        kind: name of the set in checkpoints.
        device: where they are held; None for that of the weights.
        dtype: theirs; None for that of the weights, but at least float32, because an average moves by less than
            what a 16-bit number can show.
        use_buffers: average floating-point buffers too.

    Attributes:
        updates: how often values were taken in.
        held: the training weights, by piece, while averages are in place.
    """

    def __init__(
        self,
        average: Average,
        kind: str,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        use_buffers: bool = True,
    ) -> None:
        self._average, self.kind, self._device, self._dtype, self._buffers = average, kind, device, dtype, use_buffers
        self.updates = 0
        self.held: dict[Key, Tensor] = {}
        self._strategy: Strategy
        self._module: nn.Module
        self._values: dict[Key, Tensor] = {}
        self._targets: list[Tensor] = []
        self._sources: list[Tensor] = []
        self._alike = True

    # The task ---------------------------------------------------------------------------------------------------------

    def bind(self, strategy: Strategy, module: nn.Module) -> None:
        """Take the wrapped module whose weights are averaged."""
        self._strategy, self._module = strategy, module
        self.refresh()

    def refresh(self) -> None:
        """Look up again where the averaged weights lie; whoever replaced a parameter's storage did so before this."""
        live = {key_of(shard): shard.tensor for shard in self._live() if key_of(shard) in self._values}
        self._targets, self._sources = [self._values[key] for key in live], list(live.values())
        self._alike = all(
            value.dtype == now.dtype and value.device == now.device
            for value, now in zip(self._targets, self._sources, strict=True)
        )

    def join(self) -> None:
        """Begin the averages of parameters that are trained and have none yet, from their values now."""
        trained = {name for name, each in self._parameters() if each.requires_grad}
        buffers = dict(self._unwrapped().named_buffers(remove_duplicate=False)) if self._buffers else {}
        for shard in self._live():
            if key_of(shard) not in self._values and (shard.name in trained or shard.name in buffers):
                self._values[key_of(shard)] = self._like(shard.tensor).copy_(shard.tensor)
        self.refresh()

    def _unwrapped(self) -> nn.Module:
        return self._strategy.unwrap(self._module)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self._unwrapped().named_parameters(remove_duplicate=False)

    def _live(self) -> Iterator[Shard]:
        """Yield the pieces that may have averages, each tensor once; what a module computes for its state is none."""
        module = self._unwrapped()
        own = {*dict(self._parameters()), *dict(module.named_buffers(remove_duplicate=False))}
        aliases = self._strategy.aliases(self._module)
        for shard in self._strategy.model_shards(self._module):
            if shard.name in own and shard.name not in aliases and shard.tensor.is_floating_point():
                yield shard

    def _like(self, tensor: Tensor) -> Tensor:
        dtype = self._dtype or torch.promote_types(tensor.dtype, torch.float32)
        return torch.empty_like(tensor, dtype=dtype, device=self._device or tensor.device, requires_grad=False)

    # Averaging --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are; the first time they are the average."""
        if not self.updates:
            self.join()
        elif self._alike:
            self._average(self._targets, self._sources, self.updates)
        else:
            for targets, sources in self._converted():
                self._average(targets, sources, self.updates)
        self.updates += 1

    def _converted(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        size = 0
        for target, source in zip(self._targets, self._sources, strict=True):
            targets.append(target)
            sources.append(source.to(target.device, target.dtype))
            size += target.numel()
            if size >= _CONVERTED_AT_ONCE:
                yield targets, sources
                targets, sources, size = [], [], 0
        yield targets, sources

    # In place of the weights ------------------------------------------------------------------------------------------

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Give the task its averages for the length of a `with` block."""
        self.put()
        try:
            yield
        finally:
            self.take_back()

    @torch.no_grad()
    def put(self) -> None:
        """Give the task its averages, and hold the training weights."""
        self.refresh()
        self.held = {key: source.clone() for key, source in zip(self._values, self._in_order(), strict=True)}
        for key, source in zip(self._values, self._in_order(), strict=True):
            source.copy_(self._values[key])

    @torch.no_grad()
    def take_back(self) -> None:
        """Give the task its training weights again; harmless when called twice, and after an interrupt."""
        for (_, weights), source in zip(self.held.items(), self._in_order() if self.held else (), strict=True):
            source.copy_(weights)
        self.held = {}

    def _in_order(self) -> list[Tensor]:
        """Return the live tensors in the order of the averages."""
        live = {id(value): source for value, source in zip(self._targets, self._sources, strict=True)}
        return [live[id(value)] for value in self._values.values()]

    @torch.no_grad()
    def adopt(self, names: Sequence[str]) -> None:
        """Take the values that some tensors have now as their averages."""
        chosen = set(names)
        for (name, _), value, source in zip(self._values, self._values.values(), self._in_order(), strict=True):
            if name in chosen:
                value.copy_(source)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def shards(self) -> dict[str, list[Shard]]:
        """Return the pieces for a checkpoint: the averages, and the model where the task does not hold it now."""
        found = {self.kind: [replace(shard, tensor=self._values[key_of(shard)]) for shard in self._averaged()]}
        if self.held:
            aliases = self._strategy.aliases(self._module)
            found["model"] = [
                replace(shard, tensor=self.held.get((aliases.get(shard.name, shard.name), shard.offset), shard.tensor))
                for shard in self._strategy.model_shards(self._module)
            ]
        return found

    def _averaged(self) -> Iterator[Shard]:
        return (shard for shard in self._live() if key_of(shard) in self._values)

    def load(self, reader: CheckpointReader) -> None:
        """Take the averages of a checkpoint.

        Raises:
            CheckpointError: it holds averages of tensors that the task does not have, or of other shapes.
        """
        stored = set(reader.names(self.kind))
        targets = [replace(shard, tensor=self._like(shard.tensor)) for shard in self._live() if shard.name in stored]
        strangers = stored - {shard.name for shard in targets}
        if strangers:
            raise CheckpointError(
                explain(
                    f"{reader.path} holds averages of tensors that the task does not have",
                    got=sorted(strangers)[:5],
                    fix="build the model as it was when it was saved, or begin the averages anew by leaving callbacks "
                    "out of restore.only",
                )
            )
        read_shards(reader, self.kind, targets)
        self._values = {key_of(shard): shard.tensor for shard in targets}
        self.refresh()

    def load_in_place(self, reader: CheckpointReader) -> None:
        """Give the task the averages of a checkpoint as its weights, for good."""
        stored = set(reader.names(self.kind))
        with torch.no_grad():
            read_shards(reader, self.kind, [shard for shard in self._live() if shard.name in stored])

    @property
    def is_empty(self) -> bool:
        """Whether there are no averages yet."""
        return not self._values


def key_of(shard: Shard) -> Key:
    """Return what tells a piece from the others of its process."""
    return shard.name, tuple(shard.offset)


def as_average(function: Callable[[Tensor, Tensor, int], Tensor]) -> Average:
    """Return an `Average` of a function for one tensor, as torch's `avg_fn`: (average, value, updates) to the new."""

    def average(averages: Sequence[Tensor], values: Sequence[Tensor], updates: int) -> None:
        for kept, value in zip(averages, values, strict=True):
            kept.copy_(function(kept, value, updates))

    return average


def equally(averages: Sequence[Tensor], values: Sequence[Tensor], updates: int) -> None:
    """Average so that every value that was taken in counts the same (Izmailov et al. 2018, arXiv:1803.05407)."""
    torch._foreach_lerp_(list(averages), list(values), 1.0 / (updates + 1))


def check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Read the dtype of averages.

    Raises:
        ValueError: it is no floating-point dtype.
    """
    known: Mapping[str, torch.dtype] = {
        name: vars(torch)[name] for name in ("float64", "float32", "bfloat16", "float16")
    }
    found = known.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in known.values():
        raise ValueError(explain("Averages have a floating-point dtype", got=dtype, fix="dtype='float32'"))
    return found
