from __future__ import annotations

from typing import Any

import pytest
import torch
from checkpoint.contents import make_content
from torch import nn

from taskloom.checkpoint import CheckpointError, Shard, write_checkpoint
from taskloom.core.errors import ConfigError
from taskloom.core.task import TaskModule


class Regression(TaskModule):
    def __init__(self, width: int, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(width, 1)
        self.seen: dict[str, Any] = {}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seen = checkpoint


@pytest.fixture
def saved(tmp_path):
    task = Regression(3, lr=0.5)
    state = {"hyper_parameters": {**task.hparams, "removed": 1}, "custom": {"note": 7}}
    model = [Shard.whole(name, tensor) for name, tensor in task.state_dict().items()]
    write_checkpoint(tmp_path / "c", make_content(model=model, state=state), fsync=False, weights_only=True)
    return task, tmp_path / "c"


def test_task_is_rebuilt_with_its_arguments_and_weights_also_from_weights_only(saved):
    task, path = saved
    loaded = Regression.load_from_checkpoint(path)
    assert dict(loaded.hparams) == {"width": 3, "lr": 0.5}
    assert loaded.seen == {"note": 7}
    for name, tensor in task.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_arguments_beat_the_file_and_the_file_beats_the_checkpoint(saved, tmp_path):
    (tmp_path / "h.yaml").write_text("lr: 0.25\n")
    assert Regression.load_from_checkpoint(saved[1], hparams_file=tmp_path / "h.yaml").hparams.lr == 0.25
    assert Regression.load_from_checkpoint(saved[1], hparams_file=tmp_path / "h.yaml", lr=1.0).hparams.lr == 1.0
    (tmp_path / "h.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"h\.yaml does not hold a mapping"):
        Regression.load_from_checkpoint(saved[1], hparams_file=tmp_path / "h.yaml")


def test_weights_that_do_not_fit_say_so(saved):
    with pytest.raises(
        CheckpointError, match=r"(?s)weights in .* do not fit Regression.*another shape.*Or pass the arguments"
    ):
        Regression.load_from_checkpoint(saved[1], width=4)


def test_names_may_differ_when_asked(saved):
    class Larger(Regression):
        def __init__(self, width: int) -> None:
            super().__init__(width)
            self.head = nn.Linear(1, 1)

    with pytest.raises(CheckpointError, match=r"(?s)do not fit Larger.*head\.weight.*strict=False"):
        Larger.load_from_checkpoint(saved[1])
    assert torch.equal(Larger.load_from_checkpoint(saved[1], strict=False).net.weight, saved[0].net.weight)


def test_missing_argument_is_named(saved):
    class Needy(Regression):
        def __init__(self, width: int, depth: int) -> None:
            super().__init__(width)

    with pytest.raises(CheckpointError, match=r"Needy cannot be made from.*'depth'.*pass what is missing"):
        Needy.load_from_checkpoint(saved[1])
