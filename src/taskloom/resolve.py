"""The strings a user typed, to the objects that work: once, here, and nowhere else.

`resolve` is a function of its arguments and of what the machine has. It finds every problem before it raises, so that a
configuration is corrected once. Third parties add names through the entry points `taskloom.accelerators`,
`taskloom.precisions`, `taskloom.strategies` and `taskloom.launchers`; an object can always be passed in place of a
name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from taskloom.accelerators import Accelerator
from taskloom.core.errors import ConfigError, explain, nearest
from taskloom.launch import Launcher
from taskloom.launch.environments import Environment, SingleProcess
from taskloom.precision import Precision
from taskloom.strategies import Strategy

Kind = Literal["accelerator", "precision", "strategy", "launcher"]
Made = TypeVar("Made")

ACCELERATORS: Mapping[str, str] = {
    "cpu": "taskloom.accelerators.cpu:CPUAccelerator",
    "cuda": "taskloom.accelerators.cuda:CUDAAccelerator",
    "mps": "taskloom.accelerators.mps:MPSAccelerator",
}
PRECISIONS: Mapping[str, str] = {
    "32-true": "taskloom.precision.native:NativePrecision",
    "64-true": "taskloom.precision.native:NativePrecision",
    "bf16-true": "taskloom.precision.native:NativePrecision",
    "16-true": "taskloom.precision.native:NativePrecision",
    "bf16-mixed": "taskloom.precision.amp:MixedPrecision",
    "16-mixed": "taskloom.precision.amp:MixedPrecision",
}
STRATEGIES: Mapping[str, str] = {"single": "taskloom.strategies.single:SingleStrategy"}
LAUNCHERS: Mapping[str, str] = {"in_process": "taskloom.launch.base:InProcess"}

ALIASES: Mapping[Kind, Mapping[str, str]] = {
    "accelerator": {"rocm": "cuda"},
    # Lightning's older spellings, as ints and as texts.
    "precision": {"32": "32-true", "64": "64-true", "16": "16-mixed", "bf16": "bf16-mixed"},
    "strategy": {"single_device": "single"},
    "launcher": {},
}
"""Other spellings; each is accepted where the name it stands for exists."""

PREFERENCE = ("cuda", "mps", "cpu")
"""The order in which `accelerator="auto"` looks for devices; third parties' are taken by name only."""
GPUS = ("cuda", "mps")
"""What `accelerator="gpu"` means."""


@dataclass(frozen=True)
class Registry:
    """The names of one kind of object, and where each is made.

    Args:
        kind: what they are, for messages.
        built_in: name to `module:Class`, imported when the name is first used.
        group: of entry points that add names.
        aliases: other spelling to name.
    """

    kind: Kind
    built_in: Mapping[str, str]
    group: str
    aliases: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        """Return every name that can be typed, without aliases, our own first."""
        return tuple(dict.fromkeys((*self.built_in, *self._added())))

    def canonical(self, name: str) -> str:
        """Return the name that a spelling stands for."""
        return self.aliases.get(name, name)

    def load(self, name: str) -> Any:
        """Import and return the class behind a name or an alias.

        Raises:
            ValueError: there is no such name; tells the nearest.
        """
        name = self.canonical(name)
        if name in self.built_in:
            module, _, attribute = self.built_in[name].partition(":")
            return getattr(import_module(module), attribute)
        added = self._added()
        if name in added:
            return added[name].load()
        known = self.names()
        close = nearest(name, (*known, *self.aliases))
        raise ValueError(explain(f"There is no {self.kind} {name!r}", fix=f"use one of {', '.join(known)}.{close}"))

    def _added(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}


REGISTRIES: Mapping[Kind, Registry] = {
    "accelerator": Registry("accelerator", ACCELERATORS, "taskloom.accelerators", ALIASES["accelerator"]),
    "precision": Registry("precision", PRECISIONS, "taskloom.precisions", ALIASES["precision"]),
    "strategy": Registry("strategy", STRATEGIES, "taskloom.strategies", ALIASES["strategy"]),
    "launcher": Registry("launcher", LAUNCHERS, "taskloom.launchers", ALIASES["launcher"]),
}


def names(kind: Kind) -> tuple[str, ...]:
    """Return what a user may type for an `"accelerator"`, a `"precision"` and so on, aliases left out."""
    return REGISTRIES[kind].names()


@dataclass(frozen=True)
class Graph:
    """The resolved objects, connected to each other; nothing has been started.

    Attributes:
        accelerator: the devices.
        precision: the dtype policy.
        environment: the place of this process among the others.
        strategy: what joins them.
        devices: indices of the devices on each machine.
        num_nodes: machines.
        chosen: what was left to us, as `name=choice`, and why it is that.
    """

    accelerator: Accelerator
    precision: Precision
    environment: Environment
    strategy: Strategy
    devices: tuple[int, ...]
    num_nodes: int
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def launcher(self) -> Launcher:
        """What starts the processes."""
        return self.strategy.launcher


def resolve(
    *,
    accelerator: str | Accelerator = "auto",
    devices: int | str | Sequence[int] = "auto",
    num_nodes: int = 1,
    strategy: str | Strategy = "auto",
    precision: str | int | Precision = "32-true",
    environments: Iterable[type[Environment]] = (SingleProcess,),
    registries: Mapping[Kind, Registry] = REGISTRIES,
) -> Graph:
    """Turn what a user typed into connected objects.

    Args:
        accelerator: `auto` (the first of cuda, mps, cpu that is there), `gpu` (cuda or mps), a name, or an object.
        devices: how many (`2`), which (`"0,3"`, `[0, 3]`), all (`-1`), or as many as the strategy can use (`"auto"`);
            on a CPU, processes.
        num_nodes: machines.
        strategy: `auto` (single on one device), a name, or an object with its options.
        precision: a name such as `bf16-mixed`, or an object with its options.
        environments: that may have started this process; the first that recognises itself is taken.
        registries: the names that are known.

    Raises:
        ConfigError: with every problem that was found.
    """
    problems: list[str] = []
    chosen_accelerator = _accelerator(accelerator, registries["accelerator"], problems)
    chosen_precision = _precision(precision, registries["precision"], problems)
    indices: list[int] | None = None
    if chosen_accelerator is not None:
        indices = _attempt(problems, chosen_accelerator.parse_devices, devices)
    if isinstance(num_nodes, bool) or not isinstance(num_nodes, int) or num_nodes < 1:
        problems.append(explain("num_nodes is a whole number of at least 1", got=num_nodes, fix="num_nodes=1"))
        num_nodes = 1
    offered = num_nodes > 1 or (indices is not None and len(indices) > 1)
    # "auto" means as many as the strategy can use; a number means that many, or an error.
    demanded = num_nodes > 1 or (offered and devices != "auto")
    chosen_strategy = _strategy(strategy, offered, demanded, registries["strategy"], problems)
    if indices and chosen_strategy is not None and not chosen_strategy.takes_several_devices:
        indices = indices[:1]
    if chosen_accelerator is not None and chosen_precision is not None:
        problems.extend(_missing_dtypes(chosen_accelerator, chosen_precision))
    found = next((kind for kind in environments if kind.detect()), SingleProcess)()
    if chosen_accelerator and chosen_precision and chosen_strategy and indices is not None and not problems:
        _attempt(problems, chosen_strategy.connect, chosen_accelerator, chosen_precision, indices, num_nodes, found)
        if not problems:
            chosen = {}
            if accelerator in ("auto", "gpu"):
                chosen[f"accelerator={chosen_accelerator.name}"] = f"it is the first of {_preferred(accelerator)} here"
            if strategy == "auto":
                count = len(indices) * num_nodes
                chosen[f"strategy={chosen_strategy.name}"] = f"it runs on {count} device{'s' if count > 1 else ''}"
            return Graph(
                chosen_accelerator, chosen_precision, found, chosen_strategy, tuple(indices), num_nodes, chosen
            )
    raise ConfigError(problems)


def _preferred(given: object) -> str:
    return ", ".join(PREFERENCE if given == "auto" else GPUS)


def _attempt(problems: list[str], make: Callable[..., Made], *arguments: Any) -> Made | None:
    """Call `make`; note a mistake of the user's instead of raising it."""
    try:
        return make(*arguments)
    except (ValueError, ImportError) as error:
        problems.append(str(error))
        return None


def _accelerator(given: object, registry: Registry, problems: list[str]) -> Accelerator | None:
    if isinstance(given, Accelerator):
        return given
    candidates = {"auto": PREFERENCE, "gpu": GPUS}.get(given, (given,)) if isinstance(given, str) else ()
    if not candidates:
        problems.append(_wrong_type("accelerator", given, registry))
        return None
    kinds = [kind for name in candidates if (kind := _attempt(problems, registry.load, name)) is not None]
    for kind in kinds:
        if kind.is_available():
            made: Accelerator = kind()
            return made
    if kinds:
        first = kinds[0]
        here = [name for name, kind in _importable(registry) if kind.is_available()]
        problems.append(
            explain(
                f"Accelerator {given!r} is not available on this machine",
                why=first.unavailable_reason(),
                fix=f"that, or accelerator={' or '.join(map(repr, here))} which is here",
            )
        )
    return None


def _precision(given: object, registry: Registry, problems: list[str]) -> Precision | None:
    if isinstance(given, Precision):
        return given
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        problems.append(_wrong_type("precision", given, registry))
        return None
    name = registry.canonical(str(given))
    kind = _attempt(problems, registry.load, name)
    return None if kind is None else _attempt(problems, kind.from_name, name)


def _strategy(given: object, offered: bool, demanded: bool, registry: Registry, problems: list[str]) -> Strategy | None:
    if isinstance(given, str):
        kind = _strategy_class(given, offered, demanded, registry, problems)
        if kind is None:
            return None
        made = kind()
    elif isinstance(given, Strategy):
        made = given
    else:
        problems.append(_wrong_type("strategy", given, registry))
        return None
    if demanded and not made.takes_several_devices:
        able = " or ".join(f"strategy={name!r}" for name in _for_several_devices(registry)) or _NONE_ABLE
        problems.append(
            explain(
                f"Strategy {made.name!r} runs on one device, and more were asked for",
                fix=f"devices=1 and num_nodes=1, or {able}",
            )
        )
        return None
    return made


_NONE_ABLE = "install a strategy for several devices (none is installed)"


def _strategy_class(
    given: str, offered: bool, demanded: bool, registry: Registry, problems: list[str]
) -> type[Strategy] | None:
    if given != "auto":
        return _attempt(problems, registry.load, given)
    able = _for_several_devices(registry) if offered else []
    if not able and not demanded:
        return _attempt(problems, registry.load, "single")
    if not able:
        problems.append(explain("More than one device was asked for", why=_NONE_ABLE, fix="devices=1, num_nodes=1"))
        return None
    return _attempt(problems, registry.load, able[0])


def _for_several_devices(registry: Registry) -> list[str]:
    return [name for name, kind in _importable(registry) if kind.takes_several_devices]


def _importable(registry: Registry) -> Iterator[tuple[str, Any]]:
    for name in registry.names():
        try:
            yield name, registry.load(name)
        except ImportError:  # a package that is not installed matters to those who type the name
            continue


def _missing_dtypes(accelerator: Accelerator, precision: Precision) -> list[str]:
    return [
        explain(
            f"Accelerator {accelerator.name!r} does not compute in {str(dtype).removeprefix('torch.')}",
            why=f"precision {precision.name!r} needs it",
            fix="another precision, such as '32-true', or accelerator='cpu'",
        )
        for dtype in precision.required_dtypes()
        if not accelerator.supports(dtype)
    ]


def _wrong_type(kind: Kind, given: object, registry: Registry) -> str:
    return explain(
        f"{kind} is a name or an object of taskloom's {kind.capitalize()}",
        got=given,
        fix=f"{kind}='{registry.names()[0]}', or an instance",
    )
