from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from taskloom.checkpoint import (
    CheckpointError,
    Shard,
    latest_checkpoint,
    open_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from taskloom.checkpoint.files import HashedFile


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_layout_on_disk(tmp_path, content):
    manifest = write_checkpoint(tmp_path / "step-00000010", content())
    found = names(tmp_path / "step-00000010")
    assert found == [
        "config.yaml",
        "manifest.json",
        "model/model-00001-of-00001.safetensors",
        "model/model.safetensors.index.json",
        "optimizer/optimizer-00001-of-00001.safetensors",
        "optimizer/optimizer.safetensors.index.json",
        "state.json",
        "state.safetensors",
    ]
    assert sorted(manifest.files) == [name for name in found if name != "manifest.json"]
    data = json.loads((tmp_path / "step-00000010/manifest.json").read_text())
    assert (data["format"], data["run_id"], data["step"]) == ("taskloom-checkpoint", "run-a", 10)
    assert data["metrics"] == {"val/loss": {"value": 0.1, "step": 10}}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_whole_tensors_load_in_plain_safetensors_by_their_own_names(tmp_path, content):
    saved = content()
    write_checkpoint(tmp_path / "c", saved)
    index = json.loads((tmp_path / "c/model/model.safetensors.index.json").read_text())
    weights = load_file(tmp_path / "c/model/model-00001-of-00001.safetensors")
    assert index == {
        "metadata": {"total_size": 64},
        "weight_map": dict.fromkeys(["net.weight", "net.bias"], "model-00001-of-00001.safetensors"),
    }
    for shard in saved.model:
        assert torch.equal(weights[shard.name], shard.tensor)


def test_large_models_are_cut_into_files_that_the_index_finds(tmp_path, content):
    model = [Shard.whole(f"w{number}", torch.full((10,), float(number))) for number in range(5)]
    write_checkpoint(tmp_path / "c", content(model=model), largest_file=80)
    index = json.loads((tmp_path / "c/model/model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)
    ]
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "c/model" / file)[name], torch.full((10,), float(name[1])))
    assert dict(open_checkpoint(tmp_path / "c").model_tensors()).keys() == {shard.name for shard in model}


def test_nothing_on_the_disk_is_a_pickle(tmp_path, content):
    write_checkpoint(tmp_path / "c", content())
    for path in (tmp_path / "c").rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".yaml", ".safetensors")
            assert path.read_bytes()[:1] != b"\x80"
            assert path.read_bytes()[:2] != b"PK"


def test_weights_only_leaves_out_optimizer_and_training_state(tmp_path, content):
    state = {"progress": {"steps": 1}, "hyper_parameters": {"lr": 0.1}}
    manifest = write_checkpoint(tmp_path / "c", content(state=state), weights_only=True)
    assert manifest.weights_only
    assert not any(name.startswith("optimizer") for name in manifest.files)
    reader = open_checkpoint(tmp_path / "c")
    assert reader.state == {"hyper_parameters": {"lr": 0.1}}
    with pytest.raises(CheckpointError, match=r"weights_only=True and has no optimizer state"):
        reader.optimizer_names()


def test_tied_weights_are_stored_once(tmp_path, content):
    tied = torch.randn(50, 50)
    model = [Shard.whole("embed", tied), Shard.whole("head", tied)]
    write_checkpoint(tmp_path / "c", content(model=model, aliases={"head": "embed"}))
    assert (tmp_path / "c/model/model-00001-of-00001.safetensors").stat().st_size < 1.2 * tied.numel() * 4
    reader = open_checkpoint(tmp_path / "c", verify=True)
    assert reader.model_names() == ["embed", "head"]
    assert torch.equal(reader.tensor("model", "head"), tied)
    assert [name for name, tensor in reader.model_tensors() if torch.equal(tensor, tied)] == ["embed", "head"]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            [Shard.whole("w", torch.ones(2)), Shard.whole("w", torch.ones(2))],
            r"The model cannot be saved: 'w' is stored twice",
        ),
        ([Shard("w", torch.ones(2), (4,), (0,))], r"'w' is not complete: its pieces hold 2 of 4 elements"),
        ([Shard("w", torch.ones(2), (4,), (0,)), Shard.whole("w", torch.ones(4))], r"stored both whole and in pieces"),
        (
            [Shard("w", torch.ones(2), (4,), (0,)), Shard("w", torch.ones(2).half(), (4,), (2,))],
            r"pieces of 'w' have different dtypes",
        ),
        ([Shard.whole("w", torch.ones(2, dtype=torch.complex64))], r"'w' cannot be saved.*view_as_real"),
    ],
)
def test_bad_shards_are_refused_and_leave_nothing(tmp_path, content, model, message):
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(tmp_path / "c", content(model=model))
    assert list(tmp_path.iterdir()) == []


def test_non_data_is_refused_by_field_before_anything_is_written(tmp_path, content, killed_after):
    def save():
        with pytest.raises(CheckpointError, match=r"state\.hyper_parameters\.act is not data.*ignore=\['act'\]"):
            write_checkpoint(tmp_path / "c", content(state={"hyper_parameters": {"act": torch.nn.ReLU()}}))

    assert killed_after(None, save) == 0


def test_older_checkpoint_is_replaced_and_anything_else_is_not(tmp_path, content):
    write_checkpoint(tmp_path / "c", content(1))
    write_checkpoint(tmp_path / "c", content(2))
    assert open_checkpoint(tmp_path / "c", verify=True).manifest.step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").write_text("mine")
    (tmp_path / "app").mkdir()
    (tmp_path / "app/manifest.json").write_text('{"name": "a web app"}')
    (tmp_path / "link").symlink_to(tmp_path / "c")
    for name in ("file", "folder", "app", "link"):
        with pytest.raises(CheckpointError, match=rf"{name} exists and is not a checkpoint"):
            write_checkpoint(tmp_path / name, content(3))
    assert (tmp_path / "folder/thesis.tex").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "empty", content(3))
    assert verify_checkpoint(tmp_path / "empty") == []


def test_read_only_folder_names_the_remedy(unwritable, content):
    with pytest.raises(
        CheckpointError, match=r"could not be written.*Permission denied.*Fix: make .*another with run_dir"
    ):
        write_checkpoint(unwritable / "c", content())


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path, content, monkeypatch):
    write_checkpoint(tmp_path / "c", content(1))

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(HashedFile, "write", full)
        with pytest.raises(CheckpointError, match=r"No space left.*Fix: free space"):
            write_checkpoint(tmp_path / "c", content(2))
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert open_checkpoint(tmp_path / "c", verify=True).manifest.step == 1


def test_content_that_does_not_read_back_is_never_put_in_place(tmp_path, content, monkeypatch):
    write_checkpoint(tmp_path / "c", content(1))
    original = HashedFile.write

    def damaging(self, data):
        original(self, data)
        if len(memoryview(data)) == 48:  # the weight
            self._file.flush()
            os.pwrite(self._file.fileno(), b"\xff", os.fstat(self._file.fileno()).st_size - 1)

    with monkeypatch.context() as patch:
        patch.setattr(HashedFile, "write", damaging)
        with pytest.raises(CheckpointError, match=r"was not saved.*does not read back.*xxh3-64 hash"):
            write_checkpoint(tmp_path / "c", content(2))
    assert open_checkpoint(tmp_path / "c", verify=True).manifest.step == 1


def test_every_file_and_folder_is_synced_before_the_rename(tmp_path, content, monkeypatch):
    events: list[str] = []
    original_sync, original_rename = os.fsync, os.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(str(Path(f"/proc/self/fd/{fd}").readlink())), original_sync(fd))
    )
    monkeypatch.setattr(os, "rename", lambda old, new: (events.append("rename"), original_rename(old, new)))
    write_checkpoint(tmp_path / "c", content())
    staged, rename = events[: events.index("rename")], events.index("rename")
    relative = [path.partition(".c.writing-")[2].partition("/")[2] for path in staged]
    assert sorted(relative) == sorted(["", "model", "optimizer", *names(tmp_path / "c")])
    assert relative[-2:] == ["manifest.json", ""]
    assert events[rename + 1 :] == [str(tmp_path)]
    events.clear()
    write_checkpoint(tmp_path / "d", content(), fsync=False)
    assert events == ["rename"]


def test_killed_at_any_change_to_the_disk_leaves_the_old_or_the_new_checkpoint(tmp_path, content, killed_after):
    write_checkpoint(tmp_path / "step-00000001", content(1))
    total = killed_after(None, lambda: write_checkpoint(tmp_path / "reference", content(2)))
    assert total > 20
    for survives in range(total):
        folder = tmp_path / f"kill-{survives}"
        write_checkpoint(folder / "step-00000001", content(1), fsync=False)
        killed_after(survives, lambda folder=folder: write_checkpoint(folder / "step-00000002", content(2)))
        found, skipped = latest_checkpoint(folder)
        assert found is not None
        step = open_checkpoint(found, verify=True).manifest.step
        assert step in (1, 2)
        assert step == 2 or not skipped or "did not finish" in skipped[0]
        write_checkpoint(folder / "step-00000002", content(2))
        assert latest_checkpoint(folder)[0] == folder / "step-00000002"


def test_killed_while_replacing_a_checkpoint_leaves_one_of_the_two(tmp_path, content, killed_after):
    def replace(folder):
        write_checkpoint(folder / "step-00000001", content(1, seed=2))

    write_checkpoint(tmp_path / "reference/step-00000001", content(1))
    total = killed_after(None, lambda: replace(tmp_path / "reference"))
    found_aside = 0
    for survives in range(total):
        folder = tmp_path / f"kill-{survives}"
        write_checkpoint(folder / "step-00000001", content(1), fsync=False)
        killed_after(survives, lambda folder=folder: replace(folder))
        found, _ = latest_checkpoint(folder)
        assert found is not None, f"nothing is left after {survives} changes"
        assert verify_checkpoint(found) == []
        found_aside += found.name.startswith(".")
    assert found_aside == 1  # between the two renames
