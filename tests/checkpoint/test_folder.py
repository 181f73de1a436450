from __future__ import annotations

import json

import pytest

from taskloom.checkpoint import (
    CheckpointError,
    CheckpointKeeper,
    CheckpointPolicy,
    best_checkpoint,
    latest_checkpoint,
    write_checkpoint,
)
from taskloom.core.errors import TaskloomWarning


def write(folder, content, *steps):
    for step in steps:
        write_checkpoint(folder / f"step-{step:08d}", content(step), fsync=False)


def test_newest_checkpoint_is_the_one_written_last_not_the_one_with_the_highest_step(tmp_path, content):
    write(tmp_path, content, 10, 20)
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-00000020", [])
    write(tmp_path, content, 15)  # a run that went back to step 10 and on from there
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-00000015", [])


def test_walking_back_says_what_was_passed_over_and_why(tmp_path, content):
    write(tmp_path, content, 1, 2, 3, 4, 5)
    weights = tmp_path / "step-00000005/model/model-00001-of-00001.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    state = tmp_path / "step-00000004/state.json"
    state.write_bytes(state.read_bytes().replace(b"4", b"5"))
    (tmp_path / "step-00000003/manifest.json").write_text("{")
    (tmp_path / ".step-00000006.writing-0123abcd").mkdir()
    (tmp_path / "step-00000007").mkdir()
    write_checkpoint(tmp_path / "step-00000008", content(8), fsync=False, weights_only=True)
    found, skipped = latest_checkpoint(tmp_path)
    assert found == tmp_path / "step-00000002"
    text = "\n".join(skipped)
    assert len(skipped) == 6
    for step, reason in [
        (8, "holds only weights"),
        (7, "no manifest.json"),
        (6, "did not finish"),
        (5, "is truncated"),
        (4, "damaged or changed"),
        (3, "cannot be read"),
    ]:
        assert any(f"{step:08d}" in line and reason in line for line in skipped), (step, text)
    assert latest_checkpoint(tmp_path, for_resume=False)[0] == tmp_path / "step-00000008"


def test_nothing_to_resume_from(tmp_path):
    assert latest_checkpoint(tmp_path) == (None, [])
    assert latest_checkpoint(tmp_path / "gone") == (None, [f"{tmp_path / 'gone'}: it does not exist"])


def test_named_checkpoints_count_and_other_folders_do_not(tmp_path, content):
    write(tmp_path, content, 1)
    write_checkpoint(tmp_path / "final", content(2))
    (tmp_path / "notes").mkdir()
    assert latest_checkpoint(tmp_path) == (tmp_path / "final", [])


def test_best_by_each_metric(tmp_path, content):
    with pytest.raises(
        CheckpointError, match=r"best\.json names no best checkpoint.*CheckpointPolicy\(monitor='val/loss'\)"
    ):
        best_checkpoint(tmp_path)
    loss = CheckpointKeeper(tmp_path, CheckpointPolicy(monitor="loss"), "run-a")
    accuracy = CheckpointKeeper(tmp_path, CheckpointPolicy(monitor="accuracy", mode="max"), "run-a")
    for step, values in enumerate([(3.0, 0.1), (1.0, 0.2), (2.0, 0.9)], 1):
        saved = content(step, metrics={"loss": (values[0], step), "accuracy": (values[1], step)})
        loss.save(saved)
        accuracy.save(saved)
    assert best_checkpoint(tmp_path, "loss") == tmp_path / "step-00000002"
    assert best_checkpoint(tmp_path, "accuracy") == tmp_path / "step-00000003"
    with pytest.raises(CheckpointError, match=r"a best checkpoint by each of accuracy, loss"):
        best_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"names no best checkpoint by 'f1'"):
        best_checkpoint(tmp_path, "f1")


def test_best_that_is_gone_says_so(tmp_path):
    (tmp_path / "best.json").write_text(json.dumps({"best": {"m (min)": {"checkpoint": "step-1", "monitor": "m"}}}))
    with pytest.raises(CheckpointError, match=r"names step-1, which is gone.*ckpt_path='last'"):
        best_checkpoint(tmp_path)


def test_damaged_pointer_is_ignored_with_a_warning(tmp_path):
    (tmp_path / "best.json").write_text("{")
    with (
        pytest.warns(TaskloomWarning, match=r"best\.json is damaged and is ignored"),
        pytest.raises(CheckpointError, match="names no best"),
    ):
        best_checkpoint(tmp_path)
