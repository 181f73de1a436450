"""Accumulation in a hand-written loop gives the gradient of the large batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from taskloom.core.loss import Loss
from taskloom.fabric import Fabric
from taskloom.fabric.window import windows
from taskloom.precision import LossScaling, MixedPrecision


@pytest.mark.parametrize(
    ("length", "size", "expected"),
    [
        (0, 2, []),
        (1, 2, [True]),
        (4, 2, [False, True, False, True]),
        (5, 2, [False, True, False, True, True]),
        (3, 1, [True, True, True]),
        (2, 8, [False, True]),
    ],
)
def test_windows_end_with_the_loader(length, size, expected):
    assert list(windows(range(length), size)) == list(zip(range(length), expected, strict=True))
    assert list(windows(iter(range(length)), size)) == list(zip(range(length), expected, strict=True))


def test_a_window_holds_something():
    with pytest.raises(ValueError, match=r"A window holds at least one micro-batch\. Got: 0"):
        windows([1], 0)


class Tokens:
    """Masked next-token data in float64: 32 rows, a random part of each masked."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.inputs = torch.randn(32, 6, 4, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, 5, (32, 6), generator=generator)
        self.labels[torch.rand(32, 6, generator=generator) < 0.6] = -100
        torch.manual_seed(0)
        self.model = nn.Linear(4, 5).double()

    def loss(self, model, rows, weight_as):
        labels = self.labels[rows]
        total = cross_entropy(model(self.inputs[rows]).flatten(0, 1), labels.flatten(), reduction="sum")
        weight = (labels != -100).sum()
        return Loss(total, weight if weight_as == "tensor" else weight.item())

    def whole(self):
        loss = self.loss(self.model, slice(None), "number")
        return torch.autograd.grad(loss.mean, self.model.weight)[0]


@pytest.mark.holds("R2")
@pytest.mark.parametrize("weight_as", ["tensor", "number"])
@pytest.mark.parametrize("sizes", [[32], [8] * 4, [1] * 32, [5, 5, 5, 5, 12], [31, 1]])
def test_the_gradient_is_that_of_the_large_batch(sizes, weight_as):
    tokens = Tokens()
    expected = tokens.whole()
    fabric = Fabric(accelerator="cpu", precision="64-true")
    model, optimizer = fabric.setup(tokens.model, torch.optim.SGD(tokens.model.parameters(), lr=1.0))
    for rows, complete in fabric.windows(torch.arange(32).split(sizes), len(sizes)):
        with fabric.accumulate(model, optimizer, complete=complete):
            fabric.backward(tokens.loss(model, rows, weight_as))
    difference = (model.weight.grad - expected).norm() / expected.norm()
    assert difference < 1e-14


@pytest.mark.holds("R2", "GR-03")
def test_a_short_last_window_counts_what_it_holds():
    fabric = Fabric(accelerator="cpu", precision="64-true")
    model, optimizer = fabric.setup(module := nn.Linear(1, 1, bias=False), torch.optim.SGD(module.parameters(), lr=1.0))
    gradients = []
    for value, complete in fabric.windows([1.0, 2.0, 3.0, 10.0, 20.0], 3):
        with fabric.accumulate(model, complete=complete):
            fabric.backward(model(torch.tensor([[value]])).mean())
        if complete:
            gradients.append(model.weight.grad.item())
            optimizer.zero_grad()
    assert gradients == pytest.approx([2.0, 15.0], rel=1e-15)


@pytest.mark.parametrize("weight", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_a_window_of_nothing_leaves_zero(weight):
    fabric = Fabric(accelerator="cpu")
    model, optimizer = fabric.setup(module := nn.Linear(1, 1), torch.optim.SGD(module.parameters()))
    for complete in (False, True):
        with fabric.accumulate(model, optimizer, complete=complete):
            fabric.backward(Loss(model(torch.ones(1, 1)).sum() * 0, weight))
    assert model.weight.grad.item() == 0.0


def test_a_first_micro_batch_of_nothing_does_no_harm():
    fabric = Fabric(accelerator="cpu", precision="64-true")
    model, optimizer = fabric.setup(module := nn.Linear(1, 1), torch.optim.SGD(module.parameters()))
    for weight, complete in ((torch.tensor(0), False), (torch.tensor(4), True)):
        with fabric.accumulate(model, optimizer, complete=complete):
            fabric.backward(Loss(model(torch.full((1, 1), 2.0)).sum() * weight, weight))
    assert model.weight.grad.item() == pytest.approx(2.0, rel=1e-15)


@pytest.mark.holds("OS-17")
def test_windows_of_two_optimizers_do_not_mix():
    fabric = Fabric(accelerator="cpu", precision="64-true")
    one, two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    one, two, first, second = fabric.setup(
        one, two, torch.optim.SGD(one.parameters()), torch.optim.SGD(two.parameters())
    )
    for value, complete in ((1.0, False), (3.0, True)):
        inputs = torch.tensor([[value]])
        with fabric.accumulate(one, complete=complete):
            fabric.backward(Loss(one(inputs).sum(), 10))
        with fabric.accumulate(two, complete=True):
            second.zero_grad()
            fabric.backward(Loss(two(inputs).sum(), 2))
    assert one.weight.grad.item() == pytest.approx(4.0 / 20)
    assert two.weight.grad.item() == pytest.approx(3.0 / 2)
    assert first.param_groups[0]["params"][0] is one.weight


def test_losses_of_two_kinds_are_not_added():
    fabric = Fabric(accelerator="cpu")
    model, optimizer = fabric.setup(module := nn.Linear(1, 1), torch.optim.SGD(module.parameters()))
    with fabric.accumulate(model, optimizer, complete=False):
        fabric.backward(model(torch.ones(1, 1)).mean())
    loss = Loss(model(torch.ones(1, 1)).sum(), 1)
    with fabric.accumulate(model, optimizer), pytest.raises(TypeError, match="A window holds plain tensors and Loss"):
        fabric.backward(loss)


def test_an_error_drops_the_window():
    fabric = Fabric(accelerator="cpu", precision="64-true")
    model, optimizer = fabric.setup(module := nn.Linear(1, 1, bias=False), torch.optim.SGD(module.parameters()))

    def fail():
        with fabric.accumulate(model, optimizer, complete=False):
            fabric.backward(Loss(model(torch.ones(1, 1)).sum(), 5))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    optimizer.zero_grad()
    with fabric.accumulate(model, optimizer):
        fabric.backward(Loss(model(torch.ones(1, 1)).sum() * 4, 4))
    assert model.weight.grad.item() == pytest.approx(1.0)


@pytest.mark.holds("R2")
def test_a_loss_outside_of_a_window_is_a_window_by_itself():
    fabric = Fabric(accelerator="cpu")
    model = fabric.setup(nn.Linear(1, 1))
    fabric.backward(Loss(model(torch.full((1, 1), 6.0)).sum(), 3))
    assert model.weight.grad.item() == pytest.approx(2.0)


@pytest.mark.holds("R2", "GR-10")
def test_a_loss_scale_is_undone_before_the_division():
    fabric = Fabric(accelerator="cpu", precision=MixedPrecision("16", LossScaling(init_scale=64.0)))
    model, optimizer = fabric.setup(module := nn.Linear(1, 1, bias=False), torch.optim.SGD(module.parameters(), lr=1.0))
    before = model.weight.item()
    for value, complete in ((1.0, False), (3.0, True)):
        with fabric.accumulate(model, optimizer, complete=complete):
            fabric.backward(Loss(model(torch.tensor([[value]])).sum() * 8, 8))
    torch.testing.assert_close(model.weight.grad, torch.tensor([[2.0]]))
    optimizer.step()
    assert model.weight.item() == pytest.approx(before - 2.0, rel=1e-4)


def test_no_sync_is_a_context():
    fabric = Fabric(accelerator="cpu")
    model = fabric.setup(nn.Linear(1, 1))
    with fabric.no_backward_sync(model), fabric.no_backward_sync(model, enabled=False):
        fabric.backward(model(torch.ones(1, 1)).sum())
    assert model.weight.grad is not None
