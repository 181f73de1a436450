from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from taskloom.core.errors import TaskloomWarning
from taskloom.optim import check_groups, parameter_names, warn_unoptimized

SGD = torch.optim.SGD


@pytest.fixture
def module():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def test_a_tied_parameter_has_its_first_name(module):
    module.again = module[1]
    assert parameter_names(module)[module.again.weight] == "1.weight"


def test_groups_that_cover_the_module_once_are_accepted(module):
    optimizers = [
        SGD([{"params": [module[0].weight]}, {"params": [module[0].bias]}], lr=1.0),
        SGD(module[1].parameters()),
    ]
    check_groups(module, optimizers)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unoptimized(module, optimizers)


def test_a_parameter_in_two_optimizers_is_an_error(module):
    optimizers = [SGD(module.parameters()), torch.optim.Adam(module[1].parameters())]
    with pytest.raises(ValueError, match=r"The parameter '1\.weight' is in two groups, of SGD and of Adam"):
        check_groups(module, optimizers)


def test_a_parameter_of_another_module_is_an_error(module):
    optimizer = SGD([*module.parameters(), nn.Parameter(torch.ones(3, 4))])
    with pytest.raises(ValueError, match=r"SGD updates a parameter of shape \(3, 4\) that is not in the module"):
        check_groups(module, [optimizer])


def test_a_trainable_parameter_without_optimizer_is_said(module):
    optimizer = SGD(module[0].parameters())
    with pytest.warns(TaskloomWarning, match=r"2 trainable parameters are in no optimizer: 1\.weight, 1\.bias\."):
        warn_unoptimized(module, [optimizer])
    module[1].requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_unoptimized(module, [optimizer])


def test_a_long_list_is_cut():
    module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(5)))
    with pytest.warns(TaskloomWarning, match=r"10 trainable parameters .* 2\.weight and 5 more"):
        warn_unoptimized(module, [])
