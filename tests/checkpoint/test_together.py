"""One checkpoint, written by several processes."""

from __future__ import annotations

import pytest
import torch
from checkpoint.ranks import on_ranks
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor import Shard as Split

from taskloom.checkpoint import (
    CheckpointContent,
    Shard,
    latest_checkpoint,
    open_checkpoint,
    together,
    verify_checkpoint,
)
from taskloom.checkpoint.planning import CheckpointStorageReader, read_shards
from taskloom.checkpoint.together import write_together

WEIGHT = torch.arange(35.0).reshape(7, 5)
BIAS = torch.arange(3.0)


def rows(rank: int, world_size: int, tensor: torch.Tensor = WEIGHT, name: str = "w") -> Shard:
    """This rank's rows, as FSDP cuts them: the last ranks have fewer, or none."""
    each = -(-len(tensor) // world_size)
    start = min(rank * each, len(tensor))
    return Shard(name, tensor[start : start + each].clone(), tuple(tensor.shape), (start, 0))


def flat(rank: int, world_size: int, name: str = "w") -> Shard:
    """This rank's range of the flattened tensor, as ZeRO cuts it."""
    each = -(-WEIGHT.numel() // world_size)
    start = min(rank * each, WEIGHT.numel())
    return Shard.flat_range(name, WEIGHT.reshape(-1)[start : start + each].clone(), tuple(WEIGHT.shape), start)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("cut", [rows, flat], ids=["blocks", "ranges"])
def test_what_processes_hold_together_is_one_checkpoint_that_any_number_of_them_reads(tmp_path, world_size, cut):
    target = tmp_path / "step-1"

    def save(rank: int) -> int:
        content = CheckpointContent(
            model=[cut(rank, world_size), Shard.whole("b", BIAS)],
            optimizer=[cut(rank, world_size, name="w.exp_avg")],
            further={"average": [Shard.whole("b", BIAS + 1)]},
            state={"rank": rank},
            metrics={"loss": (0.5, 1)},
            step=1,
            run_id=f"of rank {rank}",
        )
        return write_together(target, content).step

    assert on_ranks(world_size, save, tmp_path) == [1] * world_size
    assert verify_checkpoint(target) == []
    assert latest_checkpoint(tmp_path)[0] == target
    with open_checkpoint(target, verify=True) as reader:
        assert torch.equal(reader.tensor("model", "w"), WEIGHT)
        assert torch.equal(reader.tensor("model", "b"), BIAS)
        assert torch.equal(reader.tensor("optimizer", "w.exp_avg"), WEIGHT)
        assert torch.equal(reader.tensor("average", "b"), BIAS + 1)
        assert reader.state == {"rank": 0}
        assert (reader.manifest.run_id, reader.manifest.metrics) == ("of rank 0", {"loss": (0.5, 1)})
        for rank in range(5):
            target_shard = rows(rank, 5)
            expected = target_shard.tensor.clone()
            target_shard.tensor.zero_()
            read_shards(reader, "model", [target_shard])
            assert torch.equal(target_shard.tensor, expected)
    assert sum(file.stat().st_size for file in target.glob("model/*.safetensors")) < 1024 + 4 * 38 * 2


def test_what_all_hold_is_written_once_and_evenly(tmp_path):
    target = tmp_path / "step-1"
    tensors = {f"layer{number}": torch.full((64,), float(number)) for number in range(8)}
    on_ranks(
        2,
        lambda rank: write_together(target, CheckpointContent([Shard.whole(*each) for each in tensors.items()])).step,
        tmp_path,
    )
    sizes = [file.stat().st_size for file in sorted(target.glob("model/*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) - min(sizes) <= 256
    with open_checkpoint(target) as reader:
        assert all(torch.equal(reader.tensor("model", name), tensor) for name, tensor in tensors.items())


def test_tensors_of_a_mesh_are_filled_by_torchs_own_load(tmp_path):
    """What FSDP2 and tensor parallelism keep: DTensors, of whatever placement."""
    target = tmp_path / "step-1"
    on_ranks(3, lambda rank: write_together(target, CheckpointContent([rows(rank, 3)])).step, tmp_path)

    def read(rank: int) -> bool:
        mesh = init_device_mesh("cpu", (2,))
        for placement in (Split(0), Split(1), Replicate()):
            empty: DTensor = distribute_tensor(torch.zeros_like(WEIGHT), mesh, [placement])
            with open_checkpoint(target) as reader:
                load({"w": empty}, storage_reader=CheckpointStorageReader(reader, "model"))
            if not torch.equal(empty.full_tensor(), WEIGHT):
                return False
        return True

    assert on_ranks(2, read, tmp_path) == [True, True]


@pytest.mark.holds("CK-12")
def test_a_process_on_a_node_that_does_not_see_the_folder_says_so_and_nothing_is_left(tmp_path):
    """There is no option to save on each node: one checkpoint is written where all of them see it."""

    def save(rank: int) -> None:
        if rank == 1:
            together.is_folder = lambda path: False  # another node; this process ends with the test
        write_together(tmp_path / "step-1", CheckpointContent([Shard.whole("b", BIAS)]))

    first, second = on_ranks(2, save, tmp_path)
    assert "Rank 1 could not save its part" in first
    assert "do not share this file system" in second
    assert "choose a folder that all nodes mount" in second
    assert not list(tmp_path.glob("*step-1*"))


def test_a_part_that_is_missing_is_an_error_on_every_process(tmp_path):
    def save(rank: int) -> None:
        content = CheckpointContent([rows(rank, 3)])  # the third of three never comes
        write_together(tmp_path / "step-1", content)

    for text in on_ranks(2, save, tmp_path):
        assert "CheckpointError: The model of" in text
    assert not list(tmp_path.glob("*step-1*"))


def test_a_process_that_fails_is_named_on_every_other(tmp_path):
    def save(rank: int) -> None:
        name = "w" if rank == 0 else "__metadata__"
        write_together(tmp_path / "step-1", CheckpointContent([Shard.whole(name, BIAS)]))

    first, second = on_ranks(2, save, tmp_path)
    assert "rank 1" in first
    assert "__metadata__" in first
    assert "__metadata__" in second
    assert not list(tmp_path.glob("*step-1*"))
