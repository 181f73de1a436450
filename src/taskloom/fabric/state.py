"""`Fabric.save` and `Fabric.load`: a dict of modules, optimizers, stateful objects and data, as one checkpoint.

A checkpoint of one module holds its tensors under their own names, so any safetensors reader can load it; of several,
each name begins with the module's key.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.checkpoint import CheckpointContent, CheckpointReader, RestorePolicy, Shard, open_checkpoint
from taskloom.checkpoint.left_out import STATE, TensorHashes, without_frozen
from taskloom.checkpoint.place import Place
from taskloom.checkpoint.restore import RestoreReport
from taskloom.checkpoint.settings import apply_settings
from taskloom.checkpoint.weights import Weights, overlapping, raise_all
from taskloom.core.errors import CheckpointError, explain, nearest
from taskloom.core.transfer import move_to_device
from taskloom.optim import parameters_of
from taskloom.optim.fitting import Fit, fit_optimizer
from taskloom.optim.groups import parameter_names
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


def content_of(
    parts: Parts, strategy: Strategy, filters: Filter, registered: Sequence[Stateful], *, exclude_frozen: bool
) -> CheckpointContent:
    """Gather what a checkpoint holds.

    Args:
        parts: what the user named.
        strategy: that knows the pieces of modules.
        filters: what is kept of a part.
        registered: objects that are saved with every checkpoint.
        exclude_frozen: leave out parameters that do not require gradients, and keep their hashes.

    Raises:
        ValueError: a filter names something that is not there, or cannot be filtered.
    """
    _check_filters(parts, filters)
    named = len(parts.modules) != 1
    prefixes = {key: f"{key}." if named else "" for key in parts.modules}
    model: list[Shard] = []
    aliases: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for key, module in parts.modules.items():
        prefix, keeps, shards = prefixes[key], filters.get(key), list(strategy.model_shards(module))
        if exclude_frozen:
            shards, told = without_frozen(shards, strategy.unwrap(module), TensorHashes())
            left_out.update({prefix + name: value for name, value in told["tensors"].items()})
        kept = [shard for shard in shards if keeps is None or keeps(shard.name, shard.tensor)]
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
        "registered": [{"class": type(each).__name__, "state": each.state_dict()} for each in registered],
        "precision": strategy.precision.state_dict(),
    }
    if exclude_frozen:
        state[STATE] = {"tensors": left_out}
    moments = strategy.optimizer_shards(holder, parts.optimizers)
    return CheckpointContent(model=model, optimizer=moments, state=state, aliases=aliases)


def load_state(
    path: Place,
    parts: Parts,
    strategy: Strategy,
    policy: RestorePolicy,
    registered: Sequence[Stateful],
    map_location: str | torch.device | None,
) -> dict[str, Any]:
    """Restore modules, optimizers and stateful objects from a checkpoint and return its data.

    Everything is compared first, so that a checkpoint which does not fit changes nothing.

    Raises:
        CheckpointError: it does not verify, or does not hold exactly what is asked for and the policy is strict; with
            all that does not fit.
    """
    with open_checkpoint(path, verify=True) as reader:
        state = dict(reader.state)
        if "modules" not in state:
            raise _not_ours(path)
        prefixes: dict[str, str] = state["modules"]
        problems = [*_key_problems(path, parts, state, policy), *_registered_problems(path, registered, state, policy)]
        weights = {
            key: Weights(reader, policy, strategy.unwrap(module), type(module).__name__, prefix=prefixes[key])
            for key, module in parts.modules.items()
            if key in prefixes
        }
        problems += [problem for each in weights.values() for problem in each.problems]
        stored = [name for each in weights.values() for name in each.stored]
        here = [name for each in weights.values() for name in each.targets]
        problems += policy.names.unused(stored, here)
        fits = _fits(parts, strategy, policy, state, prefixes)
        problems += [problem for fit in fits.values() for problem in fit.problems if policy.missing == "error"]
        fits = {key: fit for key, fit in fits.items() if not fit.another_kind}
        state["optimizers"] = {key: fit.state for key, fit in fits.items()}
        problems += _set_options(state, policy)
        raise_all(problems, f"{path} does not fit")
        for key, each in weights.items():
            strategy.load_model(parts.modules[key], each.tensors(), strict=False)
        if fits:
            moments = {now: stored for fit in fits.values() for now, stored in fit.keys.items()}
            strategy.load_optimizers(
                parts.holder(named=any(prefixes.values())),
                {key: parts.optimizers[key] for key in fits},
                state["optimizers"],
                ((now, reader.tensor("optimizer", name)) for now, name in moments.items()),
            )
            strategy.precision.load_state_dict(state["precision"])
        for key, stateful in parts.objects.items():
            if key in state["objects"]:
                stateful.load_state_dict(state["objects"][key])
        for stateful, entry in zip(registered, state.get("registered", ()), strict=False):
            stateful.load_state_dict(entry["state"])
        values: dict[str, Any] = dict(state["values"])
    return _moved(values, map_location)


def _fits(
    parts: Parts, strategy: Strategy, policy: RestorePolicy, state: Mapping[str, Any], prefixes: Mapping[str, str]
) -> dict[str, Fit]:
    own = {key: optimizer for key, optimizer in parts.optimizers.items() if key in state["optimizers"]}
    if not own:
        return {}
    names, named = policy.names, any(prefixes.values())
    parameters = parameter_names(strategy.unwrap(parts.holder(named=named)))

    def split(name: str) -> tuple[str, str]:
        prefix = next((each for each in prefixes.values() if each and name.startswith(each)), "")
        return prefix, name.removeprefix(prefix)

    def now(stored: str) -> str:
        prefix, name = split(stored)
        return prefix + names.now(name)

    return {
        key: fit_optimizer(
            key,
            optimizer,
            parameters,
            state["optimizers"][key],
            now=now,
            ignores=lambda name: names.ignores(split(name)[1], f"optimizer.{split(name)[1]}"),
            keeps_schedule=False,
        )
        for key, optimizer in own.items()
    }


def _set_options(state: dict[str, Any], policy: RestorePolicy) -> list[str]:
    """Set options of the optimizers; rates of schedulers follow where there is one optimizer that they can mean."""
    if not policy.settings:
        return []
    others = [key for key in policy.settings if not key.startswith("optimizer.")]
    if others:
        return [
            explain(
                f"Fabric sets options of optimizers, not {', '.join(others)}",
                fix="change what load returns, or the objects after it",
            )
        ]
    for key in ("optimizers", "objects"):
        state[key] = copy.deepcopy(state[key])
    alone = len(state["optimizers"]) == 1
    schedulers = [{"optimizer": None, "state": each} for each in state["objects"].values()] if alone else []
    return apply_settings({**state, "schedulers": schedulers}, policy.settings, RestoreReport())


def load_tensors(
    tensors: Mapping[str, Tensor], module: nn.Module, strategy: Strategy, policy: RestorePolicy, where: str
) -> None:
    """Load plain named tensors into a module.

    Raises:
        CheckpointError: they do not fit; nothing was changed then.
    """
    names, targets = policy.names, strategy.unwrap(module).state_dict(keep_vars=True)
    found = {names.now(name): tensor for name, tensor in tensors.items() if not names.ignores(names.now(name))}
    problems = names.unused(tensors, targets)
    ready: dict[str, Tensor] = {}
    for name, tensor in found.items():
        target = targets.get(name)
        if target is not None and tensor.shape != target.shape:
            if not (names.resizes(name) and tensor.ndim == target.ndim):
                got = f"{tuple(tensor.shape)} for {tuple(target.shape)}"
                problems.append(
                    explain(
                        f"{name!r} has another shape in {where}",
                        got=got,
                        fix=f"restore.resize={name!r} for the part that overlaps, or restore.ignore={name!r}",
                    )
                )
                continue
            tensor = overlapping(tensor, target)
        ready[name] = tensor
    loaded = {id(targets[name]) for name in found if name in targets}
    missing = [name for name, each in targets.items() if id(each) not in loaded and not names.ignores(name)]
    unexpected = [name for name in found if name not in targets]
    if policy.missing == "error" and (missing or unexpected):
        kinds = (("missing:", missing), ("not in the module:", unexpected))
        listed = [f"{label} {', '.join(some[:5])}" for label, some in kinds if some]
        problems.append(
            explain(
                f"{where} does not hold the tensors of {type(strategy.unwrap(module)).__name__}",
                got="; ".join(listed),
                fix="restore=RestorePolicy(rename={'model.*': '*'}), or strict=False to load what fits",
            )
        )
    raise_all(problems, f"{where} does not fit")
    strategy.load_model(module, ready.items(), strict=False)


def read_state(path: Place, map_location: str | torch.device | None = None) -> dict[str, Any]:
    """Return all of a checkpoint but the optimizers: data, states of objects, and per module a dict of tensors."""
    with open_checkpoint(path, verify=True) as reader:
        state = reader.state
        if "modules" not in state:
            raise _not_ours(path)
        modules = {key: dict(_below(prefix, reader)) for key, prefix in state["modules"].items()}
        return _moved({**state["values"], **state["objects"], **modules}, map_location)


def _moved(values: dict[str, Any], device: str | torch.device | None) -> dict[str, Any]:
    moved: dict[str, Any] = values if device is None else move_to_device(values, torch.device(device))
    return moved


def _below(prefix: str, reader: CheckpointReader) -> Iterator[tuple[str, Tensor]]:
    for name in reader.model_names():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), reader.tensor("model", name)


def _not_ours(path: Place) -> CheckpointError:
    return CheckpointError(
        explain(
            f"{path} was not written by Fabric.save", fix="load it with a Trainer, or TaskModule.load_from_checkpoint"
        )
    )


def _key_problems(path: Place, parts: Parts, state: Mapping[str, Any], policy: RestorePolicy) -> list[str]:
    saved = {key for kind in ("modules", "optimizers", "objects", "values") for key in state.get(kind, {})}
    asked: Mapping[str, Mapping[str, Any]] = {
        "modules": parts.modules,
        "optimizers": parts.optimizers,
        "objects": parts.objects,
    }
    return [
        explain(
            f"{path} holds no {kind.removesuffix('s')} {key!r}",
            got=sorted(saved),
            fix=f"use the key it was saved under, or pass strict=False.{nearest(key, saved)}",
        )
        for kind, objects in asked.items()
        for key in objects
        if key not in state[kind] and policy.missing == "error"
    ]


def _registered_problems(
    path: Place, registered: Sequence[Stateful], state: Mapping[str, Any], policy: RestorePolicy
) -> list[str]:
    saved = [each["class"] for each in state.get("registered", ())]
    now = [type(each).__name__ for each in registered]
    if saved == now or policy.missing != "error":
        return []
    return [
        explain(
            f"{path} holds other registered objects",
            got=f"{', '.join(saved) or 'none'} for {', '.join(now) or 'none'}",
            fix="call register_for_checkpointing with the same objects in the same order, or pass strict=False",
        )
    ]


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
