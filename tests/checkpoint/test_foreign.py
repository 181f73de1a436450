"""Weights of other frameworks come over with their names, values and arguments, and nothing in their files runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from taskloom import TaskModule
from taskloom.checkpoint import CheckpointError, open_checkpoint, verify_checkpoint
from taskloom.checkpoint.export import export_weights
from taskloom.checkpoint.foreign import import_weights


class Net(nn.Module):
    def __init__(self, hidden: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.head = nn.Linear(hidden, 5, bias=False)
        self.head.weight = self.embed.weight


class Task(TaskModule):
    def __init__(self, hidden: int = 2, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(hidden)


def lightning_checkpoint(module: nn.Module, **changes: Any) -> dict[str, Any]:
    """What Lightning 2 writes."""
    return {
        "epoch": 4, "global_step": 120, "pytorch-lightning_version": "2.6.0", "state_dict": module.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": [],
        "hparams_name": "kwargs", "hyper_parameters": {"hidden": 3, "lr": 0.5}, **changes,
    }  # fmt: skip


def equal(task: nn.Module, other: nn.Module) -> bool:
    mine, theirs = task.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.holds("CL-09")
def test_a_lightning_checkpoint_comes_over_with_arguments_and_tied_weights(tmp_path: Path) -> None:
    trained = Task(3)
    torch.save(lightning_checkpoint(trained), tmp_path / "last.ckpt")
    manifest, weights = import_weights(tmp_path / "last.ckpt", tmp_path / "out")
    assert (manifest.step, manifest.epoch, manifest.weights_only) == (120, 4, True)
    assert weights.aliases == {"net.head.weight": "net.embed.weight"}
    assert weights.left_out == ()
    assert verify_checkpoint(tmp_path / "out") == []
    task = Task.load_from_checkpoint(tmp_path / "out")
    assert task.hparams == {"hidden": 3, "lr": 0.5}
    assert equal(task, trained)
    assert task.net.head.weight is task.net.embed.weight


@pytest.mark.holds("CL-09")
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_files_of_any_age_and_shape(tmp_path: Path, zipped: bool) -> None:
    net = Net()
    shapes: dict[str, tuple[Any, str | None]] = {
        "plain": (net.state_dict(), None),
        "model": ({"model": net.state_dict(), "optimizer": {"state": {}}}, None),
        "deep": ({"ema": {"shadow": dict(net.state_dict())}, "model": 3}, "ema.shadow"),
        "ordered": (OrderedDict({**net.state_dict(), "extra": "text"}), None),
    }
    for name, (data, key) in shapes.items():
        torch.save(data, tmp_path / f"{name}.pt", _use_new_zipfile_serialization=zipped)
        _, weights = import_weights(tmp_path / f"{name}.pt", tmp_path / name, key=key, add_prefix="net.")
        assert weights.left_out == (("extra, which is no tensor but str",) if name == "ordered" else ())
        assert equal(Task.load_from_checkpoint(tmp_path / name, hidden=3).net, net)


@pytest.mark.holds("CL-09")
def test_safetensors_of_transformers_and_of_our_own_export(tmp_path: Path) -> None:
    net = Net()
    save_model(net, str(tmp_path / "one.safetensors"))
    import_weights(tmp_path / "one.safetensors", tmp_path / "one", add_prefix="net.")
    assert equal(Task.load_from_checkpoint(tmp_path / "one", hidden=3).net, net)

    export_weights(tmp_path / "one", tmp_path / "hf", max_shard_size=20)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    for source in (tmp_path / "hf", tmp_path / "hf/model.safetensors.index.json"):
        out = tmp_path / f"from-{source.name}"
        import_weights(source, out, strip_prefix="net.", add_prefix="net.")
        assert equal(Task.load_from_checkpoint(out, hidden=3).net, net)

    (tmp_path / "bin").mkdir()
    parts = {"pytorch_model-1.bin": ["embed.weight", "head.weight"], "pytorch_model-2.bin": ["norm.weight"]}
    for file, names in parts.items():
        torch.save({name: net.state_dict()[name] for name in names}, tmp_path / "bin" / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    (tmp_path / "bin/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    import_weights(tmp_path / "bin", tmp_path / "from-bin")
    with open_checkpoint(tmp_path / "from-bin") as reader:
        assert reader.model_names() == ["embed.weight", "norm.weight", "head.weight"]


class NotData:
    pass


def test_a_file_that_needs_more_than_data_is_refused_by_name(tmp_path: Path) -> None:
    net = Net()
    torch.save(lightning_checkpoint(net, hyper_parameters={"loss": NotData(), "path": Path("x")}), tmp_path / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"a\.ckpt needs more than data: pathlib\.PosixPath, .*NotData.*weights_only=False"
    ):
        import_weights(tmp_path / "a.ckpt", tmp_path / "out")
    torch.save(net, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"b\.pt needs more than data: .*Net"):
        import_weights(tmp_path / "b.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_taken_over_says_why(tmp_path: Path) -> None:
    torch.save(Net().state_dict(), tmp_path / "weights.pt")
    torch.save({"config": {"a": 1}, "nets": {"gan": {"w": torch.ones(1)}}}, tmp_path / "deep.pt")
    torch.save({"teacher": {"w": torch.ones(1)}}, tmp_path / "other.pt")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    save_file({"w": torch.ones(1), "a.w": torch.ones(1)}, tmp_path / "two.safetensors")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in (".metadata", "zero_to_fp32.py", "manifest.json", "notes.txt"):
        (tmp_path / f"with-{name}").mkdir()
        (tmp_path / f"with-{name}" / name).write_text("")
    for name, weight_map in (
        ("out", {"w": "../weights.pt"}),
        ("self", {"w": "self.index.json"}),
        ("gone", {"w": "x.bin"}),
    ):
        (tmp_path / f"{name}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "lacks.index.json").write_text(json.dumps({"weight_map": {"v": "two.safetensors"}}))
    import_weights(tmp_path / "weights.pt", tmp_path / "there")
    for source, options, text in (
        ("weights.pt", {"strip_prefix": "model."}, r"No tensor's name begins with 'model\.'.*embed\., head\., norm\."),
        ("two.safetensors", {"strip_prefix": "a."}, "two tensors have one name"),
        ("deep.pt", {}, r"holds no tensors where they usually are.*\['config', 'nets'\]"),
        ("deep.pt", {"key": "nets.gun"}, r"has no 'gun' on the way to 'nets\.gun'.*Did you mean 'gan'"),
        ("deep.pt", {"key": "config"}, "holds no tensors at 'config'"),
        ("other.pt", {}, "--key teacher"),
        ("tensor.pt", {}, "no tensors where they usually are.*Tensor"),
        ("text.pt", {}, r"text\.pt cannot be read"),
        ("empty.safetensors", {}, r"empty\.safetensors cannot be read"),
        ("with-.metadata", {}, "distributed checkpoint of torch.*dcp_to_torch"),
        ("with-zero_to_fp32.py", {}, "checkpoint of DeepSpeed.*zero_to_fp32"),
        ("with-manifest.json", {}, "a checkpoint of taskloom already"),
        ("with-notes.txt", {}, r"no weights by a known name.*\['notes\.txt'\]"),
        ("out.index.json", {}, "something else than files of weights beside it"),
        ("self.index.json", {}, "something else than files of weights beside it"),
        ("gone.index.json", {}, r"There is no file at .*x\.bin"),
        ("lacks.index.json", {}, r"two\.safetensors does not hold 'v'"),
        ("nowhere.pt", {}, "There is no file at"),
    ):
        with pytest.raises(CheckpointError, match=text):
            import_weights(tmp_path / source, tmp_path / "new", **options)
        assert not (tmp_path / "new").exists()
    with pytest.raises(CheckpointError, match="there exists"):
        import_weights(tmp_path / "weights.pt", tmp_path / "there")


OPEN_ALL = """
import sys, json
from pathlib import Path
from taskloom.checkpoint.foreign import CheckpointError, read_foreign
seen, watching = [], [False]
FORBIDDEN = ("exec", "compile", "subprocess", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
             "marshal", "pickle.find_class", "ctypes.dlopen", "socket", "code.__new__", "function.__new__")
def hook(event, arguments):
    if watching[0] and event.startswith(FORBIDDEN):
        seen.append([event, repr(arguments)[:200]])
sys.addaudithook(hook)
files = [Path(line) for line in sys.stdin.read().split()]
refused = 0
for number, file in enumerate(files):
    watching[0] = number > 1  # the first two, which are good and bad, bring the imports
    try:
        read_foreign(file)
    except CheckpointError:
        refused += 1
print(json.dumps({"seen": seen, "refused": refused}))
"""


@pytest.mark.holds("R14")
def test_malicious_and_fuzzed_files_run_nothing(tmp_path: Path) -> None:
    class Payload:
        def __init__(self, function: Any, *arguments: Any) -> None:
            self.call = (function, arguments)

        def __reduce__(self) -> Any:
            return self.call

    import builtins
    import os
    import runpy

    good = tmp_path / "good.pt"
    torch.save(lightning_checkpoint(Net()), good)
    payloads = [
        Payload(os.system, "touch pwned"),
        Payload(builtins.eval, "open('pwned', 'w')"),
        Payload(builtins.exec, "import os; os.system('touch pwned')"),
        Payload(runpy.run_path, "pwned.py"),
        Payload(builtins.__import__, "antigravity"),
        Payload(builtins.getattr, os, "system"),
    ]
    files = []
    for number, payload in enumerate(payloads):
        for zipped in (True, False):
            try:
                torch.save(
                    {"state_dict": payload}, tmp_path / f"{number}{zipped}.pt", _use_new_zipfile_serialization=zipped
                )
            except TypeError:  # a module cannot be pickled
                continue
            files.append(tmp_path / f"{number}{zipped}.pt")
    raw = [b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", b"\x80\x02cposix\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R."]
    for number, data in enumerate(raw):
        (tmp_path / f"raw{number}.pt").write_bytes(data)
        files.append(tmp_path / f"raw{number}.pt")
    chance, fuzzed = random.Random(0), []
    for number in range(80):
        data = bytearray(chance.choice([good, *files]).read_bytes())
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        (tmp_path / f"fuzzed{number}.pt").write_bytes(
            bytes(data[: chance.choice([len(data), chance.randrange(len(data))])])
        )
        fuzzed.append(tmp_path / f"fuzzed{number}.pt")
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL],
        input="\n".join(map(str, [good, files[0], *files, *fuzzed])),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["seen"] == []
    assert result["refused"] >= len(files) + 1
    assert not list(tmp_path.rglob("pwned"))
