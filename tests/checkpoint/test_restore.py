"""Rules for names and values of a restore, by themselves."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.contents import make_content
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from taskloom import RestorePolicy, load_task
from taskloom.checkpoint import CheckpointError, Shard, write_checkpoint
from taskloom.checkpoint.restore import PARTS, Names, RestoreReport
from taskloom.checkpoint.settings import apply_settings, fitting
from taskloom.checkpoint.setup import compare_setups
from taskloom.checkpoint.weights import overlapping
from taskloom.core.errors import ConfigError
from taskloom.core.task import TaskModule

WORDS = st.text("ab.0", min_size=1, max_size=6)


@pytest.mark.holds("R38")
def test_the_default_restores_everything_exactly() -> None:
    policy = RestorePolicy()
    assert policy.parts == frozenset(PARTS)
    assert (policy.missing, policy.continues, policy.restarts_data, policy.settings) == ("error", True, False, {})
    assert policy.names == Names()


@pytest.mark.holds("R38")
@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"only": "model"}, {"model"}),
        ({"only": "model, optimizer,loops"}, {"model", "optimizer", "loops"}),
        ({"only": ["weights", "progress", "rng"]}, {"model", "loops", "generators"}),
        ({"ignore": "schedulers"}, {*PARTS} - {"schedulers"}),
        ({"ignore": ["head.*", "precision"]}, {*PARTS} - {"scaler"}),
        ({"generators": False}, {*PARTS} - {"generators"}),
    ],
)
def test_parts_by_their_names(given: dict[str, Any], parts: set[str]) -> None:
    assert RestorePolicy(**given).parts == parts


@pytest.mark.holds("R38")
@pytest.mark.parametrize(
    "written",
    [
        {"set": "optimizer.lr=1e-5, loops.epochs = 2"},
        {"set": ["optimizer.lr=1e-5", "loops.epochs=2"]},
        {"set": {"optimizer": {"lr": "1e-5"}, "loops": {"epochs": "2"}}},
        {"set": {"optimizer.lr": "1e-5", "loops.epochs": "2"}},
    ],
)
def test_values_to_set_in_every_spelling(written: dict[str, Any]) -> None:
    assert RestorePolicy(**written).settings == {"optimizer.lr": "1e-5", "loops.epochs": "2"}


@pytest.mark.holds("R38")
@pytest.mark.parametrize("written", ["a.*: b.*", "a.*=b.*", ["a.* : b.*"], {"a.*": "b.*"}])
def test_renames_in_every_spelling(written: Any) -> None:
    assert RestorePolicy(rename=written).names.now("a.x.weight") == "b.x.weight"


@pytest.mark.holds("R38")
@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"only": "model,optimiser"}, [r"no part 'optimiser'.*Did you mean 'optimizer'\?"]),
        (
            {"missing": "eror", "data": "again"},
            [r"missing has no choice 'eror'.*'error'\?", "data has no choice 'again'"],
        ),
        ({"only": "model,data"}, [r"'data' is restored together with 'loops'.*only=\['model', 'data', 'loops'\]"]),
        (
            {"set": "optimizer.lr"},
            [r"restore\.set: 'optimizer\.lr' does not say what becomes what.*optimizer\.lr=1e-5"],
        ),
        ({"rename": "encoder.*"}, [r"restore\.rename: 'encoder\.\*' does not say.*'encoder\.\*: backbone\.\*'"]),
        ({"rename": {"a": "b.*"}}, [r"'b\.\*' has more stars than 'a'"]),
        ({"set": {"model.x": 1}}, ["'model.x' cannot be set"]),
        ({"set": {"optim.lr": 1}}, [r"'optim\.lr' cannot be set.*Did you mean 'optimizer'\?"]),
        ({"only": "model", "set": {"optimizer.lr": 1}}, ["'optimizer.lr' would have no effect"]),
    ],
)
def test_mistakes_are_told_all_at_once(given: dict[str, Any], problems: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"(?s){'.*'.join(problems)}") as caught:
        RestorePolicy(**given)
    assert len(caught.value.problems) == len(problems)


@pytest.mark.holds("R38")
@settings(max_examples=60, deadline=None)
@given(WORDS, WORDS, WORDS)
def test_a_rename_and_its_reverse_give_the_name_back(old: str, new: str, rest: str) -> None:
    there, back = Names({f"{old}/*": f"{new}/*"}), Names({f"{new}/*": f"{old}/*"})
    name = f"{old}/{rest}"
    assert there.now(name) == f"{new}/{rest}"
    assert back.now(there.now(name)) == name
    assert there.now(f"x{name}") == f"x{name}"
    assert Names({"*/*": "*-*"}).now(name) == f"{old}-{rest}"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=3))
def test_what_overlaps_is_copied_and_the_rest_stays(sizes: list[tuple[int, int]]) -> None:
    stored, target = (torch.randn([pair[each] for pair in sizes]) for each in (0, 1))
    resized = overlapping(stored, target)
    inside = torch.zeros(target.shape, dtype=torch.bool)
    inside[tuple(slice(0, min(pair)) for pair in sizes)] = True
    assert resized.shape == target.shape
    assert torch.equal(resized[~inside], target[~inside])
    assert torch.equal(resized[inside], stored[tuple(slice(0, min(pair)) for pair in sizes)].reshape(-1))
    assert not overlapping(stored, target, fill=0.0)[~inside].any()


@pytest.mark.holds("R38")
@pytest.mark.parametrize(
    ("before", "given", "after"),
    [
        (0.1, "1e-5", 1e-5),
        (0.1, ".5", 0.5),
        (0.1, 1, 1.0),
        (3, "4", 4),
        (3, 4.0, 4),
        ("min", "max", "max"),
        (None, "3", 3),
        (True, "false", False),
        ((0.9, 0.99), "[0.5, 0.6]", (0.5, 0.6)),
        (torch.tensor(0.1), "0.2", 0.2),
    ],
)
def test_a_value_becomes_the_kind_of_what_it_replaces(before: Any, given: Any, after: Any) -> None:
    value = fitting(before, given)
    assert (value, type(value)) == (after, type(after))


@pytest.mark.parametrize(("before", "given"), [(0.1, "x"), (3, 4.5), (True, 1), ((1, 2), [1]), ("min", 3), (3, "true")])
def test_a_value_of_another_kind_is_refused(before: Any, given: Any) -> None:
    with pytest.raises(ValueError, match="another kind than the saved one"):
        fitting(before, given)


def test_settings_of_several_optimizers_and_groups() -> None:
    def state() -> dict[str, Any]:
        groups = [{"options": {"lr": 0.1, "eps": 1.0}}, {"options": {"lr": 0.2, "eps": 2.0}}]
        return {"optimizers": {"SGD": {"groups": groups}, "Adam": {"groups": groups[:1]}}, "schedulers": []}

    def rates(values: dict[str, Any]) -> list[float]:
        changed, report = state(), RestoreReport()
        for each in changed["optimizers"].values():
            each["groups"] = [{"options": dict(group["options"])} for group in each["groups"]]
        assert apply_settings(changed, values, report) == []
        return [group["options"]["lr"] for each in changed["optimizers"].values() for group in each["groups"]]

    assert rates({"optimizer.lr": 0.5}) == [0.5, 0.5, 0.5]
    assert rates({"optimizer.SGD.lr": 0.5}) == [0.5, 0.5, 0.1]
    assert rates({"optimizer.SGD.1.lr": 0.5}) == [0.1, 0.5, 0.1]
    assert apply_settings(state(), {"optimizer.1.lr": 1}, RestoreReport()) != []


def test_set_ups_are_compared_by_name() -> None:
    saved = {"a": 1, "b": {"c": [1, 2], "gone": 0}, "max_epochs": 3, "t": torch.ones(2), "nan": float("nan")}
    now = {"a": 2, "b": {"c": (1, 2), "new": 0}, "max_epochs": 4, "t": torch.ones(2), "nan": float("nan")}
    changes = compare_setups(saved, now)
    assert changes.matter == ["a: 1 to 2", "b.c: [1, 2] to (1, 2)"]
    assert changes.bounds == ["max_epochs: 3 to 4"]


# Rebuilding a task --------------------------------------------------------------------------------------------------


class Regression(TaskModule):
    def __init__(self, width: int, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(width, 1)


class Wider(TaskModule):
    """Takes an argument more, lacks one, and calls its layer differently."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width + depth, 1)


def write(path: Path, task: TaskModule, name: str) -> Path:
    state = {"hyper_parameters": dict(task.hparams), "custom": {}, "task_class": name}
    model = [Shard.whole(each, tensor) for each, tensor in task.state_dict().items()]
    average = [Shard.whole("net.weight", torch.full((1, 3), 7.0))]
    content = make_content(model=model, state=state, further={"average": average})
    write_checkpoint(path, content, fsync=False)
    return path


@pytest.mark.holds("R23", "R38")
def test_weights_load_into_another_class_with_other_arguments(tmp_path: Path) -> None:
    task = Regression(3)
    path = write(tmp_path / "c", task, "somewhere.Regression")
    restore = RestorePolicy(rename={"net.*": "layer.*"}, resize="layer.weight")
    wider = Wider.load_from_checkpoint(path, restore=restore, depth=2)
    assert torch.equal(wider.layer.weight[:, :3], task.net.weight)
    with pytest.raises(CheckpointError, match=r"written by another task, somewhere\.Regression.*in Wider"):
        Wider.load_from_checkpoint(path, depth=2)
    assert isinstance(load_task(path, Wider, strict=False, depth=0), Wider)
    averaged = Regression.load_from_checkpoint(path, restore=RestorePolicy(weights="average"))
    assert averaged.net.weight.eq(7).all()
    assert torch.equal(averaged.net.bias, task.net.bias)
    with pytest.raises(ConfigError, match="load_from_checkpoint restores the model"):
        Regression.load_from_checkpoint(path, restore=RestorePolicy(data="restart"))


@pytest.mark.holds("R23", "R14")
def test_the_class_that_a_checkpoint_names_is_found_only_among_those_imported(tmp_path: Path) -> None:
    task = Regression(3)
    path = write(tmp_path / "c", task, f"{__name__}.Regression")
    found = load_task(path, lr=0.5)
    assert type(found) is Regression
    assert found.hparams.lr == 0.5
    assert torch.equal(found.net.weight, task.net.weight)
    evil = write(tmp_path / "evil", task, "this.Absent")
    (tmp_path / "this.py").write_text("raise AssertionError('this must not be imported')")
    before = set(sys.modules)
    with pytest.raises(
        CheckpointError, match=r"written by this\.Absent, which is not imported.*never imports anything"
    ):
        load_task(evil)
    assert set(sys.modules) == before
    script = write(tmp_path / "script", task, "__main__.Wider")
    with pytest.raises(CheckpointError, match="Wider cannot be made from"):
        load_task(script)
