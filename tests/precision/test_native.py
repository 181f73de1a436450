from __future__ import annotations

import pytest
import torch
from torch import nn

from taskloom.precision import NativePrecision
from taskloom.precision.dtypes import DefaultDtype, cast_buffers, cast_floats, cast_parameters

DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
every_dtype = pytest.mark.parametrize(("name", "dtype"), DTYPES.items())


class Mixed(nn.Module):
    """One of every kind of tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))
        self.register_buffer("wide", torch.ones(3, dtype=torch.float64))
        self.waves = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.tied = self.linear.weight

    def forward(self, inputs):
        noise = torch.zeros(3)
        return self.norm(self.linear(inputs)) + noise


def test_names_are_answered():
    assert NativePrecision.names() == tuple(DTYPES)
    assert NativePrecision().name == "32-true"
    assert [NativePrecision.from_name(name).name for name in DTYPES] == list(DTYPES)


def test_unknown_dtype():
    with pytest.raises(ValueError, match=r"NativePrecision has no dtype '8'\. Fix: use one of 32, 64, bf16, 16"):
        NativePrecision("8")


@pytest.mark.holds("PR-01", "PR-03", "R5")
@every_dtype
def test_everything_that_floats_takes_the_dtype_and_nothing_else(name, dtype):
    precision, module = NativePrecision.from_name(name), Mixed()
    weight = module.linear.weight
    assert precision.convert_module(module) is module
    assert module.linear.weight is weight
    assert module.tied is weight
    assert {weight.dtype, module.norm.weight.dtype, module.norm.running_mean.dtype, module.wide.dtype} == {dtype}
    assert module.mask.dtype is torch.bool
    assert module.norm.num_batches_tracked.dtype is torch.int64
    assert module.waves.dtype is torch.complex64
    precision.check(module)


@pytest.mark.holds("PR-01", "PR-03", "R5")
@every_dtype
def test_a_step_is_computed_and_kept_in_the_dtype(name, dtype):
    precision = NativePrecision.from_name(name)
    module = precision.convert_module(Mixed())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    inputs = {
        "x": torch.randn(8, 4),
        "ids": torch.arange(8),
        "waves": torch.ones(2, dtype=torch.complex64),
        "text": "a",
    }
    converted = precision.convert_input(inputs)
    assert converted["x"].dtype is dtype
    assert converted["ids"].dtype is torch.int64
    assert converted["waves"].dtype is torch.complex64
    assert converted["text"] == "a"
    with precision.forward_context():
        outputs = module(converted["x"])
    assert outputs.dtype is dtype
    outputs = precision.convert_output(outputs)
    assert outputs.dtype is precision.policy.output
    precision.scale(outputs.pow(2).mean()).backward()
    assert precision.step(optimizer)
    assert module.linear.weight.grad.dtype is dtype
    assert optimizer.state[module.linear.weight]["momentum_buffer"].dtype is dtype
    assert torch.get_default_dtype() is torch.float32
    precision.check(module)


@pytest.mark.holds("PR-09")
@pytest.mark.parametrize(
    ("name", "output"),
    [("32-true", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.float32), ("16-true", torch.float32)],
)
def test_outputs_of_16_bits_are_returned_in_float32(name, output):
    precision = NativePrecision.from_name(name)
    given = {"logits": torch.ones(2, dtype=precision.policy.compute), "ids": torch.ones(2, dtype=torch.int32)}
    returned = precision.convert_output(given)
    assert returned["logits"].dtype is output
    assert returned["ids"].dtype is torch.int32


@pytest.mark.holds("PR-03")
@every_dtype
def test_layers_are_born_in_the_dtype(name, dtype):
    with NativePrecision.from_name(name).init_context():
        assert nn.Linear(2, 2).weight.dtype is dtype
    assert nn.Linear(2, 2).weight.dtype is torch.float32


def test_the_default_dtype_is_restored_after_an_error():
    context = NativePrecision("bf16").forward_context()
    with pytest.raises(KeyError), context:
        raise KeyError
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.holds("R5")
@every_dtype
def test_a_changed_parameter_is_noticed(name, dtype):
    precision = NativePrecision.from_name(name)
    module = precision.convert_module(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    module[1].bias.data = module[1].bias.data.to(torch.float64 if dtype is not torch.float64 else torch.float32)
    with pytest.raises(
        RuntimeError, match=rf"The parameter '1.bias' is not what precision '{name}' says.*instead of {dtype}"
    ):
        precision.check(module)


@pytest.mark.holds("R5")
def test_a_changed_buffer_is_noticed():
    module = NativePrecision("32").convert_module(nn.BatchNorm1d(2))
    module.running_var = module.running_var.double()
    with pytest.raises(RuntimeError, match=r"The buffer 'running_var' is not what precision '32-true' says"):
        NativePrecision("32").check(module)


@pytest.mark.holds("PR-01")
def test_full_precision_leaves_everything_as_it_is():
    precision = NativePrecision()
    batch = [torch.ones(2, dtype=torch.float64), {"a": torch.ones(1)}]
    assert precision.convert_input(batch) is batch
    assert precision.convert_output(batch) is batch
    assert not (precision.wraps_forward)
    assert not (precision.converts_input)
    assert not (precision.converts_output)
    assert not precision.scales_loss
    assert precision.state_dict() == {}


@pytest.mark.holds("R5")
def test_the_policy_can_be_printed():
    assert str(NativePrecision("32")) == "32-true (all float32)"
    assert str(NativePrecision("bf16")) == "bf16-true (all bfloat16 but output float32)"


def test_a_buffer_shared_by_two_modules_stays_shared():
    one, two = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    two.running_mean = one.running_mean
    cast_buffers(nn.ModuleList([one, two]), torch.float64)
    assert one.running_mean is two.running_mean
    assert one.running_mean.dtype is torch.float64


def test_a_cast_buffer_stays_a_buffer_that_is_not_saved():
    module = nn.Module()
    module.register_buffer("scratch", torch.ones(2), persistent=False)
    cast_buffers(module, torch.float64)
    assert dict(module.named_buffers())["scratch"].dtype is torch.float64
    assert module.state_dict() == {}


def test_gradients_follow_their_parameters():
    layer = nn.Linear(2, 1)
    layer(torch.ones(1, 2)).sum().backward()
    cast_parameters(layer, torch.float64)
    assert layer.weight.grad.dtype is torch.float64
    layer(torch.ones(1, 2, dtype=torch.float64)).sum().backward()


def test_collections_keep_their_types():
    from collections import namedtuple

    Pair = namedtuple("Pair", "x y")
    cast = cast_floats(Pair(torch.ones(1), [torch.ones(1, dtype=torch.int8)]), torch.bfloat16)
    assert isinstance(cast, Pair)
    assert (cast.x.dtype, cast.y[0].dtype) == (torch.bfloat16, torch.int8)


def test_default_dtypes_nest():
    with DefaultDtype(torch.float64):
        with DefaultDtype(torch.bfloat16):
            assert torch.ones(1).dtype is torch.bfloat16
        assert torch.ones(1).dtype is torch.float64
