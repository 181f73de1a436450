from __future__ import annotations

import pytest
import torch
from torch import nn

from taskloom.precision import LossScaling, MixedPrecision

both = pytest.mark.parametrize(("dtype", "compute"), [("bf16", torch.bfloat16), ("16", torch.float16)])


def overflowing(scale: float = 2.0**16, **options) -> MixedPrecision:
    """fp16 whose scale is small enough to reason about."""
    return MixedPrecision("16", LossScaling(init_scale=scale, **options))


def gentle(dtype: str) -> MixedPrecision:
    """A precision whose first step does not overflow."""
    return MixedPrecision(dtype) if dtype == "bf16" else overflowing(256.0)


def poison(parameter: nn.Parameter) -> None:
    parameter.grad = torch.full_like(parameter, torch.inf)


def train(precision: MixedPrecision, module: nn.Module, optimizer: torch.optim.Optimizer, inputs: torch.Tensor) -> bool:
    optimizer.zero_grad()
    with precision.forward_context():
        loss = module(inputs).pow(2).mean()
    precision.scale(loss).backward()
    return precision.step(optimizer)


def test_names_are_answered():
    assert MixedPrecision.names() == ("bf16-mixed", "16-mixed")
    assert [MixedPrecision.from_name(name).name for name in MixedPrecision.names()] == ["bf16-mixed", "16-mixed"]
    assert str(MixedPrecision()) == "bf16-mixed (all float32 but compute bfloat16)"


def test_options_that_contradict():
    with pytest.raises(ValueError, match="MixedPrecision has no dtype '32'"):
        MixedPrecision("32")
    with pytest.raises(ValueError, match=r"A loss scale was given for bf16\. Why: bfloat16 has the range of float32"):
        MixedPrecision("bf16", LossScaling())


@pytest.mark.holds("PR-02", "R5")
@both
def test_products_are_16_bit_and_weights_are_not(dtype, compute):
    precision, module = gentle(dtype), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    precision.convert_module(module)
    precision.check(module)
    seen = []
    module[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    optimizer = torch.optim.Adam(module.parameters())
    before = module[0].weight.clone()
    assert train(precision, module, optimizer, torch.randn(8, 4))
    assert seen == [compute]
    assert module[0].weight.dtype is module[0].weight.grad.dtype is torch.float32
    assert optimizer.state[module[0].weight]["exp_avg"].dtype is torch.float32
    assert not torch.equal(before, module[0].weight)
    precision.check(module)


@pytest.mark.holds("PR-02")
@both
def test_a_step_is_near_that_of_full_precision(dtype, compute):
    torch.manual_seed(0)
    inputs, full = torch.randn(64, 8), nn.Linear(8, 1)
    half = nn.Linear(8, 1)
    half.load_state_dict(full.state_dict())
    full(inputs).pow(2).mean().backward()
    torch.optim.SGD(full.parameters(), lr=0.1).step()
    assert train(gentle(dtype), half, torch.optim.SGD(half.parameters(), lr=0.1), inputs)
    torch.testing.assert_close(half.weight, full.weight, rtol=0.02, atol=2e-3)
    assert not torch.equal(half.weight, full.weight)


@pytest.mark.holds("R5")
@both
def test_weights_without_a_float32_master_are_an_error_unless_asked_for(dtype, compute):
    module = nn.Linear(2, 2).to(compute)
    with pytest.raises(
        RuntimeError, match=r"The parameter 'weight' has no float32 master weight.*Fix: load the model in float32"
    ):
        MixedPrecision(dtype).check(module)
    MixedPrecision(dtype, allow_half_parameters=True).check(module)
    with pytest.raises(RuntimeError, match="has no float32 master weight"):
        MixedPrecision(dtype, allow_half_parameters=True).check(module.double())


@pytest.mark.holds("R5")
def test_frozen_weights_need_no_master():
    module = nn.Sequential(nn.Linear(2, 2).bfloat16().requires_grad_(False), nn.Linear(2, 2))
    MixedPrecision().check(module)
    module[0].requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"The parameter '0\.weight'"):
        MixedPrecision().check(module)


@pytest.mark.holds("R5")
def test_buffers_are_kept_in_float32():
    precision, module = MixedPrecision(), nn.BatchNorm1d(2)
    module.running_var = module.running_var.bfloat16()
    with pytest.raises(RuntimeError, match="The buffer 'running_var' is not what precision 'bf16-mixed' says"):
        precision.check(module)
    precision.convert_module(module)
    assert module.running_var.dtype is torch.float32
    precision.check(module)


@pytest.mark.holds("R5")
def test_autocasting_that_computes_in_something_else_is_noticed(monkeypatch):
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device_type: torch.float16)
    with pytest.raises(
        RuntimeError, match=r"Autocasting on 'cpu' does not compute in torch\.bfloat16\. Got: torch\.float16"
    ):
        MixedPrecision().check(nn.Linear(1, 1))


@pytest.mark.holds("PR-05")
@both
def test_autocasting_can_be_switched_off_within(dtype, compute):
    precision, layer, inputs = MixedPrecision(dtype), nn.Linear(2, 2), torch.ones(1, 2)
    with precision.autocast():
        assert layer(inputs).dtype is compute
        with precision.autocast(enabled=False):
            assert layer(inputs).dtype is torch.float32
        assert layer(inputs).dtype is compute
    assert layer(inputs).dtype is torch.float32


@pytest.mark.holds("PR-05")
def test_the_cache_of_cast_weights_is_an_option():
    precision = MixedPrecision(cache_enabled=False)
    with precision.forward_context():
        assert not torch.is_autocast_cache_enabled()
    with precision.autocast(cache_enabled=True):
        assert torch.is_autocast_cache_enabled()
    with MixedPrecision().autocast(cache_enabled=False):
        assert not torch.is_autocast_cache_enabled()


@pytest.mark.holds("PR-09")
@both
def test_outputs_are_returned_in_float32_unless_declined(dtype, compute):
    given = (torch.ones(1, dtype=compute), torch.ones(1, dtype=torch.int64))
    assert [each.dtype for each in MixedPrecision(dtype).convert_output(given)] == [torch.float32, torch.int64]
    assert MixedPrecision(dtype, convert_outputs=False).convert_output(given) is given
    assert MixedPrecision(dtype, convert_outputs=False).policy.output is compute


# The loss scale -------------------------------------------------------------------------------------------------------


@pytest.mark.holds("PR-06", "CF-06")
def test_options_of_the_scale_reach_torch():
    precision = MixedPrecision("16", LossScaling(8.0, growth_factor=4.0, backoff_factor=0.25, growth_interval=7))
    scaler = precision.scaler
    assert scaler.get_scale() == 8.0
    assert scaler.get_growth_factor() == 4.0
    assert scaler.get_backoff_factor() == 0.25
    assert scaler.get_growth_interval() == 7


@pytest.mark.holds("PR-06")
def test_a_scaler_of_the_users_own_is_used():
    own = torch.amp.GradScaler("cpu", init_scale=32.0)
    precision = MixedPrecision("16", own)
    assert precision.scaler is own
    assert precision.scale(torch.ones((), requires_grad=True)).item() == 32.0


@pytest.mark.holds("PR-06")
def test_the_scale_can_be_switched_off():
    precision = MixedPrecision("16", LossScaling(enabled=False))
    assert not precision.scales_loss
    loss = torch.ones((), requires_grad=True)
    assert precision.scale(loss) is loss
    assert precision.state_dict() == {}
    assert not MixedPrecision("16", torch.amp.GradScaler("cpu", enabled=False)).scales_loss


@pytest.mark.holds("GR-10")
def test_unscaling_gives_the_true_gradients_once():
    torch.manual_seed(0)
    precision, layer, inputs = overflowing(1024.0), nn.Linear(4, 1), torch.randn(8, 4)
    expected = torch.autograd.grad(layer(inputs).pow(2).mean(), layer.weight)[0]
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    precision.scale(layer(inputs).pow(2).mean()).backward()
    torch.testing.assert_close(layer.weight.grad, expected * 1024)
    precision.unscale(optimizer)
    precision.unscale(optimizer)
    torch.testing.assert_close(layer.weight.grad, expected)
    before = layer.weight.detach().clone()
    assert precision.step(optimizer)
    torch.testing.assert_close(layer.weight, before - expected)


@pytest.mark.holds("GR-13")
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_skips_the_step_and_lowers_the_scale(fused):
    precision, layer = overflowing(1024.0), nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=fused)
    before = layer.weight.detach().clone()
    precision.scale(layer(torch.ones(1, 4)).sum()).backward()
    poison(layer.weight)
    assert not precision.step(optimizer)
    assert torch.equal(layer.weight, before)
    assert train(precision, layer, optimizer, torch.ones(1, 4))
    assert not torch.equal(layer.weight, before)
    assert precision.state_dict()["scale"] == 512.0


@pytest.mark.holds("GR-13")
def test_the_scale_grows_after_its_interval():
    precision, layer = overflowing(8.0, growth_interval=3), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    scales = []
    for _ in range(7):
        assert train(precision, layer, optimizer, torch.ones(1, 2))
        scales.append(precision.state_dict()["scale"])
    assert scales == [8.0, 8.0, 16.0, 16.0, 16.0, 32.0, 32.0]


@pytest.mark.holds("GR-13", "OS-17")
def test_several_optimizers_step_under_one_scale():
    precision = overflowing(1024.0)
    one, two = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=1.0) for layer in (one, two)]
    inputs = torch.ones(1, 2)
    expected = two.weight.detach() - inputs
    precision.scale(one(inputs).sum() + two(inputs).sum()).backward()
    poison(one.weight)
    assert not precision.step(optimizers[0])
    assert precision.step(optimizers[1]), "the overflow of one must not change the scale under the other"
    torch.testing.assert_close(two.weight, expected)
    precision.scale(one(inputs).sum())
    assert precision.state_dict()["scale"] == 512.0


@pytest.mark.holds("PR-06")
def test_a_step_is_left_out_by_the_loop():
    """Gradients are unscaled and then cleared, as a policy that drops a batch does; the next step is right."""
    precision, layer = overflowing(1024.0), nn.Linear(2, 1)
    optimizer, inputs = torch.optim.SGD(layer.parameters(), lr=1.0), torch.ones(1, 2)
    precision.scale(layer(inputs).sum()).backward()
    precision.unscale(optimizer)
    optimizer.zero_grad()
    expected = layer.weight.detach() - inputs
    precision.scale(layer(inputs).sum()).backward()
    precision.unscale(optimizer)
    torch.testing.assert_close(layer.weight.grad, inputs)
    assert precision.step(optimizer)
    torch.testing.assert_close(layer.weight, expected)


@pytest.mark.holds("GR-10")
def test_adding_to_unscaled_gradients_is_an_error():
    precision, layer = overflowing(), nn.Linear(2, 1)
    optimizer, inputs = torch.optim.SGD(layer.parameters(), lr=1.0), torch.ones(1, 2)
    precision.scale(layer(inputs).sum()).backward()
    precision.unscale(optimizer)
    precision.scale(layer(inputs).sum()).backward()
    with pytest.raises(RuntimeError, match="Gradients were unscaled, and then another backward pass added to them"):
        precision.step(optimizer)


def test_an_optimizer_without_gradients_steps():
    precision, layer = overflowing(), nn.Linear(2, 1)
    assert precision.step(torch.optim.SGD(layer.parameters(), lr=1.0))


def test_a_closure_is_run_once_before_the_step():
    precision, layer, calls = overflowing(1024.0), nn.Linear(2, 1), []
    optimizer, inputs = torch.optim.SGD(layer.parameters(), lr=1.0), torch.ones(1, 2)
    expected = layer.weight.detach() - inputs

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        precision.scale(layer(inputs).sum()).backward()

    with torch.no_grad():
        assert precision.step(optimizer, closure)
    assert calls == [1]
    torch.testing.assert_close(layer.weight, expected)


def test_lbfgs_is_refused_under_a_scale_and_works_without():
    layer = nn.Linear(2, 1)
    optimizer, inputs = torch.optim.LBFGS(layer.parameters()), torch.ones(1, 2)

    def closure():
        optimizer.zero_grad()
        loss = layer(inputs).pow(2).sum()
        loss.backward()
        return loss

    with pytest.raises(
        RuntimeError, match=r"LBFGS cannot train with precision '16-mixed'.*Fix: precision='bf16-mixed'"
    ):
        overflowing().step(optimizer, closure)
    assert MixedPrecision("bf16").step(optimizer, closure)
    assert closure().item() < 1e-6


@pytest.mark.holds("PR-06")
def test_the_scale_survives_a_restart():
    layer = nn.Linear(2, 1)
    first, optimizer = overflowing(64.0, growth_interval=3), torch.optim.SGD(layer.parameters(), lr=1e-3)
    for _ in range(2):
        train(first, layer, optimizer, torch.ones(1, 2))
    second = overflowing(1.0, growth_interval=3)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert train(second, layer, optimizer, torch.ones(1, 2))
    assert second.state_dict()["scale"] == 128.0


@pytest.mark.holds("GR-13")
def test_a_step_reads_the_device_once(monkeypatch):
    """The flag of the overflow, which torch's scaler reads by itself; to know whether it skipped costs no more."""
    precision, layer = overflowing(), nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
    train(precision, layer, optimizer, torch.ones(1, 2))
    reads = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: reads.append(1) or item(tensor))
    train(precision, layer, optimizer, torch.ones(1, 2))
    assert len(reads) == 1
