"""Checkpoints in stores: in memory, where every change can be cut off, and on an S3 server of this machine."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.contents import make_content
from checkpoint.ranks import on_ranks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as safetensors_bytes
from stores import Bucket, MemoryStore

from taskloom.checkpoint import (
    CheckpointError,
    CheckpointKeeper,
    CheckpointPolicy,
    Shard,
    best_checkpoint,
    latest_checkpoint,
    open_checkpoint,
    verify_checkpoint,
    write_checkpoint,
)
from taskloom.checkpoint import remote_file as remote_file_module
from taskloom.checkpoint.files import HashedFile, claim_file, put_bytes, replace_json
from taskloom.checkpoint.manifest import MANIFEST, Manifest
from taskloom.checkpoint.place import Place, StoreError, as_path, files_below, has_folders, is_file, read_bytes
from taskloom.checkpoint.remote_file import RemoteTensorFile
from taskloom.checkpoint.staging import mark_name, stands_for_its_target
from taskloom.checkpoint.tensor_file import raw_bytes
from taskloom.checkpoint.together import write_together

ROOT = "memory://runs/a/checkpoints"


def names(folder: str | Place) -> set[str]:
    return {str(path).rpartition("//")[2] for path in files_below(as_path(folder))}


def step_of(path: Place | None) -> int:
    assert path is not None
    assert verify_checkpoint(path) == []
    return Manifest.read(path).step


def save(folder: str | Place, *steps: int, run_id: str = "run-a", **policy: Any) -> CheckpointKeeper:
    keeper = CheckpointKeeper(folder, CheckpointPolicy(**{"fsync": False, **policy}), run_id)
    for step in steps:
        keeper.save(make_content(step, run_id))
    return keeper


# Writing and reading --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-19")
def test_a_checkpoint_is_written_verified_and_read_in_a_store() -> None:
    path = f"{ROOT}/step-00000010/"
    manifest = write_checkpoint(path, make_content())
    assert verify_checkpoint(path) == []
    assert latest_checkpoint(ROOT) == (as_path(path), [])
    assert not any(".unfinished" in name for name in names(ROOT))
    with open_checkpoint(path, verify=True) as reader:
        assert reader.manifest == manifest
        assert reader.config == "seed: 1\n"
        assert reader.state["progress"] == {"steps": 10}
        assert torch.equal(reader.state["rng"]["torch"], torch.arange(16, dtype=torch.uint8))
        content = make_content()
        for shard in content.model:
            assert torch.equal(reader.tensor("model", shard.name), shard.tensor)
        for shard in content.optimizer:
            assert torch.equal(reader.tensor("optimizer", shard.name), shard.tensor)


@pytest.mark.holds("CK-19")
def test_the_same_on_s3(bucket: Bucket) -> None:
    root = as_path(f"{bucket.url}/ünï code/a b", bucket.options)
    path = root / "step-00000010"
    write_checkpoint(path, make_content())
    assert latest_checkpoint(root) == (path, [])
    assert {name.rpartition("step-00000010/")[2] for name in bucket.names()} == {
        "manifest.json",
        "state.json",
        "state.safetensors",
        "config.yaml",
        "model/model-00001-of-00001.safetensors",
        "model/model.safetensors.index.json",
        "optimizer/optimizer-00001-of-00001.safetensors",
        "optimizer/optimizer.safetensors.index.json",
    }
    write_checkpoint(path, make_content(seed=3))  # in place of it
    with open_checkpoint(path, verify=True) as reader:
        assert torch.equal(reader.tensor("model", "net.bias"), list(make_content(seed=3).model)[1].tensor)
    assert len(bucket.names()) == 8


@pytest.mark.holds("CK-19")
def test_retention_on_s3(bucket: Bucket) -> None:
    root = as_path(f"{bucket.url}/run", bucket.options)
    keeper = save(root, 1, 2, 3, monitor="val/loss", mode="max", keep_last=1, save_top_k=1)
    assert {path.name for path in keeper.kept} == {"step-00000001", "step-00000003"}
    assert {name.split("/")[1] for name in bucket.names()} == {
        "step-00000001",
        "step-00000003",
        "last.json",
        "best.json",
        "kept.json",
    }
    assert best_checkpoint(root).name == "step-00000001"
    assert json.loads(read_bytes(root / "last.json"))["checkpoint"] == "step-00000003"


@pytest.mark.holds("CK-12", "CK-19")
def test_processes_write_one_checkpoint_into_a_store(bucket: Bucket, tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(4, 3)

    def save_rows(rank: int) -> int:
        rows = Shard("w", whole[2 * rank : 2 * rank + 2].clone(), (4, 3), (2 * rank, 0))
        content = make_content(1, model=[rows], optimizer=[], aliases={})
        return write_together(as_path(f"{bucket.url}/step-1", bucket.options), content).step

    assert on_ranks(2, save_rows, tmp_path) == [1, 1]
    with open_checkpoint(as_path(f"{bucket.url}/step-1", bucket.options), verify=True) as reader:
        assert torch.equal(reader.tensor("model", "w"), whole)
    assert len([name for name in bucket.names() if name.endswith(".safetensors") and "model/" in name]) == 2


@pytest.mark.holds("CK-19")
def test_a_server_of_files_has_folders_and_may_be_unable_to_copy(tmp_path: Path) -> None:
    """What `sftp://` and its like do, told by a disk behind a protocol of its own."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem
    from upath import UPath
    from upath.registry import register_implementation

    class Server(LocalFileSystem):
        protocol = "testserver"

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return "/" + str(path).removeprefix("testserver://").strip("/")

        def cp_file(self, *arguments: Any, **keywords: Any) -> None:
            raise NotImplementedError

    fsspec.register_implementation("testserver", Server, clobber=True)
    register_implementation("testserver", type("ServerPath", (UPath,), {}), clobber=True)
    root = as_path(f"testserver:/{tmp_path}/a b/checkpoints")
    assert has_folders(root)
    save(root, 1, 2, keep_last=1)
    CheckpointKeeper(root, CheckpointPolicy(), "run-a").save(make_content(2, seed=5))
    found, skipped = latest_checkpoint(root)
    assert (step_of(found), _weights(found), skipped) == (2, 5, [])
    folder = tmp_path / "a b" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["kept.json", "last.json", "step-00000002"]


@pytest.mark.usefixtures("memory")
def test_what_is_no_checkpoint_is_not_replaced() -> None:
    put_bytes(as_path("memory://notes/diary.txt"), b"dear diary")
    with pytest.raises(CheckpointError, match=r"memory://notes exists and is not a checkpoint that may be replaced"):
        write_checkpoint("memory://notes", make_content())
    with pytest.raises(CheckpointError, match=r"memory://notes/diary.txt exists and is not a checkpoint folder"):
        write_checkpoint("memory://notes/diary.txt", make_content())
    assert read_bytes(as_path("memory://notes/diary.txt")) == b"dear diary"


@pytest.mark.usefixtures("memory")
def test_what_is_wrong_is_told_with_its_address() -> None:
    save(ROOT, 1)
    with pytest.raises(CheckpointError, match=r"no checkpoint at memory://runs/a/checkpoints/step-9.*step-00000001"):
        open_checkpoint(f"{ROOT}/step-9")
    with pytest.raises(CheckpointError, match=r"is a folder of checkpoints.*step-00000001"):
        open_checkpoint(ROOT)
    put_bytes(as_path("memory://x.ckpt"), b"pickle")
    with pytest.raises(CheckpointError, match=r"memory://x.ckpt is a file, and a checkpoint is a folder"):
        open_checkpoint("memory://x.ckpt")


def test_a_store_that_cannot_be_reached_is_not_an_empty_one(s3_options: dict[str, Any]) -> None:
    nowhere = {**s3_options, "endpoint_url": "http://127.0.0.1:9", "config_kwargs": {"retries": {"max_attempts": 1}}}
    root = as_path("s3://runs/a", nowhere)
    with pytest.raises(StoreError, match=r"s3://runs/a could not be reached.*Fix: check the network"):
        latest_checkpoint(root)
    with pytest.raises(CheckpointError, match=r"step-1 could not be written.*could not be reached.*network"):
        write_checkpoint(root / "step-1", make_content())


def test_a_bucket_that_is_not_there_is_told(s3_options: dict[str, Any]) -> None:
    root = as_path("s3://no-such-bucket/runs", s3_options)
    with pytest.raises(CheckpointError, match=r"in a bucket that does not exist.*make the bucket first"):
        write_checkpoint(root / "step-1", make_content())
    with pytest.raises(FileNotFoundError, match=r"in a bucket that does not exist"):
        latest_checkpoint(root)


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("R1", "CK-19")
@pytest.mark.parametrize("what", ["gone", "short", "changed"])
@pytest.mark.parametrize(
    "name", ["manifest.json", "state.json", "config.yaml", "model/model-00001-of-00001.safetensors"]
)
def test_the_search_walks_back_over_damage(name: str, what: str) -> None:
    save(ROOT, 1, 2, keep_last=-1)
    path = as_path(ROOT) / "step-00000002" / name
    data = bytearray(read_bytes(path))
    if what == "gone":
        remote: Any = path
        remote.fs.rm_file(remote.path)
    else:
        data[len(data) // 2] ^= 1
        put_bytes(path, bytes(data[:-1] if what == "short" else data))
    found, skipped = latest_checkpoint(ROOT)
    assert step_of(found) == 1
    assert len(skipped) == 1
    assert "step-00000002" in skipped[0]


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-19")
def test_a_damaged_best_names_the_next_best() -> None:
    save(ROOT, 1, 2, 3, monitor="val/loss", save_top_k=-1)
    path = as_path(ROOT) / "step-00000003" / "state.json"
    put_bytes(path, read_bytes(path)[:-1] + b" ")
    with pytest.raises(
        CheckpointError, match=r"step-00000003 is damaged.*state.json.*next best.*step-00000002 \(0.5\)"
    ):
        best_checkpoint(ROOT)
    remote: Any = path.parent
    remote.fs.rm(remote.path, recursive=True)
    with pytest.raises(CheckpointError, match=r"names step-00000003, which is gone.*next best.*step-00000002"):
        best_checkpoint(ROOT)


# Kills ----------------------------------------------------------------------------------------------------------------


def first() -> None:
    save(ROOT, 1, keep_last=1)


def replaced() -> None:
    """Save the same step again with other weights, as a resumed run does."""
    keeper = CheckpointKeeper(ROOT, CheckpointPolicy(fsync=False), "run-a")
    keeper.save(make_content(1, seed=7))


def pruned() -> None:
    """Save the next step and delete the one before it."""
    keeper = save(ROOT, keep_last=1)
    keeper.load_state_dict({"monitor": None, "mode": "min", "entries": [["step-00000001", 1, None]]})
    keeper.save(make_content(2))


@pytest.mark.holds("R1", "R12", "CK-19")
@pytest.mark.parametrize("action", [replaced, pruned])
def test_a_kill_at_any_change_of_a_store_leaves_the_old_checkpoint_or_the_new(
    memory: MemoryStore, action: Callable[[], None]
) -> None:
    first()
    before = dict(_contents())
    total = memory.killed_after(None, action)
    assert total > 15
    seen = set()
    for survives in range(total):
        _restore(before)
        memory.killed_after(survives, action)
        found, _ = latest_checkpoint(ROOT)
        seen.add((step_of(found), _weights(found)))
        # the process that comes after it tidies up and goes on
        action()
        found, skipped = latest_checkpoint(ROOT)
        assert skipped == []
        assert (step_of(found), _weights(found)) == (1, 7) if action is replaced else (2, 2)
        assert not [name for name in names(ROOT) if ".unfinished" in name or "/." in name]
    assert len(seen) == 2  # the old one and the new one were both found at some point


@pytest.mark.holds("R1", "CK-19")
def test_the_only_whole_copy_survives_a_second_kill(memory: MemoryStore) -> None:
    """Killed while a checkpoint is replaced, and again by whatever the next process does first."""
    first()
    before = dict(_contents())
    standing = []
    for survives in range(memory.killed_after(None, replaced)):
        _restore(before)
        memory.killed_after(survives, replaced)
        found, _ = latest_checkpoint(ROOT)
        if found is not None and found.name.startswith("."):
            standing.append(dict(_contents()))
    assert len(standing) > 5
    for contents in (standing[0], standing[-1]):
        _restore(contents)
        for survives in range(0, memory.killed_after(None, replaced), 2):
            _restore(contents)
            memory.killed_after(survives, replaced)
            found, _ = latest_checkpoint(ROOT)
            assert (step_of(found), _weights(found)) == (1, 7)


@pytest.mark.holds("R1", "CK-19")
@pytest.mark.parametrize("replaces", [False, True])
def test_what_does_not_read_back_never_appears(
    memory: MemoryStore, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    first()
    put = MemoryFileSystem.pipe_file

    def damaging(self: Any, name: str, value: bytes, **keywords: Any) -> None:
        put(self, name, value.replace(b"steps", b"stepz") if name.endswith("state.json") else value, **keywords)

    keeper = CheckpointKeeper(ROOT, CheckpointPolicy(), "run-a")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", damaging)
        with pytest.raises(CheckpointError, match=r"was not saved: what was written does not read back .*state.json"):
            keeper.save(make_content(1 if replaces else 2, seed=7))
    assert not [name for operation, name in memory.log if "manifest" in name and "/step-00000002" in name + operation]
    found, skipped = latest_checkpoint(ROOT)
    assert (step_of(found), _weights(found), skipped) == (1, 1, [])


@pytest.mark.holds("R1", "CK-19")
def test_the_order_of_changes_is_what_makes_a_kill_harmless(memory: MemoryStore) -> None:
    def changes(action: Callable[[], None]) -> list[str]:
        memory.log.clear()
        action()
        shown = {"pipe_file": "put", "open": "upload", "cp_file": "copy", "rm_file": "delete"}
        made = [
            f"{shown[operation]} {name.removeprefix('/runs/a/checkpoints/')}"
            for operation, name in memory.log
            if operation in shown
        ]
        # a put in memory is an upload inside; of a checkpoint's other files the order does not matter
        puts = {line.partition(" ")[2] for line in made if line.startswith("put")}
        made = [line for line in made if not (line.startswith("upload") and line.partition(" ")[2] in puts)]
        short = [re.sub(r"(step-\d+\S*?)/(model|optimizer|state|config)\S*", r"\1/…", line) for line in made]
        short = [re.sub(r"^(put|upload) (.*…)$", r"write \2", line) for line in short]
        return [line for number, line in enumerate(short) if number == 0 or line != short[number - 1]]

    run = "ef7bea7f"  # of the run's id
    old, new, waiting = "step-00000001", "step-00000002", f".step-00000001.replaced-{run}"
    assert changes(first) == [
        f"put {old}/.unfinished-{run}",
        f"write {old}/…",
        f"put {old}/manifest.json",
        f"delete {old}/.unfinished-{run}",
        "put last.json",
        "put kept.json",
    ]
    assert changes(replaced)[:10] == [
        f"put {waiting}/.unfinished-{run}",
        f"write {waiting}/…",
        f"put {waiting}/manifest.json",
        f"delete {waiting}/.unfinished-{run}",
        f"put {old}/.unfinished-{run}",
        f"delete {old}/manifest.json",
        f"delete {old}/…",
        f"copy {waiting}/…",
        f"copy {waiting}/manifest.json",
        f"delete {old}/.unfinished-{run}",
    ]
    assert changes(pruned) == [
        f"put {new}/.unfinished-{run}",
        f"write {new}/…",
        f"put {new}/manifest.json",
        f"delete {new}/.unfinished-{run}",
        "put last.json",
        "put kept.json",
        f"put {old}/.unfinished-{run}",
        f"delete {old}/manifest.json",
        f"delete {old}/…",
        f"delete {old}/.unfinished-{run}",
    ]


@pytest.mark.holds("R1", "CK-19")
def test_a_kill_while_a_named_checkpoint_is_saved_again_leaves_one_to_open(memory: MemoryStore) -> None:
    """`trainer.save_checkpoint(url)` of two runs: the second may not lose the first."""
    folder = as_path("memory://kept")
    write_checkpoint(folder / "mine", make_content(1, "run-a"), fsync=False)
    before = dict(_contents())

    def again() -> None:
        write_checkpoint(folder / "mine", make_content(2, "run-b"), fsync=False)

    for survives in range(memory.killed_after(None, again)):
        _restore(before)
        memory.killed_after(survives, again)
        found, _ = latest_checkpoint(folder)
        assert step_of(found) in (1, 2)
        write_checkpoint(folder / "mine", make_content(3, "run-b"), fsync=False)
        assert step_of(folder / "mine") == 3
        assert {name.split("/")[1] for name in names(folder)} == {"mine"}


def _contents() -> dict[str, bytes]:
    from fsspec.implementations.memory import MemoryFileSystem

    return {name: bytes(file.getbuffer()) for name, file in MemoryFileSystem.store.items()}


def _restore(contents: dict[str, bytes]) -> None:
    from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

    MemoryFileSystem.store.clear()
    MemoryFileSystem.store.update({name: MemoryFile(None, name, data) for name, data in contents.items()})


def _weights(path: Place | None) -> int:
    """Return the seed that the weights were drawn with."""
    assert path is not None
    with open_checkpoint(path) as reader:
        found = reader.tensor("model", "net.bias")
    return next(
        seed for seed in range(1, 10) if torch.equal(found, list(make_content(seed, seed=seed).model)[1].tensor)
    )


@pytest.mark.holds("R12", "CK-19")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    losses=st.lists(st.sampled_from([0.5, 1.0, 2.0, math.nan]), min_size=1, max_size=6),
    kills=st.lists(st.integers(0, 60), max_size=3),
    save_top_k=st.integers(0, 2),
    keep_last=st.integers(1, 2),
)
@pytest.mark.filterwarnings("ignore:The monitored metric")
def test_retention_in_a_store_deletes_only_what_nothing_names(
    memory: MemoryStore, losses: list[float], kills: list[int], save_top_k: int, keep_last: int
) -> None:
    _restore({})
    save(ROOT, 1000, run_id="another")  # of another run, in the same folder
    policy = CheckpointPolicy(monitor="val/loss", save_top_k=save_top_k, keep_last=keep_last, fsync=False)
    keeper = CheckpointKeeper(ROOT, policy, "run-a")
    saved: list[int] = []
    resumed: set[str] = set()  # never deleted by the process that was resumed from it
    for step, loss in enumerate(losses, 1):
        content = make_content(step, metrics={"val/loss": (loss, step)})
        if kills and step == len(losses) // 2 + 1:
            state = keeper.state_dict()
            for survives in kills:
                memory.killed_after(survives, lambda keeper=keeper, content=content: keeper.save(content))
                keeper = CheckpointKeeper(ROOT, policy, "run-a")
                found, _ = latest_checkpoint(ROOT)
                assert found is not None
                mine = Manifest.read(found).run_id == "run-a"
                keeper.load_state_dict(state, resumed_from=found if mine else None)
                resumed = {found.name} if mine else set()
        keeper.save(content)
        saved.append(step)
        there = {
            path.name for path in (as_path(ROOT) / f"step-{each:08d}" for each in saved) if is_file(path / MANIFEST)
        }
        assert there - resumed == {path.name for path in keeper.kept} - resumed
        assert all(verify_checkpoint(path) == [] for path in keeper.kept)
        pointer = json.loads(read_bytes(as_path(ROOT) / "last.json"))["checkpoint"]
        assert pointer == f"step-{step:08d}" == keeper.kept[-1].name
    assert verify_checkpoint(f"{ROOT}/step-00001000") == []


# Parts of it ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("memory")
def test_a_mark_tells_a_save_that_did_not_finish_from_damage() -> None:
    save(ROOT, 1)
    unfinished, damaged = as_path(ROOT) / "step-00000002", as_path(ROOT) / "step-00000003"
    put_bytes(unfinished / mark_name("run-a"), b"{}")
    put_bytes(damaged / "state.json", b"{}")
    found, skipped = latest_checkpoint(ROOT)
    assert step_of(found) == 1
    assert skipped == [
        f"{unfinished}: a save or a deletion that did not finish",
        f"{damaged}: it has no manifest.json",
    ]
    assert not stands_for_its_target(unfinished)


@pytest.mark.usefixtures("memory")
def test_a_file_is_claimed_once() -> None:
    path = as_path("memory://claims/run.json")
    assert claim_file(path, b"1")
    assert not claim_file(path, b"2")
    assert read_bytes(path) == b"1"


def test_a_file_is_claimed_once_on_s3(bucket: Bucket) -> None:
    path: Any = as_path(f"{bucket.url}/run.json", bucket.options)
    assert claim_file(path, b"1")
    assert not claim_file(path, b"2")
    with pytest.raises(FileExistsError):  # the store itself refuses, whatever was asked before
        path.fs.pipe_file(path.path, b"3", mode="create")
    assert read_bytes(path) == b"1"


@pytest.mark.holds("CK-19")
def test_a_large_file_is_uploaded_in_parts_and_an_abandoned_one_never_appears(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs
    from fsspec.asyn import sync_wrapper

    path: Any = as_path(f"{bucket.url}/large", {**bucket.options, "default_block_size": 5 << 20})
    calls: list[str] = []
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: Any, *arguments: Any, **keywords: Any) -> Any:
        calls.append(str(method))
        return await call(self, method, *arguments, **keywords)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", sync_wrapper(counted))
    data = bytes(range(256)) * (11 << 12)  # 11 MiB
    file = HashedFile(path, fsync=True)
    file.write(data)
    assert calls.count("upload_part") >= 1  # on its way before the file is closed
    record = file.close()
    assert record.bytes == len(data)
    assert read_bytes(path) == data

    abandoned = HashedFile(path.with_name("abandoned"), fsync=True)
    abandoned.write(data)
    abandoned.abandon()
    del abandoned
    assert bucket.names() == ["large"]
    assert "abort_multipart_upload" in calls


def stored_file(tensors: dict[str, torch.Tensor]) -> Place:
    path = as_path("memory://tensors.safetensors")
    put_bytes(path, safetensors_bytes(tensors))
    return path


@pytest.mark.usefixtures("memory")
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_ranges_of_a_tensor_file_are_what_the_library_reads(data: st.DataObject) -> None:
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn)
    shapes = data.draw(st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=5))
    tensors = {
        f"t{number}": (torch.rand(shape) * 200).to(data.draw(st.sampled_from(dtypes)))
        for number, shape in enumerate(shapes)
    }
    path = stored_file(tensors)
    block = data.draw(st.sampled_from([1, 7, 64, 1 << 20]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_file_module, "_BLOCK", block)  # so that small tensors take the way of large ones
        file = RemoteTensorFile(path)
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            read = file.get_tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert raw_bytes(read) == raw_bytes(tensor)
            part = file.get_slice(name)
            assert (part.get_shape(), part.get_dtype()) == (list(tensor.shape), part.get_dtype())
            if tensor.ndim:
                slices = tuple(
                    slice(*sorted((data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))))) for _ in tensor.shape
                )
                assert part[slices].tolist() == tensor[slices].tolist()


@pytest.mark.usefixtures("memory")
def test_reading_fetches_no_more_than_the_tensor_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    path = stored_file({"a": torch.zeros(3 << 20), "b": torch.ones(3 << 20), "c": torch.ones(4)})
    fetched: list[int] = []
    cat_file = MemoryFileSystem.cat_file

    def counted(self: Any, name: str, start: int, end: int, **keywords: Any) -> bytes:
        fetched.append(end - start)
        data: bytes = cat_file(self, name, start=start, end=end, **keywords)
        return data

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    file = RemoteTensorFile(path)
    fetched.clear()
    assert torch.equal(file.get_tensor("b"), torch.ones(3 << 20))
    assert sum(fetched) == 12 << 20
    assert max(fetched) <= 8 << 20
    fetched.clear()
    assert file.get_slice("a")[(slice(5, 7),)].tolist() == [0, 0]
    assert sum(fetched) <= 8 << 20


HEADERS = [
    (b"", "at least 8 bytes"),
    ((1 << 40).to_bytes(8, "little") + b"{}", "its header would be"),
    ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
    ((8).to_bytes(8, "little") + b"not json", "Expecting value"),
]
ENTRIES = [
    ({"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}, "do not fit its shape"),
    ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, "do not begin where"),
    ({"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}, "not allowed"),
    ({"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}, "not allowed"),
    ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, "F99"),
    ({"dtype": "F32", "shape": [1]}, "not what the format asks for"),
    ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}, "not what the format asks for"),
    ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "its tensors end at byte"),
    ("text", "not what the format asks for"),
]


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("R14")
@pytest.mark.parametrize(("data", "text"), HEADERS)
def test_a_file_that_is_no_tensor_file_is_refused(data: bytes, text: str) -> None:
    path = as_path("memory://bad.safetensors")
    put_bytes(path, data)
    with pytest.raises(ValueError, match=text):
        RemoteTensorFile(path)


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("R14")
@pytest.mark.parametrize(("entry", "text"), ENTRIES)
def test_a_header_that_lies_is_refused(entry: Any, text: str) -> None:
    path = as_path("memory://bad.safetensors")
    header = json.dumps({"a": entry}).encode()
    put_bytes(path, len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(ValueError, match=text):
        RemoteTensorFile(path)


@pytest.mark.usefixtures("memory")
def test_pieces_in_a_store_make_up_the_tensor() -> None:
    whole = torch.arange(12.0).view(3, 4)
    pieces = [Shard("w", whole[a:b], (3, 4), (a, 0)) for a, b in ((0, 1), (1, 3))]
    write_checkpoint("memory://pieces", make_content(model=pieces), largest_file=20)
    with open_checkpoint("memory://pieces", verify=True) as reader:
        assert torch.equal(reader.tensor("model", "w"), whole)


@pytest.mark.usefixtures("memory")
def test_pointers_in_a_store_are_replaced_in_one_step(memory: MemoryStore) -> None:
    path = as_path(ROOT) / "last.json"
    replace_json(path, {"checkpoint": "a"}, fsync=True)
    memory.log.clear()
    replace_json(path, {"checkpoint": "b"}, fsync=True)
    assert [operation for operation, _ in memory.log if operation != "open"] == ["pipe_file"]
