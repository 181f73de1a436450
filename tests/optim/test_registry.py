from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from taskloom.optim import OPTIMIZERS, SCHEDULERS, optimizer_class, scheduler_class

# What cannot be made with its defaults alone.
_ARGUMENTS = {
    "cosine": {"T_max": 4},
    "cosine_warm_restarts": {"T_0": 2},
    "cyclic": {"base_lr": 0.1, "max_lr": 1.0},
    "exponential": {"gamma": 0.9},
    "lambda": {"lr_lambda": lambda step: 0.5},
    "multi_step": {"milestones": [1]},
    "multiplicative": {"lr_lambda": lambda step: 0.5},
    "one_cycle": {"max_lr": 1.0, "total_steps": 5},
    "step": {"step_size": 1},
}


@pytest.mark.holds("OS-04")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_by_name_learns(name):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_class(name)([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.pow(2).sum()
        loss.backward()
        if name == "sparse_adam":
            weight.grad = weight.grad.to_sparse()
        return loss

    optimizer.step(closure)
    assert weight.pow(2).sum() < 4.0


@pytest.mark.holds("OS-05", "OS-06")
def test_arguments_reach_the_optimizer():
    weight = nn.Parameter(torch.ones(1))
    optimizer = optimizer_class("adamw")([weight], lr=0.5, betas=(0.5, 0.6), weight_decay=0.25)
    assert type(optimizer) is torch.optim.AdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.5, (0.5, 0.6), 0.25)


@pytest.mark.holds("OS-06")
def test_the_fused_adamw_is_torchs_with_typed_arguments():
    optimizer = optimizer_class("adamw_fused")([nn.Parameter(torch.ones(1))], lr=0.5, eps=1e-6)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["fused"]
    assert optimizer.param_groups[0]["eps"] == 1e-6
    own = inspect.signature(optimizer_class("adamw_fused")).parameters
    theirs = inspect.signature(torch.optim.AdamW).parameters
    assert {name: each.default for name, each in own.items()} == {name: theirs[name].default for name in own}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_by_name_schedules(name):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    scheduler = scheduler_class(name)(optimizer, **_ARGUMENTS.get(name, {}))
    optimizer.step()
    scheduler.step(*([1.0] if name == "reduce_on_plateau" else []))
    assert scheduler.optimizer is optimizer


@pytest.mark.holds("OS-04")
def test_unknown_names():
    with pytest.raises(ValueError, match=r"There is no optimizer 'adamww'.*Did you mean 'adamw'\?"):
        optimizer_class("adamww")
    with pytest.raises(ValueError, match=r"There is no scheduler 'cosin'.*Did you mean 'cosine'\?"):
        scheduler_class("cosin")


def test_the_tables_cannot_be_changed():
    with pytest.raises(TypeError):
        OPTIMIZERS["mine"] = torch.optim.SGD
