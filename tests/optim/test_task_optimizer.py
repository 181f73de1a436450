from __future__ import annotations

import pickle
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from taskloom.optim import TaskOptimizer
from taskloom.resolve import resolve


class Steps:
    """Stands for the loop: remembers what it was asked, and steps unless told to skip."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, object]] = []
        self.skip = False

    def __call__(self, optimizer, closure):
        self.asked.append((optimizer, closure))
        if closure is not None:
            closure()
        if not self.skip:
            optimizer.step()
        return not self.skip


@pytest.fixture
def weight():
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    return weight


@pytest.fixture
def steps():
    return Steps()


@pytest.fixture
def inner(weight):
    return torch.optim.SGD([weight], lr=0.5, momentum=0.9)


@pytest.fixture
def optimizer(inner, steps):
    return TaskOptimizer(inner, "SGD", steps)


@pytest.mark.holds("GR-13")
def test_a_step_goes_through_the_loop(optimizer, inner, steps, weight):
    assert optimizer.step() is None
    assert steps.asked == [(inner, None)]
    assert weight.item() == 0.5
    assert not optimizer.step_was_skipped
    steps.skip = True
    optimizer.step()
    assert optimizer.step_was_skipped
    steps.skip = False
    optimizer.step()
    assert not optimizer.step_was_skipped


def test_a_closure_gives_its_loss_back(optimizer, weight):
    def closure():
        weight.grad = torch.full((1,), 2.0)
        return torch.tensor(3.0)

    assert optimizer.step(closure).item() == 3.0
    assert optimizer.step(closure=closure).item() == 3.0


def test_everything_else_is_the_wrapped_optimizers(optimizer, inner, weight):
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state
    assert optimizer.defaults is inner.defaults
    assert optimizer.optimizer is inner
    optimizer.step()
    assert optimizer.state_dict() == inner.state_dict()
    optimizer.zero_grad(set_to_none=False)
    assert weight.grad.item() == 0.0
    optimizer.zero_grad()
    assert weight.grad is None
    inner.colour = "blue"
    assert optimizer.colour == "blue"
    with pytest.raises(AttributeError, match="shape"):
        _ = optimizer.shape
    other = nn.Parameter(torch.ones(1))
    optimizer.add_param_group({"params": [other]})
    assert inner.param_groups[1]["params"] == [other]
    assert "SGD" in repr(optimizer)


def test_torchs_schedulers_accept_it(optimizer, inner):
    scheduler = StepLR(optimizer, 1, gamma=0.1)
    optimizer.step()
    scheduler.step()
    assert inner.param_groups[0]["lr"] == pytest.approx(0.05)
    assert "step" not in vars(inner), "the user's optimizer is not patched"


def test_hooks_are_the_wrapped_optimizers(optimizer, steps):
    calls = []
    handle = optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.step()
    handle.remove()
    optimizer.step()
    assert calls == ["pre", "post", "pre"]
    steps.skip = True
    optimizer.step()
    assert calls == ["pre", "post", "pre"]
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[3:] == ["save", "saved", "load", "loaded"]


def test_toggling_is_the_tasks(inner, steps, optimizer):
    seen = []

    @contextmanager
    def toggle(toggled, sync_grad):
        seen.append((toggled, sync_grad))
        yield

    toggled = TaskOptimizer(inner, "SGD", steps, toggle)
    with toggled.toggle_model(sync_grad=False):
        assert seen == [(toggled, False)]
    with pytest.raises(RuntimeError, match="toggle_model is known only to the optimizers of a TaskModule"):
        optimizer.toggle_model()


def test_a_copy_is_whole(optimizer):
    again = pickle.loads(pickle.dumps(optimizer))
    (weight,) = again.param_groups[0]["params"]
    weight.grad = torch.ones(1)
    again.step()
    assert again.name == "SGD"
    assert weight.item() == 0.5


def test_optimizers_with_fewer_arguments_than_torchs_are_driven():
    class Plain(torch.optim.SGD):
        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data -= group["lr"] * parameter.grad

        def zero_grad(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    strategy = resolve(accelerator="cpu").strategy
    weight = nn.Parameter(torch.ones(1))
    weight.grad = torch.ones(1)
    optimizer = TaskOptimizer(Plain([weight], lr=0.5), "Plain", strategy.step)
    optimizer.step()
    assert weight.item() == 0.5
    optimizer.zero_grad()
    assert weight.grad is None
    weight.grad = torch.ones(1)
    assert resolve(accelerator="cpu", precision="bf16-mixed").precision.step(optimizer.optimizer)
    assert weight.item() == 0.0
