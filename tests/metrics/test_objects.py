from __future__ import annotations

from typing import Any

import pytest
import torch
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassPrecision

from taskloom import CheckpointError
from taskloom.metrics import metric_states, restore_metric_states


class HasMetrics(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.kept = MeanMetric(), CatMetric()
        self.scores = MetricCollection(
            [MulticlassAccuracy(2, average="micro"), MulticlassPrecision(2, average="micro")]
        )

    def update(self, value: int) -> None:
        self.mean.update(float(value))
        self.kept.update(float(value))
        self.scores.update(torch.tensor([value % 2]), torch.tensor([1]))

    def results(self) -> list[Any]:
        return [self.mean.compute().item(), self.kept.compute().tolist(), self.scores.compute()]


@pytest.mark.holds("LG-21")
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_metric_objects_continue_from_their_states(stop):
    uninterrupted, continued = HasMetrics(), HasMetrics()
    for number in range(4):
        if number == stop:
            states = metric_states(continued)
            continued = HasMetrics()
            restore_metric_states(continued, states)
        uninterrupted.update(number)
        continued.update(number)
    assert continued.results() == uninterrupted.results()
    for metric in (continued.mean, continued.kept, continued.scores):
        metric.reset()
    assert metric_states(continued) == {}


def test_the_state_of_a_metric_that_is_gone_is_refused():
    module = HasMetrics()
    module.update(1)
    with pytest.raises(CheckpointError, match=r"Linear has no metric 'mean', which the checkpoint holds the state of"):
        restore_metric_states(torch.nn.Linear(1, 1), metric_states(module))
