"""The CUDA accelerator without a GPU: torch's answers are replaced. The last tests use a real one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from taskloom.accelerators import CUDAAccelerator
from taskloom.resolve import resolve


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.holds("AC-12")
def test_availability_is_what_torch_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert not CUDAAccelerator.is_available()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert CUDAAccelerator.is_available()


@pytest.mark.holds("AC-03")
def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built without CUDA or ROCm" in CUDAAccelerator.unavailable_reason()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "sees no GPU; check the driver" in CUDAAccelerator.unavailable_reason()


@pytest.mark.holds("AC-10")
def test_devices_are_those_that_are_visible(four_gpus):
    assert CUDAAccelerator.parse_devices("auto") == [0, 1, 2, 3]
    assert CUDAAccelerator.parse_devices("1,3") == [1, 3]
    with pytest.raises(ValueError, match="5 CUDA devices were asked for and there are 4"):
        CUDAAccelerator.parse_devices(5)


@pytest.mark.holds("AC-03")
@pytest.mark.parametrize("name", ["cuda", "gpu", "rocm", "auto"])
def test_a_gpu_is_chosen_by_each_of_its_names(four_gpus, name):
    graph = resolve(accelerator=name, devices=[2])
    assert graph.accelerator.name == "cuda"
    assert graph.strategy.device == torch.device("cuda", 2)
    assert graph.precision.device_type == "cuda"
    assert graph.accelerator.process_group_backend == "nccl"
    assert not graph.accelerator.synchronous


@pytest.mark.holds("AC-10")
def test_usable_gpus_are_those_that_give_memory(four_gpus, monkeypatch):
    def zeros(size, *, device):
        if device.index in (0, 2):
            raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr(torch, "zeros", zeros)
    assert CUDAAccelerator.usable_devices() == [1, 3]
    assert CUDAAccelerator.usable_devices(1) == [1]
    with pytest.raises(ValueError, match=r"3 usable CUDA devices were asked for and 2 were found.*Got: \[1, 3\]"):
        CUDAAccelerator.usable_devices(3)


@pytest.mark.holds("AC-12")
@pytest.mark.parametrize(
    ("capability", "dtype", "advised"),
    [
        ((7, 0), torch.bfloat16, True),
        ((7, 5), torch.bfloat16, True),
        ((8, 0), torch.bfloat16, False),
        ((9, 0), torch.bfloat16, False),
        ((7, 0), torch.float16, False),
    ],
)
def test_emulated_bfloat16_is_said(monkeypatch, capability, dtype, advised):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100")
    cuda = CUDAAccelerator()
    assert cuda.supports(dtype)
    advice = cuda.advice(dtype, torch.device("cuda", 0))
    assert bool(advice) == advised
    if advised:
        assert "Tesla V100 has compute capability 7." in advice
        assert "precision='16-mixed' is fast here" in advice


def test_rocm_has_no_compute_capability_to_judge(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert CUDAAccelerator().advice(torch.bfloat16, torch.device("cuda", 0)) == ""


@pytest.mark.holds("AC-12")
def test_calls_go_to_the_device_that_is_named(monkeypatch):
    asked: list[tuple[str, object]] = []

    def answer(name, result=None):
        return lambda *device: asked.append((name, *device)) or result

    device = torch.device("cuda", 1)
    state = torch.tensor([7], dtype=torch.uint8)
    for name, result in {
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
        "memory_allocated": 1,
        "max_memory_allocated": 2,
        "memory_reserved": 3,
        "get_device_properties": SimpleNamespace(total_memory=4),
        "get_rng_state": state,
        "set_rng_state": None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, answer(name, result))
    cuda = CUDAAccelerator()
    cuda.activate(device)
    cuda.synchronize()
    cuda.empty_cache()
    assert cuda.memory_figures(device) == {"in_use": 1.0, "peak": 2.0, "reserved": 3.0, "total": 4.0}
    assert cuda.rng_state(device) is state
    cuda.set_rng_state(state, device)
    assert asked == [
        ("set_device", device),
        ("synchronize",),
        ("empty_cache",),
        ("memory_allocated", device),
        ("max_memory_allocated", device),
        ("memory_reserved", device),
        ("get_device_properties", device),
        ("get_rng_state", device),
        ("set_rng_state", state, device),
    ]


@pytest.mark.gpu
@pytest.mark.holds("AC-03", "AC-12", "PR-02")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16-true"])
def test_a_model_learns_on_a_real_gpu(precision):
    graph = resolve(accelerator="gpu", devices=1, precision=precision)
    strategy = graph.strategy
    strategy.start()
    torch.manual_seed(0)
    module = strategy.setup_module(torch.nn.Linear(8, 1))
    (optimizer,) = strategy.setup_optimizers(module, [torch.optim.AdamW(module.parameters(), lr=1e-2)])
    inputs = torch.randn(64, 8, device=strategy.device)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with graph.precision.forward_context():
            outputs = graph.precision.convert_output(module(graph.precision.convert_input(inputs)))
            loss = (outputs - inputs.sum(1, keepdim=True)).pow(2).mean()
        strategy.backward(loss, module)
        strategy.step(optimizer)
        losses.append(loss.item())
    graph.precision.check(module)
    assert losses[-1] < 0.9 * losses[0]
    figures = graph.accelerator.memory_figures(strategy.device)
    assert 0 < figures["in_use"] <= figures["peak"] < figures["total"]


@pytest.mark.gpu
def test_the_generator_of_a_real_gpu_is_restored():
    cuda, device = CUDAAccelerator(), torch.device("cuda", 0)
    state = cuda.rng_state(device)
    first = torch.rand(4, device=device)
    cuda.set_rng_state(state, device)
    assert torch.equal(torch.rand(4, device=device), first)
