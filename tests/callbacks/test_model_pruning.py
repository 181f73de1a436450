"""Weights that stay at zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from callbacks.line import Line
from torch import nn

from taskloom.callbacks import LambdaCallback, ModelPruning
from taskloom.checkpoint import open_checkpoint


class Wide(Line):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

    def configure_optimizers(self) -> Any:  # momentum and decay both move a weight whose gradient is zero
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def zeros(task: nn.Module) -> int:
    return sum(int((parameter == 0).sum()) for parameter in task.parameters())


@pytest.mark.holds("CB-11")
def test_pruned_weights_stay_at_zero_and_the_rest_learns(make_trainer: Any, loader: Any) -> None:
    task, counts = Wide(), []
    pruning = ModelPruning("l1_unstructured", amount=0.5, use_lottery_ticket_hypothesis=False)
    record = LambdaCallback(on_train_batch_start=lambda trainer, task, batch, batch_idx: counts.append(zeros(task)))
    make_trainer(pruning, record, max_epochs=3).fit(task, loader)
    total = 41
    assert counts == [0] * 4 + [20] * 4 + [20 + 10] * 4  # of 41, then of the 21 that are left
    assert zeros(task) == 36
    assert pruning.sparsity == 36 / total


def test_the_smallest_of_all_weights_go_first(make_trainer: Any, loader: Any) -> None:
    task = Wide()
    pruning = ModelPruning(
        "l1_unstructured", amount=10, parameter_names=["weight"], use_lottery_ticket_hypothesis=False
    )
    make_trainer(pruning, max_epochs=1).fit(task, loader)
    masks = pruning.masks
    assert set(masks) == {"net.0.weight", "net.2.weight"}
    flat = torch.cat([task.get_parameter(name).flatten() for name in masks])
    kept = torch.cat([mask.flatten() for mask in masks.values()]).bool()
    assert int((~kept).sum()) == 10
    assert (flat[kept] != 0).all()


@pytest.mark.holds("CB-11")
def test_whole_channels(make_trainer: Any, loader: Any) -> None:
    task = Wide()
    pruning = ModelPruning(
        "ln_structured",
        parameters_to_prune=[(task.net[0], "weight")],
        amount=0.25,
        use_global_unstructured=False,
        pruning_dim=0,
        pruning_norm=2,
        use_lottery_ticket_hypothesis=False,
    )
    make_trainer(pruning, max_epochs=1).fit(task, loader)
    rows = (task.net[0].weight == 0).all(1)
    assert int(rows.sum()) == 2


@pytest.mark.holds("CB-11")
def test_a_lottery_ticket_begins_where_training_began(make_trainer: Any, loader: Any) -> None:
    task = Wide()
    first = {name: parameter.detach().clone() for name, parameter in task.named_parameters()}
    pruning = ModelPruning("l1_unstructured", amount=0.5)
    make_trainer(pruning, max_epochs=1).fit(task, loader)
    for name, parameter in task.named_parameters():
        assert torch.equal(parameter, first[name] * pruning.masks[name])


def test_resampling_draws_new_values(make_trainer: Any, loader: Any) -> None:
    task = Wide()
    first = task.net[0].weight.detach().clone()
    make_trainer(ModelPruning("l1_unstructured", amount=0.25, resample_parameters=True), max_epochs=1).fit(task, loader)
    assert not (task.net[0].weight == first).any()
    assert zeros(task) == 10


@pytest.mark.holds("CB-11")
def test_masks_survive_a_resume_and_checkpoints_hold_the_same_names(make_trainer: Any, loader: Any) -> None:
    task = Wide()
    saved = (
        make_trainer(ModelPruning("l1_unstructured"), max_epochs=1, checkpoint=True).fit(task, loader).last_checkpoint
    )
    with open_checkpoint(saved) as reader:
        assert {name for name, _ in reader.model_tensors()} == set(task.state_dict())
    pruning = ModelPruning("l1_unstructured", apply_pruning=False)
    trainer = make_trainer(pruning, max_epochs=3, checkpoint=True)
    trainer.fit(again := Wide(), loader, ckpt_path=saved)
    assert zeros(again) == 20
    assert pruning.sparsity == 20 / 41


def test_amount_and_moment_may_depend_on_the_epoch(make_trainer: Any, loader: Any) -> None:
    task = Wide()
    pruning = ModelPruning(
        "random_unstructured",
        amount=lambda epoch: epoch + 1,
        apply_pruning=lambda epoch: epoch != 1,
        prune_on_train_epoch_end=False,
        use_lottery_ticket_hypothesis=False,
    )
    trainer = make_trainer(pruning, max_epochs=3)
    trainer.fit(task, loader, loader)
    assert zeros(task) == 1 + 3
    trainer.validate(task, loader, verbose=False)
    assert zeros(task) == 1 + 3


def test_it_says_how_much(make_trainer: Any, loader: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make_trainer(ModelPruning("l1_unstructured", amount=10, verbose=2), max_epochs=1).fit(Wide(), loader)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "ModelPruning: 0.0% → 24.4% of 4 parameters pruned"
    assert len(printed) == 5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("l1_structured",), r"no pruning function 'l1_structured'.*Did you mean"),
        (("ln_structured",), "cannot choose among all weights together"),
        (("ln_structured", (), ("weight",), False), "needs pruning_dim and pruning_norm"),
        (("l1_unstructured", (), ("weight",), True, 1.5), "a part from 0.0 to 1.0"),
        (("l1_unstructured", (), ("weight",), True, 0.5, True, False), "no pruning that is not permanent"),
    ],
    ids=str,
)
def test_mistakes(arguments: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ModelPruning(*arguments)


def test_nothing_to_prune(make_trainer: Any, loader: Any) -> None:
    with pytest.raises(ValueError, match="found nothing to prune"):
        make_trainer(ModelPruning("l1_unstructured", parameter_names=["kernel"]), max_epochs=1).fit(Wide(), loader)
    with pytest.raises(ValueError, match="has no parameter 'weight' in the task"):
        make_trainer(ModelPruning("l1_unstructured", [(nn.Linear(1, 1), "weight")]), max_epochs=1).fit(Wide(), loader)
