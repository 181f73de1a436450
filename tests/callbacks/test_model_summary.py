"""`ModelSummary` prints the table when `fit` begins; what is in it is held by tests/report/test_summary.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from callbacks.line import Line

from taskloom.callbacks import ModelSummary, RichModelSummary


@pytest.mark.holds("CB-12")
@pytest.mark.parametrize(("depth", "rows"), [(0, 0), (1, 1)])
def test_it_is_printed_once(depth: int, rows: int, make_trainer: Any, loader: Any, capsys: Any) -> None:
    task = Line()
    task.example_input_array = torch.zeros(1, 3)
    make_trainer(ModelSummary(max_depth=depth), max_epochs=2).fit(task, loader)
    printed = capsys.readouterr().out.splitlines()
    assert len([line for line in printed if "Linear" in line]) == rows
    assert printed[-1] == "4 parameters (4 trainable, 0 not), 0.000 MB"


def test_names_and_mistakes() -> None:
    assert RichModelSummary is ModelSummary
    with pytest.raises(ValueError, match="max_depth is a depth"):
        ModelSummary(max_depth=-3)
