from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from taskloom.fabric import Fabric, FabricLoader


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.colour = "blue"

    def forward(self, inputs, *, scale=1.0):
        return self.norm(self.layer(inputs)) * scale

    def encode(self, inputs):
        return self.layer(inputs)


@pytest.fixture
def inner():
    return Model()


@pytest.fixture
def model(inner):
    return Fabric(accelerator="cpu").setup(inner)


def test_names_have_no_prefix(model, inner):
    assert list(model.state_dict()) == list(inner.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in inner.named_parameters()]
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in inner.named_buffers()]
    assert [name for name, _ in model.named_children()] == ["layer", "norm"]
    assert list(model.modules()) == list(inner.modules())
    assert list(model.parameters()) == list(inner.parameters())
    assert list(model.children()) == [inner.layer, inner.norm]
    assert model.get_submodule("layer") is inner.layer
    assert model.get_parameter("layer.weight") is inner.layer.weight


def test_attributes_are_the_users(model, inner):
    assert model.colour == "blue"
    model.colour = "green"
    assert inner.colour == "green"
    model.extra = nn.Linear(1, 1)
    assert "extra.weight" in inner.state_dict()
    del model.extra
    assert "extra.weight" not in inner.state_dict()
    with pytest.raises(AttributeError, match="'Model' object has no attribute 'shape'"):
        _ = model.shape
    assert "encode" in dir(model)
    assert isinstance(model, nn.Module)
    assert repr(model).startswith("FabricModule(Model(")


def test_modes_are_the_users(model, inner):
    assert model.training
    assert model.eval() is model
    assert not (model.training)
    assert not (inner.training)
    assert not (inner.norm.training)
    model.train()
    assert inner.norm.training


def test_whole_module_operations_reach_the_user(model, inner):
    model.requires_grad_(False)
    assert not inner.layer.weight.requires_grad
    model.requires_grad_(True)
    model(torch.ones(2, 2)).sum().backward()
    model.zero_grad()
    assert inner.layer.weight.grad is None
    seen = []
    model.apply(lambda each: seen.append(type(each)))
    assert seen == [nn.Linear, nn.BatchNorm1d, Model]
    assert model.double() is model
    assert inner.layer.weight.dtype is torch.float64
    assert model.to(torch.float32).layer.weight.dtype is torch.float32


def test_state_comes_back(model, inner):
    state = copy.deepcopy(model.state_dict())
    nn.init.zeros_(inner.layer.weight)
    model.load_state_dict(state)
    assert torch.equal(inner.layer.weight, state["layer.weight"])
    assert model.load_state_dict({}, strict=False).missing_keys
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({})


def test_keywords_reach_the_forward_pass(model, inner):
    model.eval()
    inputs = torch.ones(1, 2)
    torch.testing.assert_close(model(inputs, scale=3.0), 3 * inner(inputs))


def test_hooks_on_either_are_run(model, inner):
    calls = []
    model.register_forward_hook(lambda *_: calls.append("outer"))
    inner.register_forward_hook(lambda *_: calls.append("inner"))
    model(torch.ones(2, 2))
    assert calls == ["inner", "outer"]


@pytest.mark.holds("PR-02", "PR-09")
def test_another_method_runs_as_forward_once_it_is_marked(inner):
    model = Fabric(accelerator="cpu", precision="bf16-true").setup(inner)
    seen = []
    inner.layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.dtype))
    with pytest.raises(RuntimeError, match="dtype"):
        model.encode(torch.ones(1, 2))
    model.mark_forward_method("encode")
    assert model.encode(torch.ones(1, 2)).dtype is torch.float32
    model.mark_forward_method(inner.encode)
    assert seen == [torch.bfloat16]
    with pytest.raises(AttributeError, match=r"Model has no method 'encod' to run as forward.*Did you mean 'encode'\?"):
        model.mark_forward_method("encod")


def test_a_copy_is_another_module(model, inner):
    again = copy.deepcopy(model)
    nn.init.zeros_(again.layer.weight)
    assert inner.layer.weight.abs().sum() > 0
    assert again(torch.ones(2, 2)).shape == (2, 2)


def test_batches_arrive_and_the_loader_stays_itself():
    class Loader(list):
        batch_size = 3

    loader = Loader([{"x": torch.ones(2), "name": "a"}])
    moved = FabricLoader(loader, torch.device("meta"))
    (batch,) = list(moved)
    assert batch["x"].device.type == "meta"
    assert batch["name"] == "a"
    assert len(moved) == 1
    assert moved.batch_size == 3
    assert loader[0]["x"].device.type == "cpu"
    with pytest.raises(TypeError):
        len(FabricLoader(iter([]), torch.device("cpu")))
