"""Older formats are read in memory and rewritten on demand; pieces are made whole; nothing is lost on the way."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from checkpoint.contents import make_content
from safetensors.torch import load_file

from taskloom.checkpoint import (
    CheckpointError,
    Shard,
    latest_checkpoint,
    open_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from taskloom.checkpoint.difference import compare_checkpoints
from taskloom.checkpoint.manifest import MANIFEST, VERSION, Manifest, checksum
from taskloom.checkpoint.rewrite import merge_checkpoint, upgrade_checkpoint
from taskloom.checkpoint.upgrade import STEPS, UpgradeStep, steps_between


def present_manifest(fields: dict[str, Any]) -> dict[str, Any]:
    """From the made-up version 0, which counted `iterations` and knew no tied weights."""
    return {**fields, "step": fields["iterations"], "aliases": {}}


def present_file(name: str, content: Any) -> Any:
    """In the made-up version 0, the index said `files`, and the counters of the state were called `counters`."""
    if name.endswith(".index.json"):
        return {"metadata": content["metadata"], "weight_map": content["files"]}
    return {("progress" if key == "counters" else key): value for key, value in content.items()}


def as_version_0(path: Path) -> Path:
    """Turn a checkpoint into one of the made-up older format."""
    manifest = json.loads((path / MANIFEST).read_text())
    for name in manifest["files"]:
        if name.endswith(".json"):
            content = json.loads((path / name).read_text())
            if "weight_map" in content:
                content = {"metadata": content["metadata"], "files": content["weight_map"]}
            else:
                content = {("counters" if key == "progress" else key): value for key, value in content.items()}
            data = json.dumps(content).encode()
            (path / name).write_bytes(data)
            manifest["files"][name] = {"bytes": len(data), "xxh3_64": xxhash.xxh3_64_hexdigest(data)}
    manifest["iterations"] = manifest.pop("step")
    del manifest["aliases"], manifest["checksum"]
    manifest["version"] = 0
    (path / MANIFEST).write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))
    return path


@pytest.fixture
def step_from_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS, 0, UpgradeStep("counters got their present names", present_manifest, present_file))


def both(tmp_path: Path) -> tuple[Path, Path]:
    """The same content in the present format and in the older one."""
    new, old = tmp_path / "new/step-00000010", tmp_path / "old/step-00000010"
    for path in (new, old):
        write_checkpoint(path, make_content(), fsync=False)
    return new, as_version_0(old)


@pytest.mark.holds("CK-27")
@pytest.mark.usefixtures("step_from_0")
def test_an_older_format_is_read_like_the_present_one(tmp_path: Path) -> None:
    new, old = both(tmp_path)
    assert verify_checkpoint(old) == []
    assert compare_checkpoints(new, old).is_empty
    assert latest_checkpoint(old.parent) == (old, [])
    manifest = Manifest.read(old)
    assert (manifest.step, manifest.version, manifest.stored_version) == (10, VERSION, 0)


@pytest.mark.holds("CK-27", "CL-09")
@pytest.mark.usefixtures("step_from_0")
def test_an_older_format_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, old = both(tmp_path)
    saved_at = Manifest.read(old).saved_at
    assert upgrade_checkpoint(old) == 0
    monkeypatch.delitem(STEPS, 0)  # a reader without the step needs none now
    assert verify_checkpoint(old) == []
    assert Manifest.read(old).stored_version == VERSION
    assert Manifest.read(old).saved_at == saved_at
    assert compare_checkpoints(new, old).is_empty
    assert [path.name for path in old.parent.iterdir()] == [old.name]
    before = (old / MANIFEST).read_bytes()
    assert upgrade_checkpoint(old) is None
    assert (old / MANIFEST).read_bytes() == before


@pytest.mark.holds("CK-27")
@pytest.mark.usefixtures("step_from_0")
def test_a_kill_while_rewriting_leaves_a_good_checkpoint(tmp_path: Path, killed_after: Any) -> None:
    _, first = both(tmp_path)
    changes = killed_after(None, partial(upgrade_checkpoint, first))
    assert changes > 15
    for survives in range(changes):
        path = tmp_path / f"{survives}/step-00000010"
        write_checkpoint(path, make_content(), fsync=False)
        as_version_0(path)
        killed_after(survives, partial(upgrade_checkpoint, path))
        found, _ = latest_checkpoint(path.parent)
        assert found is not None
        with open_checkpoint(found, verify=True) as reader:
            assert reader.state["progress"] == {"steps": 10}


@pytest.mark.holds("CK-27")
def test_a_format_without_a_step_is_refused(tmp_path: Path) -> None:
    _, old = both(tmp_path)
    with pytest.raises(CheckpointError, match=r"manifest\.json is of format 0, which this taskloom cannot read"):
        open_checkpoint(old)
    with pytest.raises(CheckpointError, match="is of format 0"):
        upgrade_checkpoint(old)
    with pytest.raises(LookupError, match="no step from version -5"):
        steps_between(-5, VERSION)


@pytest.mark.holds("CK-27")
def test_a_newer_format_is_refused_with_the_remedy(tmp_path: Path) -> None:
    new, _ = both(tmp_path)
    manifest = json.loads((new / MANIFEST).read_text())
    manifest["version"] = VERSION + 1
    (new / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=rf"is of format {VERSION + 1}.*up to {VERSION}.*pip install -U taskloom"):
        upgrade_checkpoint(new)


@pytest.mark.usefixtures("step_from_0")
def test_an_older_format_that_is_damaged_is_told_and_left_alone(tmp_path: Path) -> None:
    _, old = both(tmp_path)
    file = old / "optimizer/optimizer-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"optimizer-00001-of-00001\.safetensors was damaged"):
        upgrade_checkpoint(old)
    assert Manifest.read(old).stored_version == 0
    assert [path.name for path in old.parent.iterdir()] == [old.name]

    (old / "state.json").write_text("[]")
    manifest = json.loads((old / MANIFEST).read_text())
    manifest["files"]["state.json"] = {"bytes": 2, "xxh3_64": xxhash.xxh3_64_hexdigest(b"[]")}
    manifest.pop("checksum")
    (old / MANIFEST).write_text(json.dumps({**manifest, "checksum": checksum(manifest)}))
    with open_checkpoint(old) as reader, pytest.raises(CheckpointError, match=r"state\.json is not what was written"):
        _ = reader.state


def in_pieces() -> dict[str, Any]:
    """The content of a run on three ranks: blocks, flat ranges, moments and averages."""
    weight, bias = torch.arange(12.0).view(4, 3), torch.arange(4.0)
    rows = ((0, 1), (1, 2), (2, 4))
    flat = ((0, 5), (5, 6), (6, 12))
    return {
        "model": [*(Shard("net.weight", weight[a:b], (4, 3), (a, 0)) for a, b in rows), Shard.whole("net.bias", bias)],
        "optimizer": [Shard.flat_range("net.weight.exp_avg", (-weight).view(-1)[a:b], (4, 3), a) for a, b in flat],
        "further": {"average": [Shard("net.weight", weight[a:b] * 2, (4, 3), (a, 0)) for a, b in rows]},
        "aliases": {"head.bias": "net.bias"},
    }


@pytest.mark.holds("CL-09", "CK-14")
def test_pieces_are_made_whole_and_nothing_else_changes(tmp_path: Path) -> None:
    path, out = tmp_path / "step-00000010", tmp_path / "whole"
    write_checkpoint(path, make_content(**in_pieces()), fsync=False, largest_file=30)
    made = merge_checkpoint(path, out)
    assert compare_checkpoints(path, out).is_empty
    assert verify_checkpoint(out) == []
    assert (out / "config.yaml").read_bytes() == (path / "config.yaml").read_bytes()
    old = Manifest.read(path)
    assert (made.run_id, made.saved_at, made.step, made.epoch) == (old.run_id, old.saved_at, old.step, old.epoch)
    assert made.save_id != old.save_id
    for kind, expected in (("model", {"net.weight", "net.bias"}), ("optimizer", {"net.weight.exp_avg"})):
        assert set(load_file(out / f"{kind}/{kind}-00001-of-00001.safetensors")) == expected
        assert "shards" not in json.loads((out / f"{kind}/{kind}.safetensors.index.json").read_text())
    with open_checkpoint(out) as reader:
        assert torch.equal(reader.tensor("model", "head.bias"), torch.arange(4.0))
        assert torch.equal(reader.tensor("average", "net.weight"), torch.arange(12.0).view(4, 3) * 2)


@pytest.mark.holds("CL-09")
def test_a_merge_replaces_nothing_and_takes_no_damaged_checkpoint(tmp_path: Path, killed_after: Any) -> None:
    path = tmp_path / "step-00000010"
    write_checkpoint(path, make_content(**in_pieces()), fsync=False)
    with pytest.raises(CheckpointError, match="step-00000010 exists"):
        merge_checkpoint(path, path)
    changes = killed_after(None, partial(merge_checkpoint, path, tmp_path / "whole"))
    for survives in range(0, changes, 3):
        killed_after(survives, partial(merge_checkpoint, path, tmp_path / f"{survives}"))
        assert not (tmp_path / f"{survives}").exists() or verify_checkpoint(tmp_path / f"{survives}") == []
    (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        merge_checkpoint(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_weights_without_training_state_are_merged_too(tmp_path: Path) -> None:
    fields = in_pieces()
    write_checkpoint(tmp_path / "step-1", make_content(**fields), fsync=False, weights_only=True)
    assert merge_checkpoint(tmp_path / "step-1", tmp_path / "whole").weights_only
    assert compare_checkpoints(tmp_path / "step-1", tmp_path / "whole").is_empty
