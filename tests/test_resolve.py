"""What a user may type, and what it becomes, as tables."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import torch

from taskloom import resolve as module
from taskloom.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from taskloom.accelerators.devices import parse_device_indices
from taskloom.core.errors import ConfigError
from taskloom.launch.environments import SingleProcess
from taskloom.precision import LossScaling, MixedPrecision, NativePrecision
from taskloom.resolve import REGISTRIES, STRATEGIES, names, resolve
from taskloom.strategies import SingleStrategy


@pytest.fixture
def machine(monkeypatch):
    """Return a function that says which devices there are."""

    def have(cuda=0, mps=0):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: True)

    return have


class PairStrategy(SingleStrategy):
    """Stands for a strategy that takes several devices."""

    name = "pair"
    takes_several_devices = True

    def connect(self, accelerator, precision, devices, num_nodes, environment):
        super().connect(accelerator, precision, devices[:1], 1, environment)


class ToyAccelerator(CPUAccelerator):
    name = "toy"

    @classmethod
    def parse_devices(cls, devices):
        return parse_device_indices(devices, 8, "toy")

    def supports(self, dtype):
        return dtype is not torch.bfloat16


@pytest.fixture
def third_party(monkeypatch):
    """A package that registers one of everything through entry points."""
    points = {
        "taskloom.accelerators": [EntryPoint("toy", f"{__name__}:ToyAccelerator", "taskloom.accelerators")],
        "taskloom.strategies": [EntryPoint("pair", f"{__name__}:PairStrategy", "taskloom.strategies")],
        "taskloom.precisions": [EntryPoint("own", f"{__name__}:OwnPrecision", "taskloom.precisions")],
    }
    monkeypatch.setattr(EntryPoint, "load", lambda point: globals()[point.attr])
    monkeypatch.setattr(module, "entry_points", lambda group: points.get(group, []))


class OwnPrecision(NativePrecision):
    @classmethod
    def names(cls):
        return ("own",)

    @classmethod
    def from_name(cls, name):
        made = cls()
        made.name = name
        return made


@pytest.mark.holds("AC-01", "AC-02", "AC-03", "AC-04")
@pytest.mark.parametrize(
    ("typed", "have", "kind"),
    [
        ("auto", {}, CPUAccelerator),
        ("auto", {"mps": 1}, MPSAccelerator),
        ("auto", {"cuda": 1}, CUDAAccelerator),
        ("auto", {"cuda": 1, "mps": 1}, CUDAAccelerator),
        ("cpu", {"cuda": 1}, CPUAccelerator),
        ("cuda", {"cuda": 1}, CUDAAccelerator),
        ("rocm", {"cuda": 1}, CUDAAccelerator),
        ("gpu", {"cuda": 1, "mps": 1}, CUDAAccelerator),
        ("gpu", {"mps": 1}, MPSAccelerator),
        ("mps", {"cuda": 1, "mps": 1}, MPSAccelerator),
    ],
)
def test_accelerators(machine, typed, have, kind):
    machine(**have)
    assert type(resolve(accelerator=typed).accelerator) is kind


@pytest.mark.holds("PR-01", "PR-02", "PR-03")
@pytest.mark.parametrize(
    ("typed", "name"),
    [
        *((name, name) for name in ("32-true", "64-true", "bf16-true", "16-true", "bf16-mixed", "16-mixed")),
        *((32, "32-true"), (64, "64-true"), (16, "16-mixed")),
        *(("32", "32-true"), ("64", "64-true"), ("16", "16-mixed"), ("bf16", "bf16-mixed")),
    ],
)
def test_precisions(typed, name):
    assert resolve(accelerator="cpu", precision=typed).precision.name == name


@pytest.mark.parametrize("typed", ["auto", "single", "single_device"])
def test_strategies(typed):
    graph = resolve(accelerator="cpu", strategy=typed)
    assert type(graph.strategy) is SingleStrategy
    assert graph.strategy.accelerator is graph.accelerator
    assert graph.strategy.precision is graph.precision
    assert graph.strategy.environment is graph.environment
    assert (graph.devices, graph.num_nodes) == ((0,), 1)
    assert not graph.launcher.starts_processes


@pytest.mark.holds("CF-05", "CF-06", "PR-06", "AC-13")
def test_objects_are_taken_as_they_are():
    accelerator, strategy = ToyAccelerator(), SingleStrategy()
    precision = MixedPrecision("16", LossScaling(init_scale=4.0))
    graph = resolve(accelerator=accelerator, devices=[5], strategy=strategy, precision=precision)
    assert graph.accelerator is accelerator
    assert graph.strategy is strategy
    assert graph.precision is precision
    assert graph.devices == (5,)


@pytest.mark.holds("AC-10")
@pytest.mark.parametrize(
    ("typed", "device"), [(1, 0), ("1", 0), ([2], 2), ("3,", 3), (" 3, ", 3), ("auto", 0), (-1, None), (2, None)]
)
def test_one_device_of_several(machine, typed, device):
    machine(cuda=4)
    if device is None:
        with pytest.raises(ConfigError):
            resolve(accelerator="cuda", devices=typed)
    else:
        assert resolve(accelerator="cuda", devices=typed).strategy.device == torch.device("cuda", device)


@pytest.mark.holds("AC-02", "AC-03", "AC-04")
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            {"accelerator": "cuda"},
            r"Accelerator 'cuda' is not available on this machine\. Why: torch .*Fix: that, or accelerator='cpu' wh",
        ),
        ({"accelerator": "gpu"}, r"Accelerator 'gpu' is not available on this machine\. Why: torch .*CUDA"),
        ({"accelerator": "mps"}, r"Accelerator 'mps' is not available on this machine\. Why: .*Metal"),
        (
            {"accelerator": "cdua"},
            r"There is no accelerator 'cdua'\. Fix: use one of cpu, cuda, mps\. Did you mean",
        ),
        ({"accelerator": 3}, r"accelerator is a name or an object of taskloom's Accelerator\. Got: 3"),
        ({"precision": "bf16-mixd"}, r"There is no precision 'bf16-mixd'.*Did you mean 'bf16-mixed'\?"),
        ({"precision": 8}, r"There is no precision '8'"),
        ({"precision": True}, r"precision is a name or an object of taskloom's Precision\. Got: True"),
        ({"strategy": "singel"}, r"There is no strategy 'singel'\. Fix: use one of single\. Did you mean 'single'\?"),
        ({"strategy": None}, r"strategy is a name or an object of taskloom's Strategy\. Got: None"),
        ({"num_nodes": 0}, r"num_nodes is a whole number of at least 1\. Got: 0"),
        ({"num_nodes": "two"}, r"num_nodes is a whole number of at least 1\. Got: 'two'"),
        ({"devices": "two"}, r"devices cannot be read\. Got: 'two'"),
        ({"devices": 2}, r"More than one device was asked for\. Why: install a strategy for several devices"),
        ({"num_nodes": 2}, r"More than one device was asked for"),
        (
            {"devices": 2, "strategy": "single"},
            r"Strategy 'single' runs on one device, and more were asked for\. Fix: devices=1 and num_nodes=1, or",
        ),
    ],
)
def test_mistakes(machine, typed, message):
    machine()
    with pytest.raises(ConfigError, match=message) as raised:
        resolve(**{"accelerator": "cpu", **typed})
    assert len(raised.value.problems) == 1


def test_all_mistakes_are_told_at_once(machine):
    machine()
    with pytest.raises(ConfigError, match="4 problems in the configuration") as raised:
        resolve(accelerator="tpux", precision="33-true", strategy="dpd", num_nodes=-1)
    assert len(raised.value.problems) == 4


def test_a_dtype_the_device_lacks():
    with pytest.raises(
        ConfigError, match=r"Accelerator 'toy' does not compute in bfloat16\. Why: precision 'bf16-mixed'"
    ):
        resolve(accelerator=ToyAccelerator(), devices=1, precision="bf16-mixed")


def test_processes_that_others_started_are_noticed():
    class Launched(SingleProcess):
        name = "a scheduler"
        world_size = 2

    class Elsewhere(SingleProcess):
        @classmethod
        def detect(cls):
            return False

    with pytest.raises(ConfigError, match="Strategy 'single' runs on one device and was given 2 processes"):
        resolve(accelerator="cpu", environments=(Elsewhere, Launched))
    assert type(resolve(accelerator="cpu", environments=(Elsewhere,)).environment) is SingleProcess


@pytest.mark.holds("AC-13")
def test_third_parties_register_through_entry_points(third_party):
    assert names("accelerator") == ("cpu", "cuda", "mps", "toy")
    assert names("strategy")[-1] == "pair"
    assert names("precision")[-1] == "own"
    graph = resolve(accelerator="toy", devices="0,7", strategy="pair", precision="own")
    assert type(graph.accelerator) is ToyAccelerator
    assert type(graph.strategy) is PairStrategy
    assert graph.precision.name == "own"
    assert graph.devices == (0, 7)


@pytest.mark.holds("AC-10")
def test_all_devices_are_as_many_as_the_strategy_can_use(third_party, machine):
    machine(cuda=4)
    assert resolve(accelerator="cuda", devices="auto", strategy="single").devices == (0,)
    assert resolve(accelerator="cuda", devices="auto").devices == (0, 1, 2, 3)
    with pytest.raises(ConfigError, match="Strategy 'single' runs on one device"):
        resolve(accelerator="cuda", devices=-1, strategy="single")


def test_a_strategy_for_several_devices_is_found_and_named(third_party):
    assert resolve(accelerator="cpu", devices=2).strategy.name == "pair"
    assert resolve(accelerator="cpu", num_nodes=2).strategy.name == "pair"
    assert resolve(accelerator="cpu").strategy.name == "single"
    with pytest.raises(ConfigError, match=r"Strategy 'single' runs on one device.*or strategy='pair'"):
        resolve(accelerator="cpu", devices=2, strategy="single")


def test_our_names_cannot_be_taken(third_party, monkeypatch):
    point = EntryPoint("cpu", f"{__name__}:ToyAccelerator", "taskloom.accelerators")
    monkeypatch.setattr(module, "entry_points", lambda group: [point])
    assert names("accelerator") == ("cpu", "cuda", "mps")
    assert type(resolve(accelerator="cpu").accelerator) is CPUAccelerator


def test_a_package_that_is_missing_matters_to_those_who_name_it():
    broken = replace(
        REGISTRIES["strategy"], built_in={"single": STRATEGIES["single"], "far": "taskloom.no_such_module:Strategy"}
    )
    registries = {**REGISTRIES, "strategy": broken}
    with pytest.raises(ConfigError, match="install a strategy for several devices"):
        resolve(accelerator="cpu", devices=2, strategy="single", registries=registries)
    with pytest.raises(ConfigError, match=r"No module named 'taskloom\.no_such_module'"):
        resolve(accelerator="cpu", strategy="far", registries=registries)


def test_a_strategy_whose_package_is_missing_is_one_of_the_problems():
    broken = replace(REGISTRIES["strategy"], built_in={"single": "taskloom.no_such_module:Strategy"})
    with pytest.raises(ConfigError, match=r"No module named 'taskloom\.no_such_module'"):
        resolve(accelerator="cpu", registries={**REGISTRIES, "strategy": broken})


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_leads_to_a_class_that_answers_to_it(kind):
    registry = REGISTRIES[kind]
    for name in registry.names():
        loaded = registry.load(name)
        assert name in (loaded.names() if kind == "precision" else (loaded.name,))
    for alias, name in registry.aliases.items():
        assert registry.load(alias) is registry.load(name)
