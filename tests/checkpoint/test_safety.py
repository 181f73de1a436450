"""Loading runs no code: a fresh interpreter opens everything under an audit hook."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import torch
import xxhash

from taskloom.checkpoint import write_checkpoint
from taskloom.checkpoint.manifest import checksum

OPEN_ALL = """
import sys, json
from pathlib import Path
from taskloom.checkpoint import CheckpointError, open_checkpoint, latest_checkpoint, verify_checkpoint
seen, watching = [], [False]
FORBIDDEN = ("import", "exec", "compile", "subprocess", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
             "marshal", "pickle", "ctypes", "socket", "code.__new__", "function.__new__")
def hook(event, arguments):
    if watching[0] and event.startswith(FORBIDDEN):
        seen.append([event, repr(arguments)[:200]])
sys.addaudithook(hook)
outcomes = {"good": 0, "refused": 0}
folders = [Path(line) for line in sys.stdin.read().split()]
watching[0] = True
for folder in folders:
    try:
        with open_checkpoint(folder) as reader:
            reader.state, reader.config
            for _ in reader.model_tensors(): pass
            for _ in reader.optimizer_tensors(): pass
        outcomes["good"] += 1
    except CheckpointError:
        outcomes["refused"] += 1
    verify_checkpoint(folder)
    latest_checkpoint(folder.parent)
watching[0] = False
print(json.dumps({"seen": seen, **outcomes}))
"""


def open_all(folders: list[Path]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", OPEN_ALL],
        input="\n".join(map(str, folders)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rich_state() -> dict[str, object]:
    import numpy as np

    return {
        "random": random.getstate(),
        "numpy": np.random.get_state(),
        "types": [
            torch.bfloat16,
            torch.device("cuda:1"),
            torch.Size([1]),
            Path("a"),
            {1, 2},
            float("nan"),
            b"x",
            np.float32(1),
            1j,
        ],
    }


def copy_of(folder: Path, target: Path, name: str, data: bytes, *, resigned: bool) -> Path:
    """Copy a checkpoint with one file changed; resigned, its sizes, hashes and checksum match the change."""
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / path.relative_to(folder)).write_bytes(path.read_bytes())
    (target / name).write_bytes(data)
    if resigned:
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["files"][name] = {"bytes": len(data), "xxh3_64": xxhash.xxh3_64_hexdigest(data)}
        manifest.pop("checksum")
        manifest["checksum"] = checksum(manifest)
        (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_loading_good_malicious_and_fuzzed_checkpoints_runs_nothing(tmp_path, content):
    good = tmp_path / "good/step-00000010"
    write_checkpoint(good, content(state=rich_state()), fsync=False)
    payload = b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR."
    malicious = {
        "state.json": [
            b'{"x": {"$import": "os"}}',
            b'{"x": {"__reduce__": ["os.system", "touch pwned"]}}',
            b'{"x": {"$dtype": "__class__"}}',
            b'{"x": {"$device": "meta:__import__"}}',
            b"[" * 200_000,
            b'{"$scalar": {"dtype": "O", "hex": "00"}}',
            payload,
        ],
        "state.safetensors": [payload],
        "config.yaml": [b"!!python/object/apply:os.system ['touch pwned']\n"],
        "model/model-00001-of-00001.safetensors": [payload, b"PK\x03\x04" + payload],
        "model/model.safetensors.index.json": [b'{"weight_map": {"w": "../../x.py"}}', b"9" * 5000],
    }
    forged = [
        copy_of(good, tmp_path / f"forged/{name}/{number}/step-1", name, data, resigned=True)
        for name, versions in malicious.items()
        for number, data in enumerate(versions)
    ]
    chance = random.Random(0)
    fuzzed = []
    for number in range(150):
        path = chance.choice([path for path in good.rglob("*") if path.is_file()])
        data = bytearray(path.read_bytes())
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        name = str(path.relative_to(good))
        fuzzed.append(
            copy_of(good, tmp_path / f"fuzzed/{number}/step-1", name, bytes(data), resigned=name != "manifest.json")
        )
    result = open_all([good, *forged, *fuzzed])
    assert result["seen"] == []
    assert result["good"] >= 1
    assert result["refused"] >= len(forged) - 1  # the YAML is text that loading a checkpoint does not parse
    assert result["good"] + result["refused"] == 1 + len(forged) + len(fuzzed)
    assert not list(tmp_path.rglob("pwned"))


def test_the_hook_would_have_seen_a_pickle(tmp_path, content):
    """The proof above is worth something only if the hook notices code that does run."""
    loads_a_pickle = r"""import pickle; pickle.loads(b'cos\nsystem\n(S"true"\ntR.')"""
    watched = OPEN_ALL.replace("watching[0] = False", f"{loads_a_pickle}\nwatching[0] = False")
    done = subprocess.run([sys.executable, "-c", watched], input="", capture_output=True, text=True, check=True)
    assert "os.system" in [event for event, _ in json.loads(done.stdout)["seen"]]
