"""The tensors of a checkpoint as a module wants them: renamed, left out, resized, and checked before any is copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskloom.checkpoint.left_out import STATE, base_problems
from taskloom.checkpoint.reader import CheckpointReader
from taskloom.checkpoint.restore import Names, RestorePolicy, RestoreReport
from taskloom.core.errors import CheckpointError, explain, nearest


class Weights:
    """Which stored tensor goes where.

    Args:
        reader: the checkpoint.
        policy: what is changed on the way.
        module: that takes them, as its user wrote it.
        owner: whose they are, for errors.
        strict: names must match exactly, unless the policy allows what is missing.
        prefix: of the names in the checkpoint that are meant; not part of the names of the module.

    Attributes:
        stored: names in the checkpoint.
        targets: the module's parameters, persistent buffers and extra state by name.
        problems: why the checkpoint does not fit, empty if it does.
        missing: names of the module that the checkpoint does not hold.
        unexpected: names of the checkpoint that the module does not have.
        other_base: why weights that the checkpoint leaves out are not those that it was trained with.
        resized: name to the shapes in the checkpoint and now.
    """

    def __init__(
        self,
        reader: CheckpointReader,
        policy: RestorePolicy,
        module: nn.Module,
        owner: str,
        *,
        strict: bool = True,
        prefix: str = "",
    ) -> None:
        self._reader, self._policy, self._owner = reader, policy, owner
        self.targets: Mapping[str, Any] = module.state_dict(keep_vars=True)
        targets = self.targets
        self.names: Names = policy.names
        self.stored = [name.removeprefix(prefix) for name in reader.model_names() if name.startswith(prefix)]
        self._prefix = prefix
        self.problems: list[str] = []
        self._sources = self._found(policy.weights)
        members = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
        here = {name: tensor for name, tensor in targets.items() if id(tensor) in members}
        loaded = {id(targets[name]) for name in self._sources if name in targets}
        self.ignored = [name for name in dict.fromkeys([*self._sources, *targets]) if self.names.ignores(name)]
        for name in self.ignored:
            self._sources.pop(name, None)
        left_out = {
            name: value
            for stored, value in reader.state.get(STATE, {}).get("tensors", {}).items()
            for name in [self.names.now(stored.removeprefix(prefix))]
            if stored.startswith(prefix) and name in targets and not self.names.ignores(name)
        }
        self.other_base = base_problems(left_out, here, str(reader.path))
        if strict and policy.missing == "error":
            self.problems += self.other_base
        self.missing = [
            name
            for name, tensor in targets.items()
            if name not in self._sources
            and id(tensor) not in loaded
            and name not in left_out
            and name not in self.ignored
        ]
        self.unexpected = [name for name in self._sources if name not in targets]
        self.resized: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self._compare_shapes(here)
        if strict and policy.missing == "error" and (self.missing or self.unexpected):
            self.problems.insert(0, self._mismatch())

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name now, tensor) one by one; each is read when it is its turn."""
        for name, (kind, stored) in self._sources.items():
            if name not in self.targets:
                continue
            tensor = self._reader.tensor(kind, stored)
            yield name, overlapping(tensor, self.targets[name]) if name in self.resized else tensor

    def raise_problems(self) -> None:
        """Raise what is wrong, all of it.

        Raises:
            CheckpointError: there is something.
        """
        raise_all(self.problems, f"{self._reader.path} cannot be restored")

    def tell(self, report: RestoreReport) -> None:
        """Add what differs from the checkpoint to a report."""
        for old, new in self.names.renames.items():
            count = sum(self.names.now(name) != name for name in self.stored)
            report.changes.append(("Renamed", f"{old} to {new} ({count} tensors renamed in all)"))
        if self._policy.weights != "model":
            report.changes.append(("Weights", f"{self._policy.weights} of the checkpoint"))
        report.note("Ignored", self.ignored)
        report.note("Resized", (f"{name} {old} to {new}" for name, (old, new) in self.resized.items()))
        report.note("Not loaded", (f"{name} (only in the checkpoint)" for name in self.unexpected))
        report.note("As made", (f"{name} (not in the checkpoint)" for name in self.missing))

    def _found(self, kind: str) -> dict[str, tuple[str, str]]:
        """Return name now to (kind, stored name)."""
        reader = self._reader
        if kind not in reader.kinds:
            known = [each for each in reader.kinds if each != "optimizer"]
            raise CheckpointError(
                explain(
                    f"{reader.path} holds no weights called {kind!r}",
                    got=known,
                    fix=f"restore.weights is one of those.{nearest(kind, known)}",
                )
            )
        own = frozenset(reader.names(kind))
        found: dict[str, tuple[str, str]] = {}
        for own_name in self.stored:
            stored, name = self._prefix + own_name, self.names.now(own_name)
            if name in found:
                self.problems.append(
                    explain(f"restore.rename gives two tensors the name {name!r}", fix="make the patterns narrower")
                )
            there = next((each for each in (stored, reader.aliases.get(stored, stored)) if each in own), None)
            found[name] = (kind, there) if there is not None else ("model", stored)
        return found

    def _compare_shapes(self, here: Mapping[str, Tensor]) -> None:
        for name, (kind, stored) in self._sources.items():
            if name not in here:
                continue
            key = self._reader.aliases.get(stored, stored) if kind == "model" else stored
            old, new = self._reader.dtype_and_shape(kind, key)[1], tuple(here[name].shape)
            if old == new:
                continue
            if self.names.resizes(name) and len(old) == len(new):
                self.resized[name] = (old, new)
                continue
            self.problems.append(
                explain(
                    f"{name!r} has another shape in the checkpoint",
                    got=f"{old} for {new}",
                    fix=f"build the model as it was saved, or restore.resize={name!r} for the part that overlaps, or "
                    f"restore.ignore={name!r}",
                )
            )

    def _mismatch(self) -> str:
        state, known = self._reader.state, len(self._sources)
        task = state.get("task_class")
        another = isinstance(task, str) and task.rpartition(".")[2] != self._owner
        fits = known - len(self.unexpected)
        parts = [
            f"{label} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for label, names in (("missing:", self.missing), ("not in the module:", self.unexpected))
            if names
        ]
        what = f"The checkpoint does not hold the tensors of {self._owner}"
        if another:
            what = f"{self._reader.path} was written by another task, {task}"
            parts.insert(0, f"{fits} of its {known} tensors are in {self._owner}")
        return explain(
            what,
            got="; ".join(parts),
            fix=f"pass the checkpoint of a {self._owner}, or say what fits with restore.rename and restore.ignore"
            if another
            else "build the model as it was saved, or pass strict=False (restore.missing='warn') to load what fits",
        )


@torch.no_grad()
def copy_into(module: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> tuple[list[str], list[str]]:
    """Copy named tensors into a module as they come, wherever and in whatever dtype its own are.

    Returns:
        Names of the module that were not among them, and names that the module does not have.

    Raises:
        CheckpointError: a tensor has another shape.
    """
    targets = module.state_dict(keep_vars=True)
    members = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    made_on_demand: dict[str, Tensor] = {}
    unexpected: list[str] = []
    loaded: set[int] = set()
    for name, tensor in tensors:
        if name not in targets:
            unexpected.append(name)
            continue
        target = targets[name]
        loaded.add(id(target))
        if id(target) not in members:  # extra state, or the work of a hook: only the module itself can take it back
            made_on_demand[name] = tensor
        elif target.shape != tensor.shape:
            raise CheckpointError(
                explain(
                    f"{name!r} has another shape in the checkpoint",
                    got=f"{tuple(tensor.shape)} for {tuple(target.shape)}",
                    fix="build the model as it was saved, or load only the tensors that fit",
                )
            )
        else:
            target.copy_(tensor)
    if made_on_demand:
        module.load_state_dict(made_on_demand, strict=False)
    return [name for name, target in targets.items() if id(target) not in loaded], unexpected


def overlapping(stored: Tensor, target: Tensor, *, fill: float | None = None) -> Tensor:
    """Return a tensor of the target's shape that holds the stored values where the two overlap.

    Args:
        stored: with as many dimensions as the target, of any sizes.
        target: gives shape and the other values.
        fill: the other values instead.
    """
    whole = target.detach().to("cpu", stored.dtype, copy=True)
    if fill is not None:
        whole.fill_(fill)
    part = tuple(slice(0, min(sizes)) for sizes in zip(stored.shape, whole.shape, strict=True))
    with torch.no_grad():
        whole[part] = stored[part]
    return whole


def raise_all(problems: list[str], what: str) -> None:
    """Raise a `CheckpointError` that tells all of the problems, or return if there are none."""
    if len(problems) == 1:
        raise CheckpointError(problems[0])
    if problems:
        listed = "\n".join(f"  {number}. {problem}" for number, problem in enumerate(problems, 1))
        raise CheckpointError(f"{what}, for {len(problems)} reasons:\n{listed}")
