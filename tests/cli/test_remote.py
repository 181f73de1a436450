"""The command line with runs in stores."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from cli.command import Run
from cli.test_end_to_end import CONFIG, MODULE
from stores import Bucket

from taskloom.checkpoint import latest_checkpoint
from taskloom.checkpoint.place import as_path, children, read_bytes

ROOT = "memory://bucket/runs"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    (tmp_path / "net.py").write_text(MODULE)
    (tmp_path / "cfg.yaml").write_text(CONFIG)


def only_run(root: str = ROOT) -> str:
    [(folder, _)] = children(as_path(root))
    return str(folder)


@pytest.mark.usefixtures("memory")
@pytest.mark.holds("CK-01", "CK-19", "R55")
def test_a_run_in_a_store_is_trained_tested_and_continued(run: Run) -> None:
    outcome = run(["fit", "--config", "cfg.yaml", "--run_dir", ROOT, "--task.hidden", "5"])
    assert outcome.code == 0, outcome.err
    folder = only_run()
    saved = yaml.safe_load(read_bytes(as_path(f"{folder}/config.yaml")))
    assert (saved["run_dir"], saved["task"]["init_args"]["hidden"]) == (ROOT, 5)

    newest = str(latest_checkpoint(f"{folder}/checkpoints")[0]).rpartition("/")[2]
    for checkpoint in (folder, f"{folder}/checkpoints/{newest}"):
        tested = run(["test", "--ckpt_path", checkpoint])
        assert tested.code == 0, tested.err
        assert "test/loss" in tested.out
    best = run(["validate", "--ckpt_path", "best", "--run_dir", ROOT])
    assert "val/loss" in best.out, best.err
    continued = run(["fit", "--ckpt_path", folder, "--max_epochs", "3"])
    assert continued.code == 0, continued.err
    assert only_run() == folder
    assert yaml.safe_load(read_bytes(as_path(f"{folder}/config.1.yaml")))["max_epochs"] == 3
    for command in (["verify"], ["show"], ["ls", "--json"]):
        looked = run(["ckpt", *command, folder if command[0] == "ls" else f"{folder}/checkpoints/{newest}"])
        assert looked.code == 0, looked.err + looked.out
        assert newest in looked.out
    from_store = run(["validate", "--config", f"{folder}/config.yaml", "--ckpt_path", folder])
    assert "val/loss" in from_store.out, from_store.err


@pytest.mark.holds("CK-01")
def test_options_of_a_store_come_from_the_configuration(run: Run, bucket: Bucket) -> None:
    place = {"root": f"{bucket.url}/runs", "name": "mine", "storage_options": bucket.options}
    Path("store.yaml").write_text(yaml.safe_dump({"run_dir": {"class_path": "taskloom.RunFolder", "init_args": place}}))
    outcome = run(["fit", "--config", "cfg.yaml", "--config", "store.yaml", "--max_epochs", "1"])
    assert outcome.code == 0, outcome.err
    assert "runs/mine/config.yaml" in bucket.names()
    last = run(["validate", "--config", "store.yaml", "--ckpt_path", "last"])
    assert "val/loss" in last.out, last.err


def test_a_configuration_that_is_not_there(run: Run) -> None:
    outcome = run(["fit", "--config", "memory://nothing/cfg.yaml"])
    assert outcome.code == 2
    assert "memory://nothing/cfg.yaml: The configuration file cannot be read" in outcome.err
