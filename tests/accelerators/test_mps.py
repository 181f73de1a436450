"""What of the MPS accelerator can be shown without an Apple computer: torch's answers are replaced."""

from __future__ import annotations

import pytest
import torch

from taskloom.accelerators import MPSAccelerator
from taskloom.core.errors import ConfigError
from taskloom.resolve import resolve


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (13, 3))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.mark.holds("AC-04")
@pytest.mark.parametrize("name", ["mps", "gpu", "auto"])
def test_the_apple_gpu_is_chosen_by_each_of_its_names(apple, name):
    graph = resolve(accelerator=name)
    assert graph.accelerator.name == "mps"
    assert graph.strategy.device == torch.device("mps", 0)


@pytest.mark.holds("AC-04", "AC-10")
def test_there_is_one_device(apple):
    assert MPSAccelerator.parse_devices("auto") == [0]
    assert MPSAccelerator.parse_devices(1) == [0]
    with pytest.raises(ValueError, match="2 MPS devices were asked for and there are 1"):
        MPSAccelerator.parse_devices(2)


@pytest.mark.holds("AC-04", "AC-12")
def test_float64_is_refused_before_it_fails(apple):
    with pytest.raises(
        ConfigError, match=r"Accelerator 'mps' does not compute in float64.*precision '64-true' needs it"
    ):
        resolve(accelerator="mps", precision="64-true")
    assert not MPSAccelerator().supports(torch.complex128)
    assert MPSAccelerator().supports(torch.float16)


@pytest.mark.holds("AC-12")
def test_bfloat16_needs_a_newer_system(apple, monkeypatch):
    with pytest.raises(ConfigError, match="does not compute in bfloat16"):
        resolve(accelerator="mps", precision="bf16-mixed")
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: (major, minor) <= (15, 0))
    assert resolve(accelerator="mps", precision="bf16-mixed").precision.name == "bf16-mixed"


@pytest.mark.holds("AC-04")
def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: False)
    assert "built without Metal" in MPSAccelerator.unavailable_reason()
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    assert "macOS 12.3 or newer" in MPSAccelerator.unavailable_reason()


@pytest.mark.holds("AC-12")
def test_calls_go_to_metal(monkeypatch):
    asked = []

    def answer(name, result=None):
        return lambda *arguments: asked.append((name, *arguments)) or result

    state, device = torch.tensor([7], dtype=torch.uint8), torch.device("mps", 0)
    for name, result in {
        "synchronize": None,
        "empty_cache": None,
        "current_allocated_memory": 1,
        "driver_allocated_memory": 2,
        "recommended_max_memory": 3,
        "get_rng_state": state,
        "set_rng_state": None,
    }.items():
        monkeypatch.setattr(torch.mps, name, answer(name, result))
    mps = MPSAccelerator()
    mps.synchronize()
    mps.empty_cache()
    assert mps.memory_figures(device) == {"in_use": 1.0, "reserved": 2.0, "total": 3.0}
    assert mps.rng_state(device) is state
    mps.set_rng_state(state, device)
    assert [name for name, *_ in asked][:2] == ["synchronize", "empty_cache"]
    assert asked[-1] == ("set_rng_state", state)
    assert mps.describe(device) == "Apple GPU (Metal)"
