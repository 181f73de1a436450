"""States of random generators as data: those of the process, and those that loaders, samplers and data sets own.

A `random.Random`, a `numpy.random.Generator` or `RandomState` and a `torch.Generator` that a user keeps in a sampler, a
data set or a transform is found by walking its attributes, and named by the way there (`sampler.generator`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy
import torch

from taskloom.accelerators.base import Accelerator
from taskloom.core.errors import CheckpointError, explain, nearest

if TYPE_CHECKING:
    from numpy.random import Generator as NumPyGenerator
    from numpy.random import RandomState

States = dict[str, Any]
OwnGenerator: TypeAlias = "random.Random | NumPyGenerator | RandomState | torch.Generator"

NAMES: Final = ("python", "numpy", "torch", "device")
# Generators are held by samplers, data sets and transforms. What is none of these is not searched: a million samples in
# a list, the parameters of a network, an open file.
_CLOSED: Final = (
    str, bytes, bytearray, int, float, complex, type(None), range, type, ModuleType, FunctionType, BuiltinFunctionType,
    numpy.ndarray, torch.Tensor, torch.nn.Module, torch.dtype, torch.device,
)  # fmt: skip
_LONGEST_LIST, _MOST_OBJECTS, _DEEPEST = 64, 1000, 8


class Generators:
    """The random generators of this process: Python's, NumPy's, torch's on the CPU and that of the device.

    Args:
        accelerator: of the device; None for the CPU's generators alone.
        device: whose generator belongs to them.
    """

    def __init__(self, accelerator: Accelerator | None = None, device: torch.device | None = None) -> None:
        self._accelerator, self._device = accelerator, device

    def states(self, names: Collection[str] = NAMES) -> States:
        """Return the state of every generator, as data.

        Args:
            names: which to return.
        """
        return {name: self._state(name) for name in names}

    def _state(self, name: str) -> Any:
        match name:
            case "python":
                return random.getstate()
            case "numpy":
                return numpy.random.get_state()
            case "torch":
                return torch.get_rng_state()
            case "device" if self._accelerator is not None and self._device is not None:
                return self._accelerator.rng_state(self._device)
        return None

    def restore(self, states: Mapping[str, Any]) -> None:
        """Restore what `states` returned; generators that it lacks stay as they are."""
        if "python" in states:
            random.setstate(_python_state(states["python"]))
        if "numpy" in states:
            numpy.random.set_state(tuple(states["numpy"]))
        if "torch" in states:
            torch.set_rng_state(states["torch"])
        device = states.get("device")
        if device is not None and self._accelerator is not None and self._device is not None:
            self._accelerator.set_rng_state(device, self._device)

    @contextmanager
    def kept(self) -> Generator[None, None, None]:
        """Restore the generators on leaving, so that what is drawn within changes nothing outside."""
        states = self.states()
        try:
            yield
        finally:
            self.restore(states)


def own_generators(owners: Mapping[str, Any], without: Any = None) -> dict[str, OwnGenerator]:
    """Return the generators that objects keep among their attributes, by the way to each.

    Args:
        owners: objects to search, by the first part of the names.
        without: an object that is not searched.
    """
    return search(owners, without)[0]


def search(owners: Mapping[str, Any], without: Any = None) -> tuple[dict[str, OwnGenerator], int]:
    """Return what `own_generators` does, and how many objects were looked at; it takes some microseconds for each."""
    found: dict[str, OwnGenerator] = {}
    seen = {id(without)}
    for name, owner in owners.items():
        for way, generator in _walk(owner, name, seen, 0):
            found[way] = generator
    return found, len(seen)


def _walk(value: Any, way: str, seen: set[int], depth: int) -> Iterator[tuple[str, OwnGenerator]]:
    # `numpy.random` is imported on first use, which is not before there is something to draw.
    if isinstance(value, (random.Random, torch.Generator, numpy.random.Generator, numpy.random.RandomState)):
        if id(value) not in seen and not isinstance(value, random.SystemRandom):
            seen.add(id(value))
            yield way, value
        return
    if isinstance(value, _CLOSED) or id(value) in seen or depth > _DEEPEST or len(seen) > _MOST_OBJECTS:
        return
    seen.add(id(value))
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        if len(value) > _LONGEST_LIST:
            return
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _walk(part, f"{way}[{key!r}]", seen, depth + 1)
    elif isinstance(value, MethodType):
        yield from _walk(value.__self__, f"{way}.__self__", seen, depth + 1)
    else:
        for key, part in _attributes(value).items():
            yield from _walk(part, f"{way}.{key}", seen, depth + 1)


def _attributes(value: Any) -> dict[str, Any]:
    try:
        return dict(vars(value))
    except Exception:  # a built-in object, one with slots, a proxy of nothing: none that users keep generators in
        return {}


def own_state(generator: OwnGenerator) -> Any:
    """Return the state of one generator, as data."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, numpy.random.RandomState):
        return generator.get_state()
    return dict(generator.bit_generator.state)


def set_own_state(generator: OwnGenerator, state: Any) -> None:
    """Restore what `own_state` returned."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(_python_state(state))
    elif isinstance(generator, numpy.random.RandomState):
        generator.set_state(tuple(state))
    else:
        generator.bit_generator.state = state


def own_states(generators: Mapping[str, OwnGenerator]) -> States:
    """Return the states of generators that `own_generators` found, by their names."""
    return {name: own_state(generator) for name, generator in generators.items()}


def restore_own_states(generators: Mapping[str, OwnGenerator], states: Mapping[str, Any]) -> None:
    """Restore what `own_states` returned.

    Raises:
        CheckpointError: a generator that was saved is not there.
    """
    lost = sorted(states.keys() - generators.keys())
    if lost:
        raise CheckpointError(
            explain(
                f"The checkpoint has the state of the random generator {', '.join(lost)}, which the training data lack",
                got=sorted(generators) or "no generator",
                why="what they draw could not go on as it was",
                fix="make the generators in __init__ of what owns them, or begin the epoch's data anew with "
                "restore.data='restart'",
            )
        )
    for name, state in states.items():
        set_own_state(generators[name], state)


def _python_state(state: Any) -> tuple[Any, ...]:
    version, internal, gauss = state
    return version, tuple(internal), gauss


def synchronize(
    generators: Generators,
    names: Collection[str],
    own: Collection[OwnGenerator],
    broadcast: Callable[[Any], Any],
) -> None:
    """Give every process the state that chosen generators have in the first one.

    Args:
        generators: of this process.
        names: which of them, out of `NAMES`.
        own: further ones, as many and in the same order in every process.
        broadcast: returns what the first process passes.

    Raises:
        ValueError: a name is not known.
    """
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise ValueError(
            explain(
                f"There is no generator {unknown[0]!r}.{nearest(unknown[0], NAMES)}",
                got=list(names),
                fix=f"choose from {', '.join(map(repr, NAMES))}, and pass generators of your own as objects",
            )
        )
    states, own_ones = broadcast((generators.states(names), [own_state(each) for each in own]))
    generators.restore(states)
    for generator, state in zip(own, own_ones, strict=True):
        set_own_state(generator, state)
