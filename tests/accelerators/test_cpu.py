from __future__ import annotations

import pytest
import torch

from taskloom.accelerators import CPUAccelerator


@pytest.mark.holds("AC-12")
def test_a_cpu_is_always_there_and_computes_in_everything():
    cpu = CPUAccelerator()
    assert CPUAccelerator.is_available()
    assert CPUAccelerator.unavailable_reason() == ""
    assert CPUAccelerator.device_count() == 1
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert cpu.supports(dtype)
        assert cpu.advice(dtype, torch.device("cpu")) == ""
        torch.nn.functional.linear(torch.ones(2, 2, dtype=dtype), torch.ones(2, 2, dtype=dtype))


@pytest.mark.holds("AC-10")
def test_all_devices_of_a_cpu_are_one_process():
    assert CPUAccelerator.parse_devices("auto") == [0]
    assert CPUAccelerator.parse_devices(3) == [0, 1, 2]
    assert CPUAccelerator().device(2) == torch.device("cpu")


def test_numbers_of_a_cpu_can_be_read_every_step():
    assert CPUAccelerator.synchronous
    assert CPUAccelerator.process_group_backend == "gloo"


@pytest.mark.holds("AC-12")
def test_memory_figures_are_those_of_this_process():
    cpu = CPUAccelerator()
    before = cpu.memory_figures(torch.device("cpu"))
    assert 0 < before["in_use"] <= before["peak"] * 1.01 < before["total"]
    block = torch.ones(64, 1024, 1024)  # 256 MB, written to
    during = cpu.memory_figures(torch.device("cpu"))
    assert during["in_use"] - before["in_use"] > 200e6
    assert during["peak"] >= before["peak"]
    assert block.numel() == 64 * 2**20


def test_the_generator_of_a_cpu_is_torchs_own():
    cpu = CPUAccelerator()
    assert cpu.rng_state(torch.device("cpu")) is None
    cpu.activate(torch.device("cpu"))
    cpu.synchronize()
    cpu.empty_cache()
    assert "threads" in cpu.describe(torch.device("cpu"))
