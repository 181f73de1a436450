"""`task ckpt` on a store: the same commands, with a URL for a path."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoint.contents import make_content
from cli.command import Run
from safetensors.torch import load, save_file
from stores import Bucket, MemoryStore
from torch import Tensor

from taskloom.checkpoint import (
    CheckpointKeeper,
    CheckpointPolicy,
    compare_checkpoints,
    export_weights,
    import_weights,
    latest_checkpoint,
    merge_checkpoint,
    open_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from taskloom.checkpoint.files import put_bytes
from taskloom.checkpoint.place import as_path, files_below, is_file, read_bytes

RUN = "memory://runs/a"


def save(*steps: int) -> str:
    folder = f"{RUN}/checkpoints"
    keeper = CheckpointKeeper(folder, CheckpointPolicy(monitor="val/loss", keep_last=-1, fsync=False), "run-a")
    for step in steps:
        keeper.save(make_content(step))
    return folder


def names(place: str) -> list[str]:
    folder = as_path(place)
    return sorted(str(file.relative_to(folder)) for file in files_below(folder))


def exported(place: str) -> dict[str, Tensor]:
    """Read an export as the convention has it: the single file, else what the index names."""
    folder = as_path(place)
    if is_file(folder / "model.safetensors"):
        return load(read_bytes(folder / "model.safetensors"))
    weight_map = json.loads(read_bytes(folder / "model.safetensors.index.json"))["weight_map"]
    return {name: load(read_bytes(folder / file))[name] for name, file in weight_map.items()}


@pytest.mark.usefixtures("memory")
def test_every_command_takes_a_url(run: Run, tmp_path: Path) -> None:
    folder = save(10, 20, 30)
    assert "step-00000030" in run(["ckpt", "ls", "memory://runs"]).out
    assert "  step 30, epoch 1, " in run(["ckpt", "show", RUN]).out
    assert run(["ckpt", "verify", RUN]).out.endswith("3 checkpoints: all good\n")
    assert run(["ckpt", "diff", f"{folder}/step-00000010", f"{folder}/step-00000020"]).code == 1
    assert run(["ckpt", "export", RUN, "memory://out", "--max_shard_size", "40"]).code == 0
    assert run(["ckpt", "export", RUN, str(tmp_path / "local.safetensors")]).code == 0
    with open_checkpoint(f"{folder}/step-00000030") as reader:
        expected = dict(reader.model_tensors())
    for found in (exported("memory://out"), load((tmp_path / "local.safetensors").read_bytes())):
        assert set(found) == set(expected)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert run(["ckpt", "merge", RUN, "memory://merged"]).code == 0
    assert compare_checkpoints("memory://merged", f"{folder}/step-00000030").is_empty
    assert "is of format 1 already" in run(["ckpt", "upgrade", RUN]).out
    assert run(["ckpt", "import", "memory://out", "memory://imported"]).code == 0
    assert verify_checkpoint("memory://imported") == []

    assert run(["ckpt", "pin", f"{folder}/step-00000010"]).code == 0
    put_bytes(as_path(folder) / ".step-00000040.writing-00000000/model/part", b"123")
    outcome = run(["ckpt", "prune", RUN, "--keep_last", "1", "--leftovers", "now", "--yes"])
    assert outcome.code == 0, outcome.err
    left = {name.partition("/")[0] for name in names(folder)}
    assert left == {"best.json", "kept.json", "last.json", "pinned.json", "step-00000010", "step-00000030"}


@pytest.mark.usefixtures("memory")
def test_damage_and_absence_are_told(run: Run) -> None:
    folder = save(10)
    file = as_path(folder) / "step-00000010/state.json"
    put_bytes(file, read_bytes(file)[:-1])
    assert "state.json is truncated" in run(["ckpt", "ls", RUN]).out
    assert run(["ckpt", "verify", RUN]).code == 1
    assert "There are no checkpoints in memory://nothing" in run(["ckpt", "ls", "memory://nothing"]).err


def test_a_kill_at_any_upload_leaves_the_old_export_or_the_new_one(memory: MemoryStore, tmp_path: Path) -> None:
    """From one file to several, because a file that is half uploaded can be seen in memory, unlike in real stores."""
    for step in (1, 2):
        write_checkpoint(tmp_path / f"step-{step}", make_content(step), fsync=False)
    first = partial(export_weights, tmp_path / "step-1")
    second = partial(export_weights, tmp_path / "step-2", max_shard_size=40, overwrite=True)
    first("memory://old")
    first("memory://new")
    changes = memory.killed_after(None, partial(second, "memory://new"))
    assert changes >= 5
    old, new = (exported(f"memory://{name}")["net.weight"] for name in ("old", "new"))
    assert not torch.equal(old, new)
    for survives in range(changes):
        out = f"memory://{survives}"
        first(out)
        memory.killed_after(survives, partial(second, out))
        found = exported(out)["net.weight"]
        assert torch.equal(found, old) or torch.equal(found, new)


def test_a_kill_while_merging_leaves_nothing_that_looks_like_a_checkpoint(memory: MemoryStore, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-1", make_content(), fsync=False)
    changes = memory.killed_after(None, partial(merge_checkpoint, tmp_path / "step-1", "memory://whole/step-1"))
    for survives in range(changes):
        target = f"memory://{survives}/step-1"
        memory.killed_after(survives, partial(merge_checkpoint, tmp_path / "step-1", target))
        found, _ = latest_checkpoint(f"memory://{survives}")
        assert found is None or verify_checkpoint(found) == []


def test_export_to_s3_and_import_from_it(bucket: Bucket, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-1", make_content(), fsync=False)
    out = as_path(f"{bucket.url}/weights", bucket.options)
    made = export_weights(tmp_path / "step-1", out, max_shard_size=40)
    assert bucket.names() == [f"weights/{path.name}" for path in [*made.files, made.index]]
    import_weights(out, tmp_path / "back")
    with open_checkpoint(tmp_path / "step-1") as one, open_checkpoint(tmp_path / "back") as other:
        for name, tensor in one.model_tensors():
            assert torch.equal(other.tensor("model", name), tensor)
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    missing = as_path(f"{bucket.url}-none/weights", bucket.options)
    with pytest.raises(Exception, match=r"could not be written to .*bucket that does not exist"):
        export_weights(tmp_path / "step-1", missing)
