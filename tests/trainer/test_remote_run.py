"""Runs whose folder lies in a store."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from loop.tiny import Line, loader, quiet
from stores import Bucket
from trainer.remote_killed import train

from taskloom import CheckpointPolicy, Fabric, RunFolder, Trainer
from taskloom.checkpoint import CheckpointError, file_checks, latest_checkpoint, open_checkpoint, verify_checkpoint
from taskloom.checkpoint.files import put_bytes
from taskloom.checkpoint.mirror import LogMirror
from taskloom.checkpoint.place import Place, as_path, children, is_file, read_bytes
from taskloom.core.errors import TaskloomWarning
from taskloom.loggers import CSVLogger
from taskloom.loop.folder import find_checkpoint, make_run_folder, require_shared, run_facts

SCRIPT = Path(__file__).with_name("remote_killed.py")
ROOT = "memory://bucket/runs"


def trainer(**arguments: Any) -> Trainer:
    policy = CheckpointPolicy(every="2 steps", keep_last=2, fsync=False)
    return quiet(**{"max_epochs": 1, "run_dir": RunFolder(ROOT, name="one"), "checkpoint": policy, **arguments})


def below(folder: Place) -> list[str]:
    return [path.name for path, _ in children(folder)]


def text_of(path: Place) -> str:
    return read_bytes(path).decode()


# A run on S3 ----------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R1", "R40", "CK-01", "CK-19")
def test_a_run_on_s3_that_is_killed_while_it_uploads_goes_on_on_another_machine(bucket: Bucket, tmp_path: Path) -> None:
    expected, _ = train(tmp_path / "local", tmp_path, None, None)
    local = next((tmp_path / "local").iterdir())
    root = f"{bucket.url}/runs"
    for number, changes in enumerate((25, 31)):  # within the second save; within a later one after the resume
        machine = tmp_path / f"machine-{number}"
        command = [sys.executable, str(SCRIPT), root, json.dumps(bucket.options), str(machine), str(changes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == -signal.SIGKILL, done.stderr
        run = children(as_path(root, bucket.options))[0][0]
        found, _ = latest_checkpoint(run / "checkpoints")
        assert found is not None
    task, result = train(root, tmp_path / "machine-2", bucket.options, "last")
    assert str(result.run_folder) == str(run)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(task.state_dict()[name], tensor)
    for name in ("metrics.csv", "metrics.jsonl"):
        here = tmp_path / "machine-2" / run.name / name
        assert text_of(run / name) == here.read_text() == (local / name).read_text()
    assert verify_checkpoint(result.last_checkpoint) == []


@pytest.mark.holds("CK-19")
def test_a_run_in_a_bucket_that_is_not_there(s3_options: dict[str, Any]) -> None:
    with pytest.raises(OSError, match=r"in a bucket that does not exist.*make the bucket first"):
        trainer(run_dir=RunFolder("s3://no-such-bucket/runs", storage_options=s3_options)).fit(Line(), loader())


# A run in memory ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-01", "CK-19")
def test_every_way_to_name_a_checkpoint_leads_to_a_store() -> None:
    policy = CheckpointPolicy(monitor="val/loss", save_top_k=1, keep_last=1, fsync=False)
    first = trainer(max_epochs=2, checkpoint=policy)
    task = Line()
    result = first.fit(task, loader(), loader())
    assert str(result.run_folder) == f"{ROOT}/one"
    assert str(result.last_checkpoint) == f"{ROOT}/one/checkpoints/step-00000008"
    assert result.best_checkpoint is not None
    assert below(result.run_folder) == ["checkpoints", "run.json"]
    for path in ("last", f"{ROOT}/one", f"{ROOT}/one/", str(result.last_checkpoint), result.last_checkpoint):
        resumed = trainer(max_epochs=3, checkpoint=False).fit(Line(), loader(), ckpt_path=path)
        assert resumed.steps == 12
    for path in ("best", str(result.best_checkpoint)):
        trainer(checkpoint=False).validate(Line(), loader(), ckpt_path=path)
    first.save_checkpoint("memory://kept/mine")
    assert verify_checkpoint("memory://kept/mine") == []
    loaded = Line.load_from_checkpoint("memory://kept/mine")
    for name, tensor in task.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-01")
def test_fabric_saves_to_a_store_and_loads_from_there(tmp_path: Path) -> None:
    fabric = Fabric(
        accelerator="cpu", loggers=[CSVLogger()], run_dir=RunFolder(ROOT, name="fabric", log_root=tmp_path / "here")
    )
    module = torch.nn.Linear(2, 2)
    fabric.save("memory://bucket/step-3", {"model": module, "step": 3})
    state: dict[str, Any] = {"model": torch.nn.Linear(2, 2), "step": 0}
    fabric.load("memory://bucket/step-3", state)
    assert state["step"] == 3
    assert torch.equal(state["model"].weight, module.weight)
    fabric.log("loss", 0.5)
    fabric.close()
    assert text_of(as_path(f"{ROOT}/fabric/metrics.csv")) == (tmp_path / "here/fabric/metrics.csv").read_text()


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-02")
def test_a_run_folder_in_a_store_is_one_run_s_own() -> None:
    trainer().fit(Line(), loader())
    with pytest.raises(ValueError, match=r"The run folder memory://bucket/runs/one exists already"):
        trainer().fit(Line(), loader())
    trainer(run_dir=RunFolder(ROOT, name="one", overwrite=True)).fit(Line(), loader())
    assert below(as_path(f"{ROOT}/one")) == ["checkpoints", "checkpoints-1", "run.json"]
    assert verify_checkpoint(f"{ROOT}/one/checkpoints-1/step-00000004") == []
    unnamed = {trainer(run_dir=ROOT).fit(Line(), loader()).run_folder for _ in range(3)}
    assert len(unnamed) == 3  # in the same second


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("R55", "CK-02")
@pytest.mark.parametrize("root", [ROOT, "runs"])
def test_every_start_leaves_its_configuration(root: str) -> None:
    first = trainer(run_dir=RunFolder(root, name="one"))
    first.record.config_text = "max_epochs: 1\n"
    run = first.fit(Line(), loader()).run_folder
    assert run is not None
    for number in (1, 2):
        again = trainer(run_dir=RunFolder(root, name="one"), max_epochs=1 + number)
        again.record.config_text = f"max_epochs: {1 + number}\n"
        again.fit(Line(), loader(), ckpt_path="last")
    (run / "config.3.yaml").write_bytes(b"mine")
    again = trainer(run_dir=RunFolder(root, name="one"), max_epochs=5)
    again.record.config_text = "max_epochs: 5\n"
    again.fit(Line(), loader(), ckpt_path="last")
    written = {name: text_of(run / name) for name in below(run) if name.startswith("config")}
    assert written == {
        "config.yaml": "max_epochs: 1\n",
        "config.1.yaml": "max_epochs: 2\n",
        "config.2.yaml": "max_epochs: 3\n",
        "config.3.yaml": "mine",
        "config.4.yaml": "max_epochs: 5\n",
    }


# Logs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("R40")
def test_logs_are_here_and_in_the_store_and_both_places_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(logger=True, progress="plain", log_every_n_steps=1).fit(Line(), loader()).run_folder
    assert run is not None
    assert text_of(run / "metrics.csv") == Path("runs/one/metrics.csv").read_text()
    assert json.loads(Path("runs/one/copied-to.json").read_text()) == {"copied_to": f"{ROOT}/one"}
    shown = capsys.readouterr().out
    assert "Logs        runs/one/metrics.csv\n            memory://bucket/runs/one (copies of the files above)" in shown


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("R40")
def test_a_checkpoint_is_never_ahead_of_the_logs_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a manifest appears, the rows that the checkpoint knows of are in the store."""
    from taskloom.checkpoint import staging

    counts: list[tuple[int, int]] = []
    write = staging.write_file

    def looking(path: Place, data: bytes, *, fsync: bool) -> Any:
        if path.name == "manifest.json":
            rows = text_of(as_path(f"{ROOT}/one/metrics.csv")).count("\n") - 1
            counts.append((json.loads(data)["step"], rows))
        return write(path, data, fsync=fsync)

    monkeypatch.setattr(staging, "write_file", looking)
    trainer(logger=True, log_every_n_steps=1).fit(Line(), loader())
    assert [step for step, _ in counts] == [2, 4]
    assert all(rows >= step for step, rows in counts)


def _gone(*arguments: Any, **keywords: Any) -> None:
    raise RuntimeError("gone")


@pytest.mark.usefixtures("memory")
def test_logs_that_cannot_be_copied_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    mirror = LogMirror(as_path(f"{ROOT}/one"), tmp_path)
    (mirror.local / "sub").mkdir()
    (mirror.local / "sub" / "metrics.csv").write_text("1\n")
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", _gone)
        with pytest.warns(TaskloomWarning, match=r"could not be copied to memory://bucket/runs/one; training goes on"):
            assert not mirror.copy()
        assert not mirror.copy()  # told once
    assert mirror.copy()
    assert text_of(as_path(f"{ROOT}/one/sub/metrics.csv")) == "1\n"
    elsewhere = LogMirror(as_path(f"{ROOT}/one"), tmp_path / "elsewhere")
    elsewhere.fetch()
    assert (elsewhere.local / "sub" / "metrics.csv").read_text() == "1\n"


@pytest.mark.usefixtures("memory")
def test_copies_that_lag_behind_are_told_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    monkeypatch.setattr(MemoryFileSystem, "put_file", _gone)
    with pytest.warns(TaskloomWarning, match="training goes on"):
        trainer(logger=True, progress="plain", checkpoint=False, log_every_n_steps=1).fit(Line(), loader())
    assert "(copies of the files above, which lag behind: the store could not be reached)" in capsys.readouterr().out


@pytest.mark.usefixtures("memory")
def test_only_what_changed_is_copied(tmp_path: Path, memory: Any) -> None:
    mirror = LogMirror(as_path(f"{ROOT}/one"), tmp_path)
    (mirror.local / "a.csv").write_text("1\n")
    (mirror.local / "b.csv").write_text("1\n")
    mirror.copy()
    memory.log.clear()
    (mirror.local / "b.csv").write_text("1\n2\n")
    mirror.copy()
    assert {name for operation, name in memory.log if operation == "open"} == {"/bucket/runs/one/b.csv"}


def test_a_folder_of_another_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "metrics.csv").write_text("a local run of the same name\n")
    run = as_path("memory://bucket/runs/one")
    assert LogMirror(run, tmp_path).local == tmp_path / "one-1"
    assert LogMirror(run, tmp_path).local == tmp_path / "one-1"
    assert LogMirror(as_path("memory://other/one"), tmp_path).local == tmp_path / "one-2"


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt"])
def test_a_list_of_logs_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    put_bytes(as_path(f"{ROOT}/one/logs.json"), json.dumps({"files": [name]}).encode())
    LogMirror(as_path(f"{ROOT}/one"), tmp_path / "root").fetch()
    assert not list(tmp_path.rglob("outside.txt"))


# Which run, which checkpoint ------------------------------------------------------------------------------------------


class Curve(Line):
    """Another task."""


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-01")
@pytest.mark.parametrize("root", [ROOT, "runs"])
def test_last_is_of_the_task_s_own_runs(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, task in (("a", Line()), ("b", Line()), ("c", Curve())):
        trainer(run_dir=RunFolder(root, name=name)).fit(task, loader())
    facts = run_facts(as_path(root) / "c")
    assert facts["task_class"].endswith("test_remote_run.Curve")
    go_on = trainer(run_dir=root, max_epochs=2, progress="plain")
    assert str(go_on.fit(Line(), loader(), ckpt_path="last").run_folder).endswith("b")
    assert "Run: b (passed over a, c)" in capsys.readouterr().out
    assert str(trainer(run_dir=root, max_epochs=2).fit(Curve(), loader(), ckpt_path="last").run_folder).endswith("c")
    # of a class that has no runs, the newest is taken, and it is for the comparison of tensors to object
    assert find_checkpoint("last", RunFolder(root), None, task_class="x.Unknown").run == as_path(root) / "c"


@pytest.mark.holds("R1")
def test_what_is_passed_over_is_told_when_training_starts(capsys: pytest.CaptureFixture[str]) -> None:
    run = trainer(run_dir=RunFolder(name="one")).fit(Line(), loader()).run_folder
    assert run is not None
    newest = run / "checkpoints" / "step-00000004"
    (newest / "state.json").write_text("{}")
    (run / "checkpoints" / ".step-00000006.writing-00000000").mkdir()
    with pytest.warns(TaskloomWarning, match=r"step-00000002 is continued from.*step-00000004.*json is truncated"):
        trainer(run_dir=RunFolder(name="one"), max_epochs=1, progress="plain").fit(Line(), loader(), ckpt_path="last")
    shown = capsys.readouterr().out
    assert "writing-00000000: a save that did not finish" in shown
    assert "step-00000002" in shown.split("Resumed")[1].splitlines()[0]


@pytest.mark.holds("R1")
def test_a_resume_hashes_every_file_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(run_dir=RunFolder(name="one")).fit(Line(), loader())
    hashed: list[str] = []
    hash_of = file_checks.hash_of

    def counted(file: Place, size: int | None = None) -> str:
        hashed.append(file.name)
        return hash_of(file, size)

    monkeypatch.setattr(file_checks, "hash_of", counted)
    for path in ("last", "runs/one", "runs/one/checkpoints/step-00000004"):
        hashed.clear()
        trainer(run_dir=RunFolder(name="one"), checkpoint=False, max_epochs=2).fit(Line(), loader(), ckpt_path=path)
        with open_checkpoint("runs/one/checkpoints/step-00000004") as reader:
            assert sorted(hashed) == sorted(name.rpartition("/")[2] for name in reader.manifest.files)


def test_a_run_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"finds no run with a checkpoint in .*nothing"):
        find_checkpoint("last", RunFolder(tmp_path / "nothing"), None)


# One folder for all machines ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-12")
@pytest.mark.parametrize("root", [ROOT, "runs"])
def test_a_machine_that_does_not_share_the_run_folder_is_told(root: str) -> None:
    folder = make_run_folder(RunFolder(root), "Line", task_class="x.Line", run_id="mine")
    assert is_file(folder / "run.json")
    require_shared(folder, "mine", node=1)
    with pytest.raises(RuntimeError, match=r"Machine 1 \(.*does not see the run's folder .*the run 'mine'.*that all"):
        require_shared(folder, "another", node=1)
    with pytest.raises(RuntimeError, match=r"Machine 2 .*no such folder.*s3://bucket/runs"):
        require_shared(folder.with_name("elsewhere"), "mine", node=2)


@pytest.mark.holds("CK-12")
def test_other_ranks_write_nothing_and_look_for_the_folder_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rank on a second machine does, told by what rank 0 would send."""
    folder = make_run_folder(RunFolder("shared"), "Line", run_id="mine")
    other = quiet(max_epochs=1, run_dir="shared", logger=True, checkpoint=True)
    monkeypatch.setattr(type(other), "is_global_zero", property(lambda self: False))
    for sent, error in (((folder, "mine"), None), ((folder, "other"), RuntimeError)):
        monkeypatch.setattr(other.strategy, "broadcast", lambda value, source=0, sent=sent: sent)
        if error is None:
            other.record.open(Line(), None)
            assert (other.record.folder, other.record.run_id) == (folder, "mine")
        else:
            with pytest.raises(error, match="does not see the run's folder"):
                other.record.open(Line(), None)
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
