"""The table of a model's modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskloom.core.task import TaskModule
from taskloom.report import summarize


class Task(TaskModule):
    def __init__(self, example: Any = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.BatchNorm1d(16))
        self.head = nn.Linear(16, 2).requires_grad_(False)
        self.example_input_array = example

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        out: Tensor = self.head(self.net(x)) * scale
        return out


@pytest.mark.holds("CB-12", "OS-30")
def test_counts_and_modes() -> None:
    task = Task()
    task.net[1].eval()
    table = summarize(task)
    net, head = table.rows
    assert (net.name, net.kind, net.parameters, net.trainable) == ("net", "Sequential", 8 * 16 + 16 + 32, 176)
    assert (head.parameters, head.trainable) == (34, 0)
    assert (table.parameters, table.trainable, table.buffers) == (210, 176, 33)
    assert table.megabytes == pytest.approx(210 * 4 / 1e6)
    deep = {row.name: row for row in summarize(task, max_depth=-1).rows}
    assert list(deep) == ["net", "net.0", "net.1", "net.2", "head"]
    assert (deep["net.0"].training, deep["net.1"].training) == (True, False)
    assert summarize(task, max_depth=0).rows == ()


@pytest.mark.holds("CB-12")
@pytest.mark.parametrize(
    "example",
    [torch.zeros(4, 8), (torch.zeros(4, 8),), {"x": torch.zeros(4, 8), "scale": 2.0}],
    ids=["tensor", "tuple", "dict"],
)
def test_sizes(example: Any) -> None:
    rows = {row.name: (row.in_size, row.out_size) for row in summarize(Task(example), max_depth=2).rows}
    assert rows["net"] == ([4, 8], [4, 16])
    assert rows["head"] == ([4, 16], [4, 2])


def test_measuring_sizes_changes_nothing() -> None:
    task = Task(torch.rand(4, 8))
    task.net[2].eval()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    modes = [module.training for module in task.modules()]
    state = torch.get_rng_state()
    summarize(task)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in task.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert not any(module._forward_hooks for module in task.modules())


def test_a_forward_that_fails_leaves_no_hook_and_no_mode_behind() -> None:
    task = Task(torch.zeros(4, 9))
    with pytest.raises(RuntimeError):
        summarize(task)
    assert task.training
    assert not any(module._forward_hooks for module in task.modules())


def test_shared_parameters_count_once() -> None:
    task = Task()
    task.again = task.head
    assert summarize(task).parameters == 210


def test_lazy_parameters_are_marked() -> None:
    task = Task()
    task.lazy = nn.LazyLinear(3)
    table = summarize(task)
    assert table.rows[-1].lazy
    assert table.parameters == 210
    assert "those marked ? are created by the first batch" in str(table)


@pytest.mark.holds("CB-12")
def test_rendering() -> None:
    table = summarize(Task(torch.zeros(4, 8)))
    plain = table.render(terminal=False).splitlines()
    assert plain[1].split("  ")[0:2] == ["0", "net"]
    assert "[4, 8]" in plain[1]
    assert plain[-1] == "210 parameters (176 trainable, 34 not), 0.001 MB, 33 numbers in buffers"
    assert str(table).isascii()
    assert "┃" in table.render(terminal=True, width=100)


def test_a_depth_that_is_none() -> None:
    with pytest.raises(ValueError, match="max_depth is a depth"):
        summarize(Task(), max_depth=-2)
