from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taskloom.checkpoint import CheckpointError, Shard, open_checkpoint, verify_checkpoint, write_checkpoint
from taskloom.checkpoint.files import to_json
from taskloom.checkpoint.manifest import Manifest, checksum

WEIGHTS = "model/model-00001-of-00001.safetensors"


@pytest.fixture
def saved(tmp_path, content):
    write_checkpoint(tmp_path / "c", content(), fsync=False)
    return tmp_path / "c"


def resign(folder, name, data: bytes) -> None:
    """Change a file as an attacker would, with sizes, hashes and checksum to match."""
    import xxhash

    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "xxh3_64": xxhash.xxh3_64_hexdigest(data)}
    manifest.pop("checksum")
    manifest["checksum"] = checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_everything_comes_back(saved, content):
    original = content()
    with open_checkpoint(saved, verify=True) as reader:
        assert {name: tensor.tolist() for name, tensor in reader.model_tensors()} == {
            s.name: s.tensor.tolist() for s in original.model
        }
        assert {name: tensor.tolist() for name, tensor in reader.optimizer_tensors()} == {
            s.name: s.tensor.tolist() for s in original.optimizer
        }
        assert reader.state["progress"] == {"steps": 10}
        assert torch.equal(reader.state["rng"]["torch"], torch.arange(16, dtype=torch.uint8))
        assert reader.config == "seed: 1\n"
        assert (reader.manifest.step, reader.manifest.epoch, reader.manifest.metrics) == (
            10,
            1,
            {"val/loss": (0.1, 10)},
        )
    assert verify_checkpoint(saved) == []


def test_tensors_are_mapped_and_writing_to_them_never_reaches_the_file(saved):
    reader = open_checkpoint(saved)
    tensor = reader.tensor("model", "net.weight")
    before = tensor.clone()
    with Path("/proc/self/maps").open() as maps:
        assert any(str(saved / WEIGHTS) in line for line in maps)
    tensor.zero_()
    reader.close()
    assert torch.equal(tensor, torch.zeros(4, 3))
    assert torch.equal(open_checkpoint(saved, verify=True).tensor("model", "net.weight"), before)


def test_pieces_of_awkward_splits_are_put_together(tmp_path, content):
    whole = torch.arange(35.0).view(5, 7)
    blocks = [
        Shard("w", whole[rows, columns], (5, 7), (rows.start, columns.start))
        for rows in (slice(0, 1), slice(1, 5))
        for columns in (slice(0, 3), slice(3, 4), slice(4, 7))
    ]
    flat = [
        Shard.flat_range("w.exp_avg", whole.view(-1)[start:stop], (5, 7), start)
        for start, stop in ((20, 35), (0, 9), (9, 9), (9, 20))
    ]
    write_checkpoint(
        tmp_path / "c",
        content(model=[*blocks, Shard.whole("scalar", torch.tensor(2.0))], optimizer=flat),
        largest_file=30,
    )
    reader = open_checkpoint(tmp_path / "c", verify=True)
    assert torch.equal(reader.tensor("model", "w"), whole)
    assert torch.equal(reader.tensor("optimizer", "w.exp_avg"), whole)
    assert torch.equal(reader.tensor("model", "scalar"), torch.tensor(2.0))


def test_unknown_tensor_names_the_nearest(saved):
    with pytest.raises(CheckpointError, match=r"has no model tensor 'net\.wieght'.*Did you mean 'net\.weight'"):
        open_checkpoint(saved).tensor("model", "net.wieght")


def test_not_there_names_what_is(saved):
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at .*step-9.*beside it there is c"):
        open_checkpoint(saved.parent / "step-9")
    with pytest.raises(CheckpointError, match=r"is a folder of checkpoints.*pass one of them, c, or ckpt_path='last'"):
        open_checkpoint(saved.parent)


def test_foreign_files_and_folders_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "epoch=1.ckpt")
    with pytest.raises(
        CheckpointError, match=r"epoch=1\.ckpt is a file, and a checkpoint is a folder.*unpickles nothing"
    ):
        open_checkpoint(tmp_path / "epoch=1.ckpt")
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint-10 is not a checkpoint: it has no manifest\.json"):
        open_checkpoint(tmp_path / "checkpoint-10")


@pytest.mark.parametrize("name", [WEIGHTS, "state.json", "config.yaml", "optimizer/optimizer.safetensors.index.json"])
def test_truncated_and_missing_files_are_named_on_opening(saved, name):
    data = (saved / name).read_bytes()
    (saved / name).write_bytes(data[:-1])
    with pytest.raises(
        CheckpointError,
        match=rf"{name} is truncated: it has {len(data) - 1} bytes, the manifest says {len(data)}.*Fix: use another",
    ):
        open_checkpoint(saved)
    (saved / name).write_bytes(data + b" ")
    with pytest.raises(CheckpointError, match=rf"{name} has grown"):
        open_checkpoint(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name} is missing"):
        open_checkpoint(saved)


def test_every_changed_byte_is_found_by_verification(saved):
    for name in Manifest.read(saved).files:
        data = bytearray((saved / name).read_bytes())
        for position in (0, len(data) // 2, len(data) - 1):
            changed = data.copy()
            changed[position] ^= 1
            (saved / name).write_bytes(changed)
            assert verify_checkpoint(saved) == [
                f"{saved / name} was damaged or changed: its xxh3-64 hash is not the manifest's."
            ]
            with pytest.raises(CheckpointError, match=r"damaged or changed.*Fix: use another checkpoint"):
                open_checkpoint(saved, verify=True)
        (saved / name).write_bytes(data)
    assert verify_checkpoint(saved) == []


def test_changed_json_is_found_without_verification_of_the_tensors(saved):
    data = (saved / "state.json").read_text()
    (saved / "state.json").write_text(data.replace("10", "99"))
    reader = open_checkpoint(saved)
    with pytest.raises(CheckpointError, match=r"state\.json was damaged or changed"):
        _ = reader.state


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "model/model.safetensors.index.json",
            {"weight_map": {"net.weight": "../../../etc/passwd"}},
            r"file name '\.\./.*' is not allowed",
        ),
        (
            "model/model.safetensors.index.json",
            {"weight_map": {"net.weight": "other.safetensors"}},
            r"does not list model/other\.safetensors",
        ),
        (
            "model/model.safetensors.index.json",
            {"weight_map": {"nothing": WEIGHTS.partition("/")[2]}},
            r"model-00001.*cannot be read",
        ),
        ("model/model.safetensors.index.json", {"weight_map": 3}, r"is not what was written"),
        (
            "model/model.safetensors.index.json",
            {
                "weight_map": {"net.weight": WEIGHTS.partition("/")[2]},
                "shards": {
                    "net.weight": {
                        "name": "w",
                        "global_shape": [10**15],
                        "offset": [0],
                        "shape": [10**15],
                        "flat": False,
                    }
                },
            },
            r"holds 'net\.weight' in the shape \(4, 3\), the index says",
        ),
        ("state.json", [1], r"does not hold a training state"),
        ("state.json", {"x": {"$call": ["os.system", "true"]}}, r"state\.json cannot be decoded.*'\$call' is unknown"),
    ],
)
def test_consistently_forged_files_are_refused(saved, name, change, message):
    resign(saved, name, to_json(change))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(saved, verify=True).check()
    assert len(verify_checkpoint(saved)) == 1


def test_forged_tensor_file_is_refused(saved):
    for data in (b"", b"\x80\x04\x95.", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"):
        resign(saved, WEIGHTS, data)
        with pytest.raises(CheckpointError, match=r"model-00001-of-00001\.safetensors cannot be read"):
            open_checkpoint(saved, verify=True).tensor("model", "net.weight")


def test_what_is_not_a_regular_file_is_not_read(saved):
    import os

    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "config.yaml").unlink()
    os.mkfifo(saved / "config.yaml")
    assert manifest["files"]["config.yaml"]["bytes"] == 8
    with pytest.raises(CheckpointError, match=r"config\.yaml is no regular file"):
        open_checkpoint(saved)
