from __future__ import annotations

import pytest
import torch

from taskloom import Loss, Skip


@pytest.mark.parametrize("weight", [4, 4.0, torch.tensor(4)])
def test_the_mean_keeps_its_graph(weight):
    total = torch.tensor(6.0, requires_grad=True)
    mean = Loss(total, weight).mean
    mean.backward()
    assert mean.item() == 1.5
    assert total.grad.item() == 0.25


def test_a_skip_carries_its_reason():
    assert Skip("empty").reason == "empty"
    assert Skip() == Skip("")
