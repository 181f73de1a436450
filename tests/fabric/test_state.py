"""`save` and `load` of a hand-written loop."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.lr_scheduler import StepLR

from taskloom import RestorePolicy
from taskloom.checkpoint import latest_checkpoint, open_checkpoint
from taskloom.checkpoint.folder import checkpoint_name
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


# Beside the state that is named ---------------------------------------------------------------------------------------


class Counter:
    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Any) -> None:
        self.count = state["count"]


@pytest.mark.holds("CK-07")
def test_registered_objects_travel_with_every_checkpoint(tmp_path):
    loop, other = Loop(), Loop()
    loop.fabric.register_for_checkpointing(Counter(3), Counter(5))
    loop.fabric.save(tmp_path / "a", {"model": loop.model})
    one, two = Counter(), Counter()
    other.fabric.register_for_checkpointing(one, two)
    other.fabric.load(tmp_path / "a", {"model": other.model})
    assert (one.count, two.count) == (3, 5)
    other.fabric.register_for_checkpointing(loop.scheduler)
    with pytest.raises(CheckpointError, match=r"other registered objects\. Got: 'Counter, Counter for Counter"):
        other.fabric.load(tmp_path / "a", {"model": other.model})
    other.fabric.load(tmp_path / "a", {"model": other.model}, strict=False)
    for wrong in (object(), loop.model, loop.optimizer):
        with pytest.raises(TypeError, match=r"cannot be registered for checkpoints"):
            loop.fabric.register_for_checkpointing(wrong)


@pytest.mark.holds("CK-07")
def test_hooks_see_the_state_before_it_is_saved_and_loaded(tmp_path):
    loop, seen = Loop(), []

    def add(state: dict[str, Any], path: Any) -> None:
        seen.append(path)
        state["note"] = "from the hook"

    handle = loop.fabric.register_save_state_pre_hook(add)
    given = {"model": loop.model}
    loop.fabric.save(tmp_path / "a", given)
    assert (seen, set(given)) == ([tmp_path / "a"], {"model"})
    handle.remove()
    loop.fabric.save(tmp_path / "b", given)
    assert loop.fabric.load(tmp_path / "a")["note"] == "from the hook"
    assert "note" not in loop.fabric.load(tmp_path / "b")
    skip = loop.fabric.register_load_state_pre_hook(lambda state, path: state.pop("model"))
    before = loop.model.get_parameter("0.weight").clone()
    with torch.no_grad():
        loop.model.get_parameter("0.weight").add_(1)
    loop.fabric.load(tmp_path / "a", given)
    assert torch.equal(loop.model.get_parameter("0.weight"), before + 1)
    skip.remove()
    loop.fabric.load(tmp_path / "a", given)
    assert torch.equal(loop.model.get_parameter("0.weight"), before)


@pytest.mark.holds("CK-14", "CK-13")
def test_the_state_of_a_module_whole_and_under_its_own_names(tmp_path):
    loop = Loop("bf16-true")
    state = loop.fabric.get_state_dict(loop.model)
    plain = make_model()
    assert list(state) == list(plain.state_dict())
    plain.to(torch.bfloat16).load_state_dict(state)
    assert all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in state.values())
    state["0.weight"].zero_()
    assert loop.model.get_parameter("0.weight").any()


@pytest.mark.holds("CK-13")
@pytest.mark.parametrize("fails", [False, True])
def test_only_the_first_process_writes_and_all_hear_of_a_failure(tmp_path, monkeypatch, fails):
    loop = Loop()
    monkeypatch.setattr(type(loop.fabric.strategy), "global_rank", 1)
    monkeypatch.setattr(type(loop.fabric.strategy), "any_rank", lambda self, flag: flag or fails)
    if fails:
        with pytest.raises(CheckpointError, match=r"was not saved.*the first process could not write it"):
            loop.fabric.save(tmp_path / "a", loop.state())
    else:
        loop.fabric.save(tmp_path / "a", loop.state())
    assert not (tmp_path / "a").exists()


@pytest.mark.holds("CK-20", "CK-06")
def test_loading_leaves_devices_and_dtypes_as_they_are(tmp_path):
    loop, other = Loop("32-true"), Loop("64-true")
    loop.train(range(2))
    loop.fabric.save(tmp_path / "a", {"model": loop.model, "extra": torch.ones(2)})
    rest = other.fabric.load(tmp_path / "a", {"model": other.model}, map_location="meta", weights_only=True)
    weight = other.model.get_parameter("0.weight")
    assert (weight.dtype, weight.device.type) == (torch.float64, "cpu")
    assert torch.equal(weight, loop.model.get_parameter("0.weight").double())
    assert rest["extra"].device.type == "meta"
    everything = other.fabric.load(tmp_path / "a", map_location="meta")
    assert everything["model"]["0.weight"].is_meta
    with pytest.raises(ValueError, match=r"never unpickled, so weights_only=False has no meaning"):
        other.fabric.load(tmp_path / "a", weights_only=False)


@pytest.mark.holds("CK-20")
def test_plain_weights_of_other_frameworks(tmp_path):
    loop, state = Loop(), {f"net.{name}": tensor + 1 for name, tensor in make_model().state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"does not hold the tensors of Sequential.*missing: 0\.weight.*rename="):
        loop.fabric.load_raw(tmp_path / "model.safetensors", loop.model)
    renamed = RestorePolicy(rename={"net.*": "*"})
    loop.fabric.load_raw(tmp_path / "model.safetensors", loop.model, restore=renamed)
    assert torch.equal(loop.model.get_parameter("0.weight"), state["net.0.weight"])
    other = Loop()
    other.fabric.load_raw(tmp_path, other.model, restore=renamed)  # the folder of a Transformers model
    assert torch.equal(other.model.get_parameter("2.bias"), state["net.2.bias"])
    torch.save(make_model().state_dict(), tmp_path / "model.pt")
    other.fabric.load_raw(tmp_path / "model.pt", other.model)
    assert torch.equal(other.model.get_parameter("2.bias"), make_model()[2].bias)
    save_file({"0.weight": torch.ones(2, 4)}, tmp_path / "small.safetensors")
    with pytest.raises(CheckpointError, match=r"(?s)2 reasons.*'0\.weight' has another shape.*\(2, 4\) for \(8, 4\)"):
        other.fabric.load_raw(tmp_path / "small.safetensors", other.model)
    resized = RestorePolicy(resize="0.weight", missing="allow")
    other.fabric.load_raw(tmp_path / "small.safetensors", other.model, restore=resized)
    assert torch.equal(other.model.get_parameter("0.weight")[:2], torch.ones(2, 4))
    assert torch.equal(other.model.get_parameter("0.weight")[2:], make_model()[0].weight[2:])


@pytest.mark.holds("CK-21", "R38")
def test_frozen_weights_are_left_out_and_another_base_is_refused(tmp_path):
    def adapted() -> Loop:
        loop = Loop()
        loop.fabric.unwrap(loop.model)[0].requires_grad_(False)
        return loop

    loop = adapted()
    loop.train(range(3))
    loop.fabric.save(tmp_path / "a", {"model": loop.model, "more": nn.Linear(1, 1)}, exclude_frozen=True)
    with open_checkpoint(tmp_path / "a") as reader:
        assert "model.0.weight" not in reader.model_names()
        assert "model.2.weight" in reader.model_names()
    same = adapted()
    same.fabric.load(tmp_path / "a", {"model": same.model})
    for ours, theirs in zip(same.model.state_dict().values(), loop.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    other = adapted()
    with torch.no_grad():
        other.model.get_parameter("0.bias").add_(1)
    with pytest.raises(CheckpointError, match=r"1 of the 2 tensors beside it .*: 0\.bias"):
        other.fabric.load(tmp_path / "a", {"model": other.model})


@pytest.mark.holds("CK-01")
def test_names_by_the_step_are_found_again(tmp_path):
    loop = Loop()
    for step in (9, 10, 100):
        loop.fabric.save(tmp_path / checkpoint_name(step), {"model": loop.model, "step": step}, step=step)
    (tmp_path / checkpoint_name(100) / "state.json").write_text("{}")
    found, skipped = latest_checkpoint(tmp_path)
    assert found.name == "step-00000010"
    assert len(skipped) == 1
    assert loop.fabric.load(found)["step"] == 10


@pytest.mark.holds("R38", "CK-20")
def test_what_is_restored_can_be_chosen(tmp_path):
    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = make_model()

        def forward(self, x):
            return self.trunk(x)

    loop = Loop()
    loop.train(range(3))
    loop.fabric.save(tmp_path / "a", loop.state())
    fabric = Fabric(accelerator="cpu")
    module = Renamed()
    model, optimizer = fabric.setup(module, torch.optim.AdamW(module.parameters(), lr=0.5))
    scheduler = StepLR(optimizer, 2, gamma=0.5)
    state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    before = [each.clone() for each in model.parameters()]
    with pytest.raises(CheckpointError, match=r"(?s)2 reasons.*missing: trunk.*groups of optimizer 'optimizer'"):
        fabric.load(tmp_path / "a", state)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    policy = RestorePolicy(rename={"*": "trunk.*"}, set={"optimizer.lr": 0.1})
    fabric.load(tmp_path / "a", state, restore=policy)
    assert torch.equal(module.trunk[0].weight, loop.model.get_parameter("0.weight"))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)  # the base is 0.1, and it was halved once
    assert scheduler.base_lrs == [0.1]
    moment = loop.optimizer.state[loop.model.get_parameter("0.weight")]["exp_avg"]
    assert torch.equal(optimizer.state[module.trunk[0].weight]["exp_avg"], moment)
    with pytest.raises(CheckpointError, match=r"Fabric sets options of optimizers, not loops\.epochs"):
        fabric.load(tmp_path / "a", state, restore=RestorePolicy(rename={"*": "trunk.*"}, set={"loops.epochs": 1}))
