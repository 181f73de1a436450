"""The copy that is written while training changes what it was copied from."""

from __future__ import annotations

import pytest
import torch

from taskloom.checkpoint import CheckpointContent, Shard, find_aliases, open_checkpoint, write_checkpoint
from taskloom.checkpoint.snapshot import SnapshotBuffers
from taskloom.core.errors import CheckpointError


def content(weight: torch.Tensor, **more) -> CheckpointContent:
    return CheckpointContent(
        model=[Shard.whole("w", weight)],
        optimizer=[Shard.whole("w.exp_avg", weight * 2)],
        further={"average": [Shard.whole("w", weight * 3)]},
        state={"progress": {"steps": 1}, "generators": weight, "custom": {"names": ["a"]}},
        **more,
    )


@pytest.mark.holds("R16")
def test_what_changes_after_the_snapshot_is_not_in_the_checkpoint(tmp_path):
    weight, names = torch.arange(6.0).reshape(2, 3), ["a"]
    live = content(weight)
    live.state["custom"] = {"names": names}
    taken = SnapshotBuffers().take(live)
    weight.zero_()
    names.append("b")
    for shards in (live.optimizer, live.further["average"]):
        shards[0].tensor.zero_()
    write_checkpoint(tmp_path / "step-1", taken)
    expected = torch.arange(6.0).reshape(2, 3)
    with open_checkpoint(tmp_path / "step-1", verify=True) as reader:
        assert torch.equal(reader.tensor("model", "w"), expected)
        assert torch.equal(reader.tensor("optimizer", "w.exp_avg"), expected * 2)
        assert torch.equal(reader.tensor("average", "w"), expected * 3)
        assert torch.equal(reader.state["generators"], expected)
        assert reader.state["custom"] == {"names": ["a"]}
        assert reader.state["progress"] == {"steps": 1}


@pytest.mark.holds("R16")
def test_memory_is_used_again_and_holds_one_snapshot():
    buffers = SnapshotBuffers()
    first = buffers.take(content(torch.ones(100)))
    places, held = first.model[0].tensor.data_ptr(), buffers.nbytes
    second = buffers.take(content(torch.zeros(100)))
    assert second.model[0].tensor.data_ptr() == places
    assert buffers.nbytes == held == 4 * 100 * 4
    assert torch.equal(first.model[0].tensor, torch.zeros(100))
    buffers.take(content(torch.zeros(10)))
    assert buffers.nbytes == 4 * 10 * 4, "what a changed model no longer needs is given back"
    buffers.release()
    assert buffers.nbytes == 0


def test_tied_weights_are_copied_once(tmp_path):
    tied = torch.arange(4.0)
    pieces = [Shard.whole("embedding", tied), Shard.whole("head", tied)]
    aliases = find_aliases((piece.name, piece.tensor) for piece in pieces)
    buffers = SnapshotBuffers()
    taken = buffers.take(CheckpointContent(model=pieces, aliases=aliases))
    assert buffers.nbytes == 16
    write_checkpoint(tmp_path / "step-1", taken)
    with open_checkpoint(tmp_path / "step-1") as reader:
        assert torch.equal(reader.tensor("model", "head"), tied)


def test_any_layout_and_dtype_is_copied(tmp_path):
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    pieces = {
        "image": image,
        "transposed": torch.randn(3, 5).t(),
        "strided": torch.randn(10)[::3],
        "half": torch.randn(4).to(torch.bfloat16),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    taken = SnapshotBuffers().take(CheckpointContent([Shard.whole(*each) for each in pieces.items()]))
    write_checkpoint(tmp_path / "step-1", taken)
    with open_checkpoint(tmp_path / "step-1") as reader:
        for name, tensor in pieces.items():
            assert torch.equal(reader.tensor("model", name), tensor.detach()), name
            assert not next(each for each in taken.model if each.name == name).tensor.requires_grad


def test_a_checkpoint_of_weights_takes_its_part_of_the_state(tmp_path):
    taken = SnapshotBuffers().take(content(torch.ones(2)))
    write_checkpoint(tmp_path / "step-1", taken, weights_only=True)
    with open_checkpoint(tmp_path / "step-1") as reader:
        assert reader.state == {"custom": {"names": ["a"]}}
        assert "state.safetensors" not in reader.manifest.files


@pytest.mark.holds("R14")
def test_what_cannot_be_saved_is_refused_when_the_snapshot_is_taken():
    buffers = SnapshotBuffers()
    with pytest.raises(CheckpointError, match=r"state.custom.made is not data"):
        buffers.take(CheckpointContent([], state={"custom": {"made": object()}}))
    with pytest.raises(CheckpointError, match=r"'w'.*sparse"):
        buffers.take(CheckpointContent([Shard.whole("w", torch.eye(2).to_sparse())]))


@pytest.mark.gpu
def test_a_snapshot_of_a_device_is_complete_when_it_returns():
    weight = torch.arange(1_000_000, device="cuda", dtype=torch.float32)
    expected = weight.cpu()
    taken = SnapshotBuffers().take(CheckpointContent([Shard.whole("w", weight)]))
    weight.zero_()
    assert taken.model[0].tensor.is_pinned()
    assert torch.equal(taken.model[0].tensor, expected)
