"""`task ckpt`: what each subcommand prints, how it exits, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.contents import make_content
from checkpoint.test_safety import copy_of
from cli.command import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from taskloom import CheckpointPolicy, RestorePolicy, TaskModule, Trainer
from taskloom.callbacks import EMAWeightAveraging
from taskloom.checkpoint import CheckpointKeeper, Shard, open_checkpoint, verify_checkpoint, write_checkpoint
from taskloom.checkpoint.catalogue import list_checkpoints
from taskloom.checkpoint.folder import KeptRecord
from taskloom.checkpoint.pruning import plan_pruning
from taskloom.cli.ckpt import SUBCOMMANDS
from taskloom.cli.ckpt.text import format_age, format_bytes, printable


def make_run(folder: Path, losses: dict[int, float], *, keep_last: int = -1, **fields: Any) -> Path:
    """Save one checkpoint per step under a policy that monitors a loss; returns the folder of checkpoints."""
    keeper = CheckpointKeeper(
        folder / "checkpoints", CheckpointPolicy(monitor="val/loss", keep_last=keep_last, fsync=False), "run-a"
    )
    for step, loss in losses.items():
        keeper.save(make_content(step, metrics={"val/loss": (loss, step)}, **fields))
    return folder / "checkpoints"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs/a", {10: 0.5, 20: 0.25, 30: 0.75, 40: 0.3})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def damage(path: Path, file: str = "model/model-00001-of-00001.safetensors") -> None:
    data = bytearray((path / file).read_bytes())
    data[-1] ^= 1
    (path / file).write_bytes(data)


def test_help_comes_without_torch() -> None:
    code = (
        "import sys; from taskloom.cli import main\n"
        f"for words in ['--help'], *([name, '--help'] for name in {list(SUBCOMMANDS)!r}):\n"
        "    try: main(['ckpt', *words])\n"
        "    except SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'numpy', 'yaml', 'jsonargparse') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("usage: task ckpt") == len(SUBCOMMANDS) + 1
    assert done.stdout.endswith("[]\n")


def test_every_command_has_help(run: Run) -> None:
    overview = run(["ckpt"]).out
    for name, each in SUBCOMMANDS.items():
        assert f"  {name} " in overview
        outcome = run(["ckpt", name, "--help"])
        assert outcome.code == 0
        assert outcome.out.startswith(f"usage: task ckpt {name} ")
        assert each.summary in overview
    outcome = run(["ckpt", "exprot"])
    assert outcome.code == 2
    assert "command ckpt exprot: There is no such command" in outcome.err
    assert "Did you mean 'export'?" in outcome.err
    assert run(["ckpt", "ls", "--jsn"]).code == 2


def test_ls_needs_no_torch(checkpoints: Path) -> None:
    code = (
        "import sys; from taskloom.cli import main; main(['ckpt', 'ls', '--verify'])\n"
        "print([name for name in ('torch', 'numpy', 'yaml', 'jsonargparse') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert "step-00000040" in done.stdout


@pytest.mark.holds("CL-09")
def test_ls_shows_what_is_there_and_what_it_is_kept_for(run: Run, checkpoints: Path) -> None:
    KeptRecord(checkpoints).set_pinned("step-00000010", pinned=True)
    KeptRecord(checkpoints).resume("run-a", "step-00000030", fsync=False)
    outcome = run(["ckpt", "ls"])
    assert outcome.code == 0
    title, heading, *rows, total = outcome.out.splitlines()
    assert title == "runs/a/checkpoints"
    assert heading.split() == ["checkpoint", "step", "epoch", "size", "age", "val/loss", "kept", "as", "state"]
    assert [row.split()[0] for row in rows] == [f"step-000000{step}" for step in (10, 20, 30, 40)]
    assert rows[0].split()[-3:] == ["0.5", "pinned", "ok"]
    assert "0.25  best by val/loss  ok" in rows[1]
    assert "0.75  resumed from " in rows[2]
    assert "last" in rows[3]
    assert total.startswith("4 checkpoints, ")
    assert run(["ckpt", "ls", "runs/a"]).out == run(["ckpt", "ls", "runs/a/checkpoints"]).out

    (data,) = json.loads(run(["ckpt", "ls", "--json"]).out)
    assert data["folder"] == "runs/a/checkpoints"
    assert [each["step"] for each in data["checkpoints"]] == [10, 20, 30, 40]
    assert data["checkpoints"][1]["marks"] == ["best by val/loss"]
    assert data["checkpoints"][1]["metrics"] == {"val/loss": {"value": 0.25, "step": 20}}
    size = sum(path.stat().st_size for path in (checkpoints / "step-00000010").rglob("*") if path.is_file())
    assert data["checkpoints"][0]["bytes"] == size


def test_ls_tells_damage_and_leftovers(run: Run, checkpoints: Path) -> None:
    damage(checkpoints / "step-00000010")
    with (checkpoints / "step-00000020/state.json").open("a") as file:
        file.write("x")
    (checkpoints / "step-00000030/manifest.json").write_text("{}")
    (checkpoints / ".step-00000050.writing-00000000").mkdir()
    outcome = run(["ckpt", "ls"])
    assert outcome.code == 1
    assert "state.json has grown" in outcome.out
    assert "is not the manifest of a taskloom checkpoint" in outcome.out
    assert "1 left by saves that were killed, 0 B; task ckpt prune removes them" in outcome.out
    assert "was damaged" not in outcome.out  # a changed byte costs reading everything
    assert "was damaged or changed" in run(["ckpt", "ls", "--verify"]).out


def test_ls_of_several_runs_and_of_none(run: Run, checkpoints: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/b", {5: 1.0})
    out = run(["ckpt", "ls"]).out
    assert "runs/a/checkpoints" in out
    assert "runs/b/checkpoints" in out
    assert "1 checkpoint, " in out
    outcome = run(["ckpt", "ls", "nowhere"])
    assert outcome.code == 1
    assert "There are no checkpoints in nowhere" in outcome.err


def test_show_tells_what_a_checkpoint_holds(run: Run, checkpoints: Path) -> None:
    outcome = run(["ckpt", "show", "runs/a"])
    assert outcome.code == 0
    for line in (
        "  step 40, epoch 1, ",
        "  val/loss  0.3  (step 40)",
        "  steps  40",
        "model: 2 tensors, 16 elements, 64 B",
        "  net.weight  float32[4, 3]  48 B",
        "optimizer: 2 tensors, 13 elements, 52 B",
        "configuration: 1 line (--config prints it)",
    ):
        assert line in outcome.out
    assert outcome.out.index("net.weight ") < outcome.out.index("net.bias")  # the largest first
    assert run(["ckpt", "show", "runs/a", "--config"]).out == "seed: 1\n\n"
    chosen = run(["ckpt", "show", "best", "--tensors", "*.bias"]).out
    assert "net.bias  float32[4]  16 B" in chosen
    assert "net.weight" not in chosen
    assert "optimizer:" not in chosen
    data = json.loads(run(["ckpt", "show", "last", "--json"]).out)
    assert data["progress"] == {"steps": 40}
    assert data["tensors"]["model"][0] == {
        "name": "net.weight", "dtype": "float32", "shape": [4, 3], "bytes": 48, "pieces": 1
    }  # fmt: skip


@pytest.mark.holds("CL-09")
def test_verify_names_the_damaged_file_and_exits_with_1(run: Run, checkpoints: Path) -> None:
    good = run(["ckpt", "verify", str(checkpoints / "step-00000010"), "last"])
    assert good.code == 0
    assert good.out.splitlines()[-1] == "2 checkpoints: all good"
    damage(checkpoints / "step-00000020", "optimizer/optimizer-00001-of-00001.safetensors")
    (checkpoints / "step-00000030/manifest.json").unlink()
    outcome = run(["ckpt", "verify", "runs/a"])
    assert outcome.code == 1
    damaged = [line for line in outcome.out.splitlines() if "DAMAGED" in line]
    assert [line.split()[-1] for line in damaged] == ["optimizer/optimizer-00001-of-00001.safetensors"]
    assert "step-00000030 is not a checkpoint: it has no manifest.json" in outcome.out
    assert outcome.out.splitlines()[-1] == "4 checkpoints: 2 damaged"
    data = json.loads(run(["ckpt", "verify", "runs/a", "--json"]).out)
    assert [each["ok"] for each in data] == [True, False, True, False]
    assert run(["ckpt", "verify", "nowhere"]).code == 1


def test_verify_looks_into_files_whose_hashes_fit(run: Run, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step-1", make_content(), fsync=False)
    copy_of(tmp_path / "step-1", tmp_path / "forged", "state.json", b'{"x": {"$import": "os"}}', resigned=True)
    outcome = run(["ckpt", "verify", "forged"])
    assert outcome.code == 1
    assert "cannot be decoded" in outcome.out


@pytest.mark.holds("CL-09")
def test_diff_exits_as_diff_does(run: Run, checkpoints: Path) -> None:
    one, other = str(checkpoints / "step-00000010"), str(checkpoints / "step-00000020")
    same = run(["ckpt", "diff", one, one])
    assert (same.code, same.out) == (0, "equal: 4 tensors, the training state and the configuration\n")
    outcome = run(["ckpt", "diff", one, other])
    assert outcome.code == 1
    assert "model: net.weight float32[4, 3]: 12 elements differ by at most" in outcome.out
    assert "state: progress.steps: 10 → 20" in outcome.out
    assert outcome.out.splitlines()[-1] == "4 tensors differ, 4 of equal shape were compared"
    assert "net.weight" not in run(["ckpt", "diff", one, other, "--tolerance", "100"]).out
    data = json.loads(run(["ckpt", "diff", one, other, "--json"]).out)
    assert data["state"][-1] == {"path": "progress.steps", "before": "10", "after": "20"}
    missing = run(["ckpt", "diff", one, "nowhere"])
    assert missing.code == 2
    assert "There is no checkpoint at nowhere" in missing.err
    assert run(["ckpt", "diff", one, other, "--tolerance", "-1"]).code == 2


def test_diff_shows_few_of_many_unless_asked(run: Run, tmp_path: Path) -> None:
    for number in (1, 2):
        tensors = [Shard.whole(f"w{index:02d}", torch.full((1,), float(number))) for index in range(30)]
        write_checkpoint(tmp_path / f"step-{number}", make_content(model=tensors, optimizer=[]), fsync=False)
    short, long = (run(["ckpt", "diff", "step-1", "step-2", *more]).out for more in ([], ["--all"]))
    assert "... and 10 more (--all)" in short
    assert "w29" not in short
    assert "w29" in long


@pytest.mark.holds("R43", "CL-09")
def test_export(run: Run, checkpoints: Path) -> None:
    outcome = run(
        ["ckpt", "export", "last", "out", "--max_shard_size", "30", "--strip_prefix", "net.", "--dtype", "fp16"]
    )
    assert outcome.code == 0
    assert outcome.out.splitlines()[-2:] == ["out/model.safetensors.index.json", "2 tensors, 32 B"]
    files = sorted(Path("out").glob("*.safetensors"))
    loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert {name: tensor.dtype for name, tensor in loaded.items()} == {"weight": torch.half, "bias": torch.half}
    again = run(["ckpt", "export", "last", "out"])
    assert again.code == 1
    assert "out holds weights already" in again.err
    assert run(["ckpt", "export", "last", "out", "--overwrite", "--include", "*.bias"]).code == 0
    assert [path.name for path in Path("out").iterdir()] == ["model.safetensors"]
    wrong = run(["ckpt", "export", "last", "other", "--max_shard_size", "5XB"])
    assert wrong.code == 2
    assert "A size is a number of bytes" in wrong.err
    assert "no tensors of the kind 'average'" in run(["ckpt", "export", "last", "other", "--weights", "average"]).err


class Line(TaskModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


def fit(task: Line, max_steps: int, callbacks: Any = (), **options: Any) -> Any:
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    trainer = Trainer(max_steps=max_steps, seed=0, progress=False, logger=False, accelerator="cpu", callbacks=callbacks)
    return trainer.fit(task, loader, **options)


@pytest.mark.holds("CL-09")
def test_training_resumes_from_a_merged_checkpoint(run: Run) -> None:
    straight, continued = Line(), Line()
    continued.load_state_dict(straight.state_dict())
    fit(straight, 10)
    first = fit(continued, 6)
    assert run(["ckpt", "merge", str(first.last_checkpoint), "whole"]).code == 0
    resumed = Line()
    fit(resumed, 10, ckpt_path="whole")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


@pytest.mark.holds("CL-09")
def test_weights_come_in_and_go_out_again(run: Run) -> None:
    weights = {"weight": torch.ones(1, 3), "bias": torch.zeros(1)}
    torch.save({"state_dict": weights, "hyper_parameters": {"lr": 0.5}, "global_step": 7}, "other.ckpt")
    outcome = run(["ckpt", "import", "other.ckpt", "start", "--add_prefix", "net."])
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[-1] == "hyper-parameters: lr"
    task = Line.load_from_checkpoint("start")
    assert task.hparams.lr == 0.5
    assert torch.equal(task.net.weight, weights["weight"])
    started = Line()
    fit(started, 0, ckpt_path="start", restore=RestorePolicy(only="model"))
    assert torch.equal(started.net.weight, weights["weight"])
    assert run(["ckpt", "export", "start", "out.safetensors", "--remove_task_prefix"]).code == 0
    assert {name: tensor.tolist() for name, tensor in load_file("out.safetensors").items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }
    torch.save(nn.Linear(1, 1), "module.pt")
    refused = run(["ckpt", "import", "module.pt", "other"])
    assert refused.code == 1
    assert "module.pt needs more than data: " in refused.err


@pytest.mark.holds("R45")
def test_the_average_of_a_run_is_exported_by_switch(run: Run) -> None:
    task = Line()
    result = fit(task, 6, callbacks=[EMAWeightAveraging(decay=0.5)])
    assert run(["ckpt", "export", "last", "average.safetensors", "--weights", "average"]).code == 0
    assert run(["ckpt", "export", "last", "model.safetensors"]).code == 0
    average, model = load_file("average.safetensors"), load_file("model.safetensors")
    assert set(average) == set(model) == set(task.state_dict())
    assert not torch.equal(average["net.weight"], model["net.weight"])
    with open_checkpoint(result.last_checkpoint) as reader:
        assert torch.equal(average["net.weight"], reader.tensor("average", "net.weight"))


def test_upgrade_leaves_the_present_format_alone(run: Run, checkpoints: Path) -> None:
    outcome = run(["ckpt", "upgrade", "last", str(checkpoints / "step-00000010")])
    assert outcome.code == 0
    assert outcome.out.count("is of format 1 already") == 2


@pytest.mark.holds("R12")
def test_a_pinned_checkpoint_outlives_the_policy_of_a_run_that_goes_on(run: Run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs/a", {1: 0.1})
    keeper = CheckpointKeeper(folder, CheckpointPolicy(keep_last=1, fsync=False), "run-a")
    keeper.save(make_content(2))
    assert run(["ckpt", "pin", str(folder / "step-00000002")]).code == 0
    keeper.save(make_content(3))
    keeper.save(make_content(4))
    assert names(folder) == ["step-00000001", "step-00000002", "step-00000004"]
    assert run(["ckpt", "unpin", str(folder / "step-00000002")]).code == 0
    keeper.save(make_content(5))
    assert names(folder) == ["step-00000001", "step-00000005"]
    assert "There is no checkpoint at" in run(["ckpt", "pin", str(folder / "step-9")]).err


@pytest.mark.holds("R12")
def test_prune_says_what_it_would_do_and_asks(run: Run, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = names(checkpoints)
    dry = run(["ckpt", "prune", "runs", "--keep_last", "1", "--dry_run"])
    assert dry.code == 0
    assert [line.split()[:2] for line in dry.out.splitlines()[:-1]] == [
        ["keep", "step-00000020"], ["keep", "step-00000040"], ["delete", "step-00000010"], ["delete", "step-00000030"]
    ]  # fmt: skip
    assert run(["ckpt", "prune", "runs/a", "--keep_last", "1"]).code == 2  # there is nobody to ask
    assert names(checkpoints) == everything
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run(["ckpt", "prune", "runs/a", "--keep_last", "1"]).code == 1
    assert names(checkpoints) == everything

    def pin_and_agree(question: str) -> str:
        KeptRecord(checkpoints).set_pinned("step-00000010", pinned=True)  # in another terminal, before the answer
        return "y"

    monkeypatch.setattr("builtins.input", pin_and_agree)
    done = run(["ckpt", "prune", "runs/a", "--keep_last", "1"])
    assert done.code == 0
    assert "are free" in done.out
    assert names(checkpoints) == ["step-00000010", "step-00000020", "step-00000040"]
    assert run(["ckpt", "prune", "runs/a", "--keep_last", "1", "--yes"]).out.endswith("nothing to delete\n")
    assert run(["ckpt", "prune", "runs/a", "--keep_last", "-1"]).code == 2


@pytest.mark.holds("R12")
def test_prune_keeps_what_must_stay_whatever_is_asked(run: Run, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs/a", {step: 1 / step for step in range(1, 10)})
    KeptRecord(folder).set_pinned("step-00000002", pinned=True)
    KeptRecord(folder).resume("run-a", "step-00000003", fsync=False)
    write_checkpoint(folder / "step-00000020", make_content(20), fsync=False)  # newest, not named by last.json
    write_checkpoint(folder / "step-00000021", make_content(21), fsync=False, weights_only=True)
    (folder / "notes").mkdir()
    (folder / "step-foreign").mkdir()
    (folder / "step-foreign/weights.pt").write_text("")
    outcome = run(["ckpt", "prune", "runs/a", "--keep_last", "0", "--yes"])
    assert outcome.code == 0, outcome.err
    stayed = ["notes", "step-00000002", "step-00000003", "step-00000009", "step-00000020", "step-foreign"]
    assert names(folder) == stayed
    assert all(not verify_checkpoint(folder / name) for name in stayed[1:5])


@pytest.mark.holds("R12")
def test_prune_does_not_count_a_damaged_checkpoint_as_kept(run: Run, checkpoints: Path) -> None:
    damage(checkpoints / "step-00000040")
    damage(checkpoints / "step-00000030")
    outcome = run(["ckpt", "prune", "runs/a", "--keep_last", "1", "--keep_best", "1", "--yes"])
    assert names(checkpoints) == ["step-00000020", "step-00000030", "step-00000040"]
    assert "step-00000030  it is damaged and does not count" in outcome.out


def test_prune_by_another_metric(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs/a/checkpoints"
    for step, accuracy in ((1, 0.9), (2, 0.7), (3, float("nan")), (4, 0.8), (5, 0.1)):
        metrics = {"val/acc": (accuracy, step), "old": (1.0, 0)}
        write_checkpoint(folder / f"step-{step:08d}", make_content(step, metrics=metrics), fsync=False)
    ask = ["ckpt", "prune", "runs/a", "--keep_best", "2", "--yes"]
    unclear = run(ask)
    assert unclear.code == 2
    assert "There is no telling which checkpoints are best" in unclear.err
    assert "Did you mean 'val/acc'?" in run([*ask, "--monitor", "val/ac"]).err
    assert run([*ask, "--monitor", "val/acc", "--mode", "max"]).code == 0
    assert names(folder) == ["step-00000001", "step-00000004", "step-00000005"]  # and the newest one


@pytest.mark.holds("R12")
def test_prune_removes_what_killed_saves_left_once_it_is_old(run: Run, checkpoints: Path) -> None:
    saving, old, aside = (
        checkpoints / name
        for name in (
            ".step-00000050.writing-00000000",
            ".step-00000060.deleting-00000000",
            ".step-00000010.replaced-00000000",
        )
    )
    for folder in (saving, old):
        (folder / "model").mkdir(parents=True)
        (folder / "model/part").write_bytes(b"12345")
    (checkpoints / "step-00000010").rename(aside)  # the only copy of a checkpoint
    hours_ago = time.time() - 7200
    for path in (old, old / "model", old / "model/part", aside, *aside.rglob("*")):
        os.utime(path, (hours_ago, hours_ago))
    assert run(["ckpt", "prune", "runs/a", "--yes"]).code == 0
    assert saving.exists()
    assert not old.exists()
    assert aside.exists()
    outcome = run(["ckpt", "prune", "runs/a", "--leftovers", "now", "--yes", "--keep_last", "1"])
    assert "step-00000010" in outcome.out
    assert "it was set aside and is the only copy" in outcome.out
    assert not saving.exists()
    assert verify_checkpoint(aside) == []


def test_prune_takes_one_run(run: Run, checkpoints: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "runs/b", {5: 1.0})
    outcome = run(["ckpt", "prune", "runs", "--keep_last", "1", "--yes"])
    assert outcome.code == 1
    assert "runs holds 2 runs" in outcome.err


@pytest.mark.holds("R12")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_prune_never_leaves_a_run_worse_off(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever is damaged, pinned, named and asked: what must stay stays, and a good one that was there is there."""
    folder = tmp_path_factory.mktemp("run")
    count = data.draw(st.integers(1, 6))
    for step in range(1, count + 1):
        loss = data.draw(st.sampled_from([0.1, 0.2, float("nan")]))
        content = make_content(step, metrics={"val/loss": (loss, step)})
        write_checkpoint(folder / f"step-{step:08d}", content, fsync=False, weights_only=data.draw(st.booleans()))
    everything = names(folder)
    damaged = data.draw(st.sets(st.sampled_from(everything)))
    for name in damaged:
        damage(folder / name)
    pinned = data.draw(st.sets(st.sampled_from(everything), max_size=2))
    for name in pinned:
        KeptRecord(folder).set_pinned(name, pinned=True)
    resumed = data.draw(st.sampled_from(everything))
    KeptRecord(folder).resume("run-a", resumed, fsync=False)
    keep_last, keep_best = (data.draw(st.none() | st.integers(0, 4)) for _ in range(2))
    before = list_checkpoints(folder)
    resumable = [each.path.name for each in before if each.path.name not in damaged and not each.manifest.weights_only]
    good = [name for name in everything if name not in damaged]
    plan_pruning(folder, keep_last=keep_last, keep_best=keep_best, monitor="val/loss").apply()
    left = names(folder)
    assert pinned | {resumed} <= set(left)
    assert set(resumable[-1:]) <= set(left)
    assert set(good[len(good) - (keep_last or 0) :]) <= set(left) or (keep_last or 0) >= len(good)
    if keep_last is None and keep_best is None:
        assert left == everything
    best = sorted(
        (each.metric("val/loss"), each.path.name)
        for each in before
        if each.metric("val/loss") and each.path.name in good
    )
    assert {name for _, name in best[: keep_best or 0]} <= set(left)


@pytest.mark.holds("R14")
def test_names_from_a_file_cannot_steer_the_terminal(run: Run, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x1b[2Jw\r\u202e"
    content = make_content(
        model=[Shard.whole(evil, torch.ones(1))],
        config=f"a: '{evil}'\n",
        metrics={evil: (1.0, 10)},
        state={"progress": {evil: evil}, "hyper_parameters": {evil: 1}},
    )
    path = tmp_path / "runs/a/checkpoints/step-00000010"
    write_checkpoint(path, content, fsync=False)
    write_checkpoint(tmp_path / "other", make_content(), fsync=False)
    commands = (["ls"], ["show", str(path)], ["show", str(path), "--config"], ["diff", str(path), "other"])
    for arguments in commands:
        outcome = run(["ckpt", *arguments])
        assert outcome.out
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(outcome.out + outcome.err), arguments
    assert printable("a\x1b\tb\n") == "a\\x1b\tb\n"


TOOLS = """
import contextlib, io, json, sys
from taskloom.cli import main
seen, watching = [], [False]
FORBIDDEN = ("exec", "compile", "subprocess", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
             "marshal", "pickle", "ctypes.dlopen", "socket", "code.__new__", "function.__new__")
def hook(event, arguments):
    if watching[0] and event.startswith(FORBIDDEN):
        seen.append([event, repr(arguments)[:200]])
sys.addaudithook(hook)
good, *folders = sys.stdin.read().split()
codes = []
for folder in [good, *folders]:
    for number, words in enumerate((
        ["ls", folder], ["show", folder], ["verify", folder], ["diff", good, folder],
        ["export", folder, folder + ".out"], ["merge", folder, folder + ".merged"], ["upgrade", folder],
        ["prune", folder, "--keep_last", "0", "--dry_run"],
    )):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main(["ckpt", *words])
            except SystemExit as end:
                codes.append(end.code)
    watching[0] = True  # the good one brought the imports
watching[0] = False
print(json.dumps({"seen": seen, "codes": sorted(set(codes))}))
"""


@pytest.mark.holds("R14")
def test_malicious_checkpoints_run_nothing_in_the_tools(tmp_path: Path) -> None:
    good = tmp_path / "good"
    write_checkpoint(good, make_content(), fsync=False)
    payload = b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."
    odd = safetensors_bytes({"net.weight": torch.zeros(4, 3, dtype=torch.complex64), "net.bias": torch.zeros(4)})
    changes = {
        "state.json": [
            b'{"x": {"$import": "os"}}',
            b'{"x": {"__reduce__": ["os.system", "touch pwned"]}}',
            b"[" * 9000,
        ],
        "state.safetensors": [payload],
        "config.yaml": [b"!!python/object/apply:os.system ['touch pwned']\n", b"a: &a [*a]\n"],
        "model/model-00001-of-00001.safetensors": [payload, b"PK\x03\x04" + payload, odd],
        "model/model.safetensors.index.json": [b'{"weight_map": {"w": "../../x.py"}}', b'{"weight_map": {"w": 1}}'],
    }
    forged = [
        copy_of(good, tmp_path / f"forged-{number}-{name.replace('/', '-')}", name, data, resigned=True)
        for name, versions in changes.items()
        for number, data in enumerate(versions)
    ]
    done = subprocess.run(
        [sys.executable, "-c", TOOLS],
        input="\n".join(map(str, [good, *forged])),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["seen"] == []
    assert set(result["codes"]) <= {0, 1, 2}
    assert not list(tmp_path.rglob("pwned"))


def test_a_pipe_that_closes_early_is_no_error(checkpoints: Path) -> None:
    program = "from taskloom.cli import main; main(['ckpt', 'ls'])"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "{sys.executable}" -c "{program}" | true'],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_994, "9.99 kB"), (9_996, "10.0 kB"), (999_499, "999 kB"),
     (999_600, "1.00 MB"), (5_000_000_000, "5.00 GB"), (12_345_678_901_234, "12.3 TB"), (10**16, "10000 TB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_ages() -> None:
    from datetime import datetime, timezone

    now = datetime(2026, 1, 3, 12, 0, 0, tzinfo=timezone.utc)
    for then, text in (
        ("2026-01-03T11:59:48+00:00", "12 s"),
        ("2026-01-03T11:55:00", "5 min"),
        ("2026-01-03T09:59:00+00:00", "2 h 1 min"),
        ("2026-01-01T08:00:00+00:00", "2 d 4 h"),
        ("2027-01-01T08:00:00+00:00", "0 s"),
        ("yesterday", "?"),
    ):
        assert format_age(then, now) == text
