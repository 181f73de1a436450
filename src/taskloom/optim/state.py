"""Optimizer state by parameter name, so that neither the order of groups nor the strategy that wrote it matters.

torch numbers parameters by their place in the groups; a reordered group would then restore the moments of another
parameter without a word (Lightning issue 17515). Here every moment is `<parameter name>.<slot>`, and a group is found
again by the names in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from taskloom.core.errors import CheckpointError, explain
from taskloom.optim.groups import group_names, parameters_of

_AS_SAVED = "resume with the optimizers that wrote the checkpoint, or load its weights only"


def named_optimizer_tensors(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield `("<parameter name>.<slot>", tensor)` for every tensor that the optimizer keeps of a parameter."""
    for parameter in parameters_of(optimizer):
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{names[parameter]}.{slot}", value


def named_optimizer_state(optimizer: Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Any]:
    """Return what is not yielded above, as nested data.

    Returns:
        `groups`: per group `parameters` (names) and `options`; `parameters`: per parameter that has state, its
        `tensors` (names of slots) and `values` (slots that are no tensors, whatever data they are).
    """
    parameters = {}
    for parameter in parameters_of(optimizer):
        slots = optimizer.state.get(parameter)
        if slots:
            parameters[names[parameter]] = {
                "tensors": [slot for slot, value in slots.items() if isinstance(value, Tensor)],
                "values": {slot: value for slot, value in slots.items() if not isinstance(value, Tensor)},
            }
    groups = [
        {"parameters": listed, "options": {key: value for key, value in group.items() if key != "params"}}
        for listed, group in zip(group_names(optimizer, names), optimizer.param_groups, strict=True)
    ]
    return {"class": type(optimizer).__name__, "groups": groups, "parameters": parameters}


def restore_optimizer(
    name: str,
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Restore an optimizer from what the two functions above gave.

    Args:
        name: of the optimizer, for errors.
        optimizer: with the same parameters, in any order within and among its groups.
        names: of its parameters.
        state: what `named_optimizer_state` returned.
        tensors: what `named_optimizer_tensors` yielded, as `taken_over` returns them; the optimizer keeps them.

    Raises:
        CheckpointError: the groups hold other parameters, or a tensor is missing or has another shape.
    """
    order = _match_groups(name, group_names(optimizer, names), [group["parameters"] for group in state["groups"]])
    slots: dict[int, dict[str, Any]] = {}
    groups: list[dict[str, Any]] = []
    index = 0
    for group, position in zip(optimizer.param_groups, order, strict=True):
        options = state["groups"][position]["options"]
        numbers = []
        for parameter in group["params"]:
            saved = state["parameters"].get(names[parameter])
            if saved is not None:
                slots[index] = _slots(name, parameter, names[parameter], saved, tensors)
            numbers.append(index)
            index += 1
        groups.append({**_fitting_options(group, options), "params": numbers})
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    _undo_casts(optimizer, slots)


def _slots(
    optimizer: str, parameter: nn.Parameter, name: str, saved: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    found = dict(saved["values"])
    for slot in saved["tensors"]:
        tensor = tensors.get(f"{name}.{slot}")
        if tensor is None:
            raise CheckpointError(
                explain(
                    f"The checkpoint lacks the tensor {name}.{slot} of optimizer {optimizer!r}",
                    why="its state says that it was saved",
                    fix="use another checkpoint; this one is damaged",
                )
            )
        if tensor.ndim and tensor.numel() == parameter.numel() and tensor.shape != parameter.shape:
            raise CheckpointError(
                explain(
                    f"The moment {name}.{slot} does not have the shape of its parameter",
                    got=f"{tuple(tensor.shape)} for {tuple(parameter.shape)}",
                    fix=_AS_SAVED,
                )
            )
        found[slot] = tensor
    return found


def taken_over(tensors: Iterable[tuple[str, Tensor]], names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """Copy tensors of an optimizer to where they belong, one by one, so that only one is held twice at a time.

    A counter stays where it was made (torch keeps Adam's on the CPU); a moment lives beside its parameter. A copy,
    because the tensor may be a view of the file.
    """
    devices = {name: parameter.device for parameter, name in names.items()}
    return {
        name: tensor.clone()
        if tensor.ndim == 0
        else tensor.to(devices.get(name.rpartition(".")[0], tensor.device), copy=True)
        for name, tensor in tensors
    }


def _undo_casts(optimizer: Optimizer, slots: Mapping[int, Mapping[str, Any]]) -> None:
    """Give tensors back the dtype they were saved in, where torch brought them to the parameter's."""
    for number, parameter in enumerate(parameters_of(optimizer)):
        restored = optimizer.state.get(parameter, {})
        for slot, value in slots.get(number, {}).items():
            now = restored.get(slot)
            if isinstance(value, Tensor) and isinstance(now, Tensor) and now.dtype is not value.dtype:
                restored[slot] = value.to(now.device)


def _fitting_options(group: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the saved options, as tensors where the group has tensors (a capturable rate) and numbers elsewhere."""
    fitting = dict(options)
    for key, value in options.items():
        now = group.get(key)
        if isinstance(now, Tensor):
            fitting[key] = torch.as_tensor(value, dtype=now.dtype).to(now.device, copy=True)
        elif isinstance(value, Tensor) and isinstance(now, (int, float)):
            fitting[key] = value.item()
    return fitting


def _match_groups(name: str, current: list[list[str]], saved: list[list[str]]) -> list[int]:
    """Return for each current group which of the saved ones holds the same parameters."""
    positions = {frozenset(listed): position for position, listed in enumerate(saved)}
    order = [positions.get(frozenset(listed)) for listed in current]
    matched = [position for position in order if position is not None]
    if len(matched) == len(current) == len(saved):
        return matched
    now, then = ({entry for listed in groups for entry in listed} for groups in (current, saved))
    if now != then:
        problem = "; ".join(
            f"{label}: {', '.join(sorted(found)[:5])}"
            for label, found in (("only in the checkpoint", then - now), ("only in the optimizer", now - then))
            if found
        )
    else:
        problem = (
            f"the same parameters are spread over {len(current)} groups in another way than over the saved {len(saved)}"
        )
    raise CheckpointError(
        explain(
            f"The groups of optimizer {name!r} do not hold the parameters they were saved with",
            got=problem,
            fix=_AS_SAVED,
        )
    )
