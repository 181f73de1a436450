"""`Fabric.save` and `Fabric.load`: a dict of modules, optimizers, stateful objects and data, as one checkpoint.

A checkpoint of one module holds its tensors under their own names, so any safetensors reader can load it; of several,
each name begins with the module's key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.checkpoint import CheckpointContent, CheckpointReader, Shard, open_checkpoint, write_checkpoint
from taskloom.core.errors import CheckpointError, explain, nearest
from taskloom.optim import parameters_of
from taskloom.strategies import Strategy

Filter = Mapping[str, Callable[[str, Any], bool]]


@runtime_checkable
class Stateful(Protocol):
    """Anything that gives and takes its state, such as a scheduler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Restore it."""
        ...


class Parts:
    """A user's dict, sorted by what can be done with its values.

    Args:
        state: key to module, optimizer, stateful object or data.
        unwrapped: returns what the strategy works on, for a module or an optimizer that was set up.

    Raises:
        ValueError: an optimizer comes without a module that it trains.
    """

    def __init__(self, state: Mapping[str, Any], unwrapped: Callable[[Any], Any]) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Optimizer] = {}
        self.objects: dict[str, Stateful] = {}
        self.values: dict[str, Any] = {}
        for key, value in state.items():
            if isinstance(value, nn.Module):
                self.modules[key] = unwrapped(value)
            elif isinstance(value, Optimizer):
                self.optimizers[key] = unwrapped(value)
            elif isinstance(value, Stateful):
                self.objects[key] = value
            else:
                self.values[key] = value
        known = {parameter for module in self.modules.values() for parameter in module.parameters()}
        for key, optimizer in self.optimizers.items():
            if not known.issuperset(parameters_of(optimizer)):
                raise ValueError(
                    explain(
                        f"The optimizer {key!r} is to be saved or loaded without all of its modules",
                        why="moments are kept by the names of the parameters",
                        fix="put the modules it trains into the same dict",
                    )
                )

    def holder(self, *, named: bool) -> nn.Module:
        """Return one module whose parameter names are those in the file: with the key in front if `named`."""
        return nn.ModuleDict(self.modules) if named else next(iter(self.modules.values()))


def save_state(path: str | Path, parts: Parts, strategy: Strategy, filters: Filter) -> None:
    """Write a checkpoint.

    Raises:
        ValueError: a filter names something that is not there, or cannot be filtered.
        CheckpointError: a value is not data, or the place cannot be written.
    """
    _check_filters(parts, filters)
    named = len(parts.modules) != 1
    prefixes = {key: f"{key}." if named else "" for key in parts.modules}
    model: list[Shard] = []
    aliases: dict[str, str] = {}
    for key, module in parts.modules.items():
        prefix, keeps = prefixes[key], filters.get(key)
        kept = [shard for shard in strategy.model_shards(module) if keeps is None or keeps(shard.name, shard.tensor)]
        names = {shard.name for shard in kept}
        tied = {name: stored for name, stored in strategy.aliases(module).items() if {name, stored} <= names}
        model += [replace(shard, name=prefix + shard.name) for shard in kept]
        aliases.update({prefix + name: prefix + stored for name, stored in tied.items()})
    holder = parts.holder(named=named) if parts.optimizers else nn.Module()
    state: dict[str, Any] = {
        "modules": prefixes,
        "optimizers": strategy.optimizer_state(holder, parts.optimizers),
        "objects": {key: _filtered(value.state_dict(), filters.get(key)) for key, value in parts.objects.items()},
        "values": {key: _filtered(value, filters.get(key)) for key, value in parts.values.items()},
        "precision": strategy.precision.state_dict(),
    }
    moments = strategy.optimizer_shards(holder, parts.optimizers)
    write_checkpoint(path, CheckpointContent(model=model, optimizer=moments, state=state, aliases=aliases))


def load_state(path: str | Path, parts: Parts, strategy: Strategy, *, strict: bool) -> dict[str, Any]:
    """Restore modules, optimizers and stateful objects from a checkpoint and return its data.

    Raises:
        CheckpointError: it does not verify, or with `strict` it does not hold exactly what is asked for.
    """
    with open_checkpoint(path, verify=True) as reader:
        state = reader.state
        _check_keys(path, parts, state, strict=strict)
        prefixes: dict[str, str] = state["modules"]
        for key, module in parts.modules.items():
            if key in prefixes:
                strategy.load_model(module, _below(prefixes[key], reader), strict=strict)
        own = {key: optimizer for key, optimizer in parts.optimizers.items() if key in state["optimizers"]}
        if own:
            holder = parts.holder(named=any(prefixes.values()))
            saved = {key: state["optimizers"][key] for key in own}
            strategy.load_optimizers(holder, own, saved, reader.optimizer_tensors())
            strategy.precision.load_state_dict(state["precision"])
        for key, stateful in parts.objects.items():
            if key in state["objects"]:
                stateful.load_state_dict(state["objects"][key])
        values: dict[str, Any] = dict(state["values"])
    return values


def read_state(path: str | Path) -> dict[str, Any]:
    """Return all of a checkpoint but the optimizers: data, states of objects, and per module a dict of tensors."""
    with open_checkpoint(path, verify=True) as reader:
        state = reader.state
        modules = {key: dict(_below(prefix, reader)) for key, prefix in state["modules"].items()}
        return {**state["values"], **state["objects"], **modules}


def _below(prefix: str, reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
    for name in reader.model_names():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), reader.tensor("model", name)


def _check_keys(path: str | Path, parts: Parts, state: Mapping[str, Any], *, strict: bool) -> None:
    saved = {key for kind in ("modules", "optimizers", "objects", "values") for key in state.get(kind, {})}
    if "modules" not in state:
        raise CheckpointError(
            explain(
                f"{path} was not written by Fabric.save",
                fix="load it with a Trainer, or TaskModule.load_from_checkpoint",
            )
        )
    asked: Mapping[str, Mapping[str, Any]] = {
        "modules": parts.modules,
        "optimizers": parts.optimizers,
        "objects": parts.objects,
    }
    for kind, objects in asked.items():
        for key in objects if strict else ():
            if key not in state[kind]:
                raise CheckpointError(
                    explain(
                        f"{path} holds no {kind.removesuffix('s')} {key!r}",
                        got=sorted(saved),
                        fix=f"use the key it was saved under, or pass strict=False.{nearest(key, saved)}",
                    )
                )


def _check_filters(parts: Parts, filters: Filter) -> None:
    known = {*parts.modules, *parts.objects, *parts.values}
    for key in filters:
        if key in parts.optimizers:
            raise ValueError(
                explain(
                    f"The optimizer {key!r} cannot be filtered",
                    why="it could not be restored",
                    fix="leave it out of the state",
                )
            )
        if key not in known:
            raise ValueError(
                explain(f"filter has no {key!r} to choose from", fix=f"use the keys of the state.{nearest(key, known)}")
            )


def _filtered(value: Any, keeps: Callable[[str, Any], bool] | None) -> Any:
    if keeps is None:
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            explain("Only modules and mappings can be filtered", got=value, fix="leave it out of the filter")
        )
    return {key: each for key, each in value.items() if keeps(key, each)}
