from __future__ import annotations

import pytest
import torch
from torch import nn

from taskloom.accelerators import CPUAccelerator
from taskloom.core.errors import TaskloomWarning
from taskloom.launch.environments import SingleProcess
from taskloom.precision import NativePrecision
from taskloom.resolve import resolve
from taskloom.strategies import SingleStrategy


def connect(devices=(0,), num_nodes=1, environment=None):
    strategy = SingleStrategy()
    strategy.connect(CPUAccelerator(), NativePrecision(), devices, num_nodes, environment or SingleProcess())
    return strategy


def test_more_than_one_of_anything_is_refused():
    class Two(SingleProcess):
        world_size = 2

    with pytest.raises(ValueError, match="Strategy 'single' runs on one device and was given 2 devices"):
        connect(devices=(0, 1))
    with pytest.raises(ValueError, match="was given 3 machines"):
        connect(num_nodes=3)
    with pytest.raises(ValueError, match=r"was given 2 processes\. Why: each of them would train a model of its own"):
        connect(environment=Two())


def test_nothing_stands_between_the_loop_and_the_module():
    strategy = connect()
    model = nn.Linear(2, 1)
    assert strategy.setup_module(model) is model
    assert strategy.bind_step(model, model.forward) == model.forward
    optimizer = torch.optim.SGD(model.parameters())
    assert strategy.setup_optimizers(model, [optimizer]) == [optimizer]
    assert not strategy.launcher.starts_processes


def test_the_device_is_activated_and_slow_arithmetic_is_said(monkeypatch):
    activated = []
    strategy = connect()
    monkeypatch.setattr(CPUAccelerator, "activate", lambda self, device: activated.append(device))
    monkeypatch.setattr(CPUAccelerator, "advice", lambda self, dtype, device: f"{dtype} is slow here")
    with pytest.warns(TaskloomWarning, match=r"torch\.float32 is slow here"):
        strategy.start()
    assert activated == [torch.device("cpu")]


def test_a_parameter_the_optimizer_has_but_the_module_lost_is_noticed():
    strategy = resolve(accelerator="cpu").strategy
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    model.weight = nn.Parameter(torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"not in the module.*was replaced after the optimizer was made"):
        strategy.setup_optimizers(model, [optimizer])
