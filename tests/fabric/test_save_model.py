"""`Fabric.save_model`: weights for other loaders, straight from a module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoint.test_export import Tied, transformers_reader
from safetensors.torch import load_model
from torch import nn

from taskloom.checkpoint import CheckpointError
from taskloom.fabric import Fabric


@pytest.mark.holds("CK-11")
def test_weights_are_written_under_their_own_names_in_files_of_the_wanted_size(tmp_path: Path) -> None:
    fabric = Fabric(accelerator="cpu", precision="bf16-true")
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    wrapped = fabric.setup_module(model)
    made = fabric.save_model(wrapped, tmp_path / "out", max_shard_size=60)
    assert made is not None
    assert len(made.files) > 1
    loaded = transformers_reader(tmp_path / "out")
    expected = model.state_dict()
    assert set(loaded) == set(expected)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
    assert loaded["0.weight"].dtype is torch.bfloat16

    fabric.save_model(model, tmp_path / "out")  # what was there is replaced
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    with pytest.raises(CheckpointError, match="holds weights already"):
        fabric.save_model(model, tmp_path / "out", overwrite=False)


@pytest.mark.holds("CK-11")
def test_a_tied_weight_is_written_once(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    made = Fabric(accelerator="cpu").save_model(model, tmp_path / "out")
    assert made is not None
    assert made.aliases == {"head.weight": "embed.weight"}
    assert set(transformers_reader(tmp_path / "out")) == {"embed.weight"}
    assert load_model(other, made.files[0]) == (set(), [])
    assert torch.equal(other.head.weight, model.head.weight)


def test_pickles_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="writes safetensors only"):
        Fabric(accelerator="cpu").save_model(nn.Linear(1, 1), tmp_path / "out", safe_serialization=False)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file is a file"):
        Fabric(accelerator="cpu").save_model(nn.Linear(1, 1), tmp_path / "file")
