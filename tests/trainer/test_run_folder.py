"""The folder of a run and the configurations in it: one per run, and whatever is there already, a run begins."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from loop.tiny import Line, loader, quiet

from taskloom import CheckpointPolicy, RunFolder, Trainer
from taskloom.loop.folder import make_run_folder


def trainer(root: Path, text: str | None = None, **arguments: Any) -> Trainer:
    policy = CheckpointPolicy(fsync=False, keep_last=-1)
    made = quiet(**{"max_epochs": 1, "checkpoint": policy, "run_dir": root, **arguments})
    made.config_text = text
    return made


@pytest.mark.holds("R55")
def test_runs_that_start_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: make_run_folder(RunFolder(tmp_path), "Line"), range(24)))
    assert len(set(folders)) == 24
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.holds("R55")
def test_every_start_of_a_run_keeps_its_configuration(tmp_path: Path) -> None:
    first = trainer(tmp_path, "seed: 0\n").fit(Line(), loader(4))
    folder = first.run_folder
    assert folder is not None
    for number in (1, 2, 3):
        again = trainer(tmp_path, f"seed: {number}\n", max_epochs=number + 1)
        assert again.fit(Line(), loader(4), ckpt_path="last").run_folder == folder
    texts = {path.name: path.read_text() for path in folder.glob("config*.yaml")}
    assert texts == {
        "config.yaml": "seed: 0\n",
        "config.1.yaml": "seed: 1\n",
        "config.2.yaml": "seed: 2\n",
        "config.3.yaml": "seed: 3\n",
    }
    assert not list(folder.glob("*.writing"))
    assert not list(folder.glob(".*.writing"))


@pytest.mark.holds("R55")
@pytest.mark.parametrize("left", ["config.1.yaml", ".config.1.yaml.writing", "config.yaml.bak", "config.7.yaml"])
def test_no_file_that_is_there_keeps_a_run_from_going_on(left: str, tmp_path: Path) -> None:
    folder = trainer(tmp_path, "seed: 0\n").fit(Line(), loader(4)).run_folder
    assert folder is not None
    (folder / left).write_text("left by something else\n")
    trainer(tmp_path, "seed: 1\n", max_epochs=2).fit(Line(), loader(4), ckpt_path="last")
    texts = {path.name: path.read_text() for path in folder.glob("config*.yaml")}
    assert "seed: 1\n" in texts.values()
    assert texts["config.yaml"] == "seed: 0\n"
    if not left.startswith("."):
        assert texts.get(left, (folder / left).read_text()) == "left by something else\n"


@pytest.mark.holds("R55")
def test_a_configuration_is_there_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies at the last moment leaves no half of a file under its name."""

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    made = trainer(tmp_path, "seed: 0\n", checkpoint=False, logger="csv")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            made.fit(Line(), loader(4))
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir() and path.name != "tmp"]
    assert not (folder / "config.yaml").exists()


@pytest.mark.holds("R55")
def test_a_folder_is_chosen_once_per_run(tmp_path: Path) -> None:
    made = trainer(tmp_path, "seed: 0\n")
    seen: list[Any] = []

    class Looks(Line):
        def on_train_epoch_end(self) -> None:
            seen.append(self.trainer.run_folder)

    result = made.fit(Looks(), loader(4))
    made.test(Looks(), loader(4), verbose=False)
    assert seen == [result.run_folder] == [made.run_folder]
    another = made.fit(Looks(), loader(4)).run_folder
    assert another != result.run_folder
