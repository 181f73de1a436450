"""Optimizer state by parameter name: exact, and independent of the order of groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from taskloom.checkpoint import decode_state, encode_state
from taskloom.core.errors import CheckpointError
from taskloom.optim import named_optimizer_state, named_optimizer_tensors, parameter_names, restore_optimizer
from taskloom.optim.state import taken_over

MAKERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.1, amsgrad=True),
    "adamw-tensor-lr": lambda groups: torch.optim.AdamW(groups, lr=torch.tensor(0.1)),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.1),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.1, centered=True, momentum=0.5),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.1),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.1),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.1),
    "rprop": lambda groups: torch.optim.Rprop(groups, lr=0.1),
}


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))


def train(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        inputs = torch.randn(5, 3, generator=generator)

        def closure(inputs=inputs):
            optimizer.zero_grad()
            loss = module(inputs).pow(2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def saved(module, optimizer):
    """What a checkpoint keeps, through its encoding."""
    names = parameter_names(module)
    encoded = encode_state(named_optimizer_state(optimizer, names))
    tensors = {name: tensor.clone() for name, tensor in named_optimizer_tensors(optimizer, names)}
    return decode_state(encoded.data, encoded.tensors), tensors


def by_weights(module: nn.Module) -> list[dict]:
    weights = [parameter for name, parameter in module.named_parameters() if name.endswith("weight")]
    biases = [parameter for name, parameter in module.named_parameters() if name.endswith("bias")]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.05, "weight_decay": 0.0}]


def same_bits(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("name", MAKERS)
def test_training_continues_bit_for_bit(name):
    make = MAKERS[name]
    module = make_module()
    optimizer = make(by_weights(module))
    train(module, optimizer, 3, seed=1)
    state, tensors = saved(module, optimizer)
    resumed = copy.deepcopy(module)
    train(module, optimizer, 3, seed=2)

    other = make(by_weights(resumed))
    restore_optimizer("main", other, parameter_names(resumed), state, tensors)
    train(resumed, other, 3, seed=2)
    assert same_bits(module, resumed)


def test_reordered_groups_and_parameters_get_their_own_state():
    module = make_module()
    optimizer = MAKERS["adamw"](by_weights(module))
    train(module, optimizer, 3, seed=1)
    state, tensors = saved(module, optimizer)
    resumed = copy.deepcopy(module)
    train(module, optimizer, 3, seed=2)

    groups = by_weights(resumed)[::-1]
    for group in groups:
        group["params"].reverse()
    other = MAKERS["adamw"](groups)
    restore_optimizer("main", other, parameter_names(resumed), state, tensors)
    assert [group["weight_decay"] for group in other.param_groups] == [0.0, 0.1]
    train(resumed, other, 3, seed=2)
    assert same_bits(module, resumed)


def test_lbfgs_whose_state_is_lists_of_tensors_continues_bit_for_bit():
    module = make_module()
    optimizer = torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3)
    train(module, optimizer, 2, seed=1)
    state, tensors = saved(module, optimizer)
    resumed = copy.deepcopy(module)
    train(module, optimizer, 2, seed=2)
    other = torch.optim.LBFGS(resumed.parameters(), lr=0.1, max_iter=3)
    restore_optimizer("main", other, parameter_names(resumed), state, tensors)
    train(resumed, other, 2, seed=2)
    assert same_bits(module, resumed)


def test_names_say_what_a_tensor_is():
    module = make_module()
    optimizer = MAKERS["adamw"](module.parameters())
    train(module, optimizer, 1, seed=1)
    state, tensors = saved(module, optimizer)
    assert {"0.weight.step", "0.weight.exp_avg", "2.bias.max_exp_avg_sq"} <= set(tensors)
    assert tensors["0.weight.exp_avg"].shape == (4, 3)
    assert state["class"] == "AdamW"
    assert state["groups"][0]["parameters"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert state["groups"][0]["options"]["betas"] == (0.9, 0.999)


def test_moments_keep_the_dtype_they_were_saved_in():
    """torch casts restored moments to the dtype of the parameter, which would lose float32 moments of bf16 weights."""
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    module = nn.ParameterDict({"weight": weight})
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    moment = torch.tensor([1.0001, 2.0003])
    state = {
        "class": "SGD",
        "groups": [{"parameters": ["weight"], "options": {"lr": 0.1}}],
        "parameters": {"weight": {"tensors": ["momentum_buffer"], "values": {}}},
    }
    names = parameter_names(module)
    restore_optimizer("main", optimizer, names, state, taken_over({"weight.momentum_buffer": moment}.items(), names))
    restored = optimizer.state[weight]["momentum_buffer"]
    assert restored.dtype is torch.float32
    assert torch.equal(restored, moment)
    assert restored is not moment


def test_a_parameter_without_state_stays_without():
    module = make_module()
    optimizer = MAKERS["adamw"](module.parameters())
    module[2].requires_grad_(False)
    train(module, optimizer, 1, seed=1)
    state, tensors = saved(module, optimizer)
    assert set(state["parameters"]) == {"0.weight", "0.bias"}
    other = MAKERS["adamw"](module.parameters())
    restore_optimizer("main", other, parameter_names(module), state, tensors)
    assert set(other.state) == {module[0].weight, module[0].bias}


@pytest.mark.parametrize(("before", "after"), [(0.3, torch.tensor(0.1)), (torch.tensor(0.3), 0.1)])
def test_a_rate_stays_what_the_optimizer_has_it_as(before, after):
    module = make_module()
    state, tensors = saved(module, torch.optim.AdamW(module.parameters(), lr=before))
    other = torch.optim.AdamW(module.parameters(), lr=after)
    restore_optimizer("main", other, parameter_names(module), state, tensors)
    rate = other.param_groups[0]["lr"]
    assert type(rate) is type(after)
    assert float(rate) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda module: module[0].parameters(), r"only in the checkpoint: 2\.bias, 2\.weight"),
        (
            lambda module: [{"params": [*module.parameters(), nn.Parameter(torch.ones(1))]}],
            r"only in the optimizer: added",
        ),
        (
            lambda module: [{"params": module[0].parameters()}, {"params": module[2].parameters()}],
            r"the same parameters are spread over 2 groups in another way than over the saved 2",
        ),
    ],
)
def test_other_groups_are_an_error(groups, message):
    module = make_module()
    state, tensors = saved(module, MAKERS["adamw"](by_weights(module)))
    other = MAKERS["adamw"](groups(module))
    names = parameter_names(module)
    for group in other.param_groups:
        for parameter in group["params"]:
            names.setdefault(parameter, "added")
    with pytest.raises(CheckpointError, match=rf"The groups of optimizer 'main' do not hold.*{message}"):
        restore_optimizer("main", other, names, state, tensors)


def test_a_lost_tensor_is_an_error():
    module = make_module()
    optimizer = MAKERS["momentum"](module.parameters())
    train(module, optimizer, 1, seed=1)
    state, tensors = saved(module, optimizer)
    del tensors["2.weight.momentum_buffer"]
    with pytest.raises(CheckpointError, match=r"lacks the tensor 2\.weight\.momentum_buffer of optimizer 'main'"):
        restore_optimizer("main", MAKERS["momentum"](module.parameters()), parameter_names(module), state, tensors)


def test_a_reshaped_tensor_is_an_error():
    module = make_module()
    optimizer = MAKERS["momentum"](module.parameters())
    train(module, optimizer, 1, seed=1)
    state, tensors = saved(module, optimizer)
    tensors["0.weight.momentum_buffer"] = tensors["0.weight.momentum_buffer"].reshape(3, 4)
    with pytest.raises(
        CheckpointError, match=r"0\.weight\.momentum_buffer does not have the shape.*\(3, 4\) for \(4, 3\)"
    ):
        restore_optimizer("main", MAKERS["momentum"](module.parameters()), parameter_names(module), state, tensors)
