"""`save` and `load` of a hand-written loop."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import StepLR

from taskloom.core.errors import CheckpointError
from taskloom.fabric import Fabric


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))


class Loop:
    """A model in the middle of its training."""

    def __init__(self, precision="32-true") -> None:
        self.fabric = Fabric(accelerator="cpu", precision=precision)
        model = make_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        self.scheduler = StepLR(self.optimizer, 2, gamma=0.5)

    def state(self, **more):
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, **more}

    def train(self, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            self.optimizer.zero_grad()
            self.fabric.backward(self.model(torch.randn(8, 4, generator=generator)).pow(2).mean())
            self.optimizer.step()
            self.scheduler.step()


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "16-mixed"])
def test_training_continues_bit_for_bit(tmp_path, precision):
    whole, first, second = Loop(precision), Loop(precision), Loop(precision)
    whole.train(range(6))
    first.train(range(3))
    first.fabric.save(tmp_path / "half", first.state(step=3, note={"seen": (1, 2)}))
    state = second.state(step=0)
    rest = second.fabric.load(tmp_path / "half", state)
    assert state["step"] == 3
    assert rest == {"note": {"seen": (1, 2)}}
    second.train(range(state["step"], 6))
    for ours, theirs in zip(second.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert second.scheduler.state_dict() == whole.scheduler.state_dict()
    assert second.fabric.precision.state_dict() == whole.fabric.precision.state_dict()


def test_the_weights_load_in_any_safetensors_reader(tmp_path):
    loop = Loop()
    loop.fabric.save(tmp_path / "a", {"model": loop.model})
    (file,) = (tmp_path / "a" / "model").glob("*.safetensors")
    plain = make_model()
    plain.load_state_dict(load_file(file))


@pytest.mark.holds("OS-17")
def test_several_modules_and_optimizers(tmp_path):
    def make():
        fabric = Fabric(accelerator="cpu")
        torch.manual_seed(0)
        one, two = nn.Linear(2, 2), nn.Linear(2, 1)
        both = torch.optim.SGD([one.bias, two.bias], lr=0.1, momentum=0.9)
        own = torch.optim.Adam([one.weight, two.weight], lr=0.1)
        return fabric, dict(zip(("one", "two", "both", "own"), fabric.setup(one, two, both, own), strict=True))

    def step(fabric, parts):
        for name in ("both", "own"):
            parts[name].zero_grad()
        fabric.backward(parts["two"](parts["one"](torch.ones(3, 2))).pow(2).mean())
        for name in ("both", "own"):
            parts[name].step()

    fabric, parts = make()
    step(fabric, parts)
    fabric.save(tmp_path / "a", parts)
    step(fabric, parts)
    other, again = make()
    other.load(tmp_path / "a", again)
    step(other, again)
    for name in ("one", "two"):
        for ours, theirs in zip(again[name].parameters(), parts[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)
    third, fresh = make()
    third.load(tmp_path / "a", {"two": fresh["two"]})
    assert not torch.equal(fresh["two"].weight, parts["two"].weight)
    assert torch.equal(fresh["one"].weight, make()[1]["one"].weight)


def test_modules_that_were_not_set_up_are_saved_too(tmp_path):
    fabric = Fabric(accelerator="cpu")
    model, average = fabric.setup(make_model()), make_model()
    fabric.save(tmp_path / "a", {"model": model, "average": average})
    nn.init.zeros_(average[0].weight)
    fabric.load(tmp_path / "a", {"average": average})
    assert torch.equal(average[0].weight, model.get_parameter("0.weight"))


def test_tied_weights_are_stored_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(4, 2)
            self.head = nn.Linear(2, 4, bias=False)
            self.head.weight = self.embed.weight

    fabric = Fabric(accelerator="cpu")
    model = fabric.setup(Tied())
    fabric.save(tmp_path / "a", {"model": model})
    (file,) = (tmp_path / "a" / "model").glob("*.safetensors")
    assert list(load_file(file)) == ["embed.weight"]
    other = fabric.setup(Tied())
    fabric.load(tmp_path / "a", {"model": other})
    assert other.head.weight is other.embed.weight
    assert torch.equal(other.head.weight, model.embed.weight)


def test_everything_can_be_read_without_objects(tmp_path):
    loop = Loop()
    loop.fabric.save(tmp_path / "a", loop.state(step=3))
    read = loop.fabric.load(tmp_path / "a")
    assert set(read) == {"model", "scheduler", "step"}
    assert torch.equal(read["model"]["0.weight"], loop.model.get_parameter("0.weight"))


def test_a_filter_chooses_what_is_kept(tmp_path):
    loop = Loop()
    keep = {"model": lambda name, value: name.startswith("2."), "info": lambda name, value: value > 1}
    loop.fabric.save(tmp_path / "a", {"model": loop.model, "info": {"a": 1, "b": 2}}, filter=keep)
    read = loop.fabric.load(tmp_path / "a")
    assert set(read["model"]) == {"2.weight", "2.bias"}
    assert read["info"] == {"b": 2}
    other = Loop()
    nn.init.zeros_(other.model.get_parameter("0.weight"))
    nn.init.zeros_(other.model.get_parameter("2.weight"))
    with pytest.raises(CheckpointError, match=r"missing: 0\.weight"):
        other.fabric.load(tmp_path / "a", {"model": other.model})
    other.fabric.load(tmp_path / "a", {"model": other.model}, strict=False)
    assert other.model.get_parameter("0.weight").abs().sum() == 0
    assert other.model.get_parameter("2.weight").abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda loop, path: loop.fabric.save(path, {"opt": loop.optimizer}),
            ValueError,
            "'opt' is to be saved or loaded wi",
        ),
        (
            lambda loop, path: loop.fabric.save(path, loop.state(), filter={"modle": lambda *_: True}),
            ValueError,
            r"filter has no 'modle' to choose from.*Did you mean 'model'\?",
        ),
        (
            lambda loop, path: loop.fabric.save(path, loop.state(), filter={"optimizer": lambda *_: True}),
            ValueError,
            "The optimizer 'optimizer' cannot be filtered",
        ),
        (
            lambda loop, path: loop.fabric.save(path, {"step": 3}, filter={"step": lambda *_: True}),
            TypeError,
            r"Only modules and mappings can be filtered\. Got: 3",
        ),
        (lambda loop, path: loop.fabric.save(path, {"act": torch.relu}), CheckpointError, "values.*act"),
        (lambda loop, path: loop.fabric.load(path / "none", {}), CheckpointError, "none"),
    ],
)
def test_what_cannot_be_saved_or_loaded(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(Loop(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_the_checkpoint_lacks_is_an_error(tmp_path):
    loop = Loop()
    loop.fabric.save(tmp_path / "a", {"model": loop.model, "step": 3})
    with pytest.raises(CheckpointError, match=r"holds no optimizer 'optimizer'\. Got: \['model', 'step'\]"):
        loop.fabric.load(tmp_path / "a", loop.state())
    with pytest.raises(CheckpointError, match=r"holds no module 'modle'.*Did you mean 'model'\?"):
        loop.fabric.load(tmp_path / "a", {"modle": loop.model})
    before = copy.deepcopy(loop.scheduler.state_dict())
    loop.fabric.load(tmp_path / "a", loop.state(), strict=False)
    assert loop.scheduler.state_dict() == before
