from __future__ import annotations

import json
import math
import os

import pytest
import torch
from checkpoint.contents import make_content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
from taskloom.core.errors import ConfigError, TaskloomWarning


def keeper(folder, run_id="run-a", name="", **settings):
    return CheckpointKeeper(folder, CheckpointPolicy(**{"fsync": False, **settings}), run_id, name=name)


def measured(step, value, **changes):
    return make_content(step, metrics={"m": (value, step)}, **changes)


def steps(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir() if path.name.startswith("step-"))


def pointer(folder, name):
    return json.loads((folder / name).read_text())


def test_newest_are_kept_and_the_pointer_follows(tmp_path):
    kept = keeper(tmp_path, keep_last=2)
    for step in (1, 2, 3, 4):
        assert kept.save(make_content(step)) == tmp_path / f"step-{step:08d}"
        assert pointer(tmp_path, "last.json") == {"checkpoint": f"step-{step:08d}", "step": step, "run_id": "run-a"}
    assert steps(tmp_path) == [3, 4]
    assert kept.kept == [tmp_path / "step-00000003", tmp_path / "step-00000004"]
    assert kept.last_path == tmp_path / "step-00000004"
    assert (kept.best_path, kept.best_score) == (None, None)
    assert not (tmp_path / "best.json").exists()


@pytest.mark.parametrize(("mode", "best", "left"), [("min", 2, [2, 4, 6]), ("max", 3, [1, 3, 6])])
def test_best_are_kept_beside_the_newest(tmp_path, mode, best, left):
    kept = keeper(tmp_path, monitor="m", mode=mode, save_top_k=2, keep_last=1)
    for step, value in enumerate([0.6, 0.1, 0.9, 0.2, 0.5, 0.3], 1):
        kept.save(measured(step, value))
    assert steps(tmp_path) == left
    assert kept.best_path == tmp_path / f"step-{best:08d}"
    assert kept.best_score == {"min": 0.1, "max": 0.9}[mode]
    entry = pointer(tmp_path, "best.json")["best"][f"m ({mode})"]
    assert (entry["checkpoint"], entry["value"], entry["run_id"]) == (f"step-{best:08d}", kept.best_score, "run-a")
    assert best_checkpoint(tmp_path) == kept.best_path


def test_equal_values_keep_the_earlier(tmp_path):
    kept = keeper(tmp_path, monitor="m", keep_last=0)
    assert kept.save(measured(1, 0.5)) is not None
    assert kept.save(measured(2, 0.5)) is None
    assert steps(tmp_path) == [1]


def test_without_newest_only_an_improvement_is_written(tmp_path):
    kept = keeper(tmp_path, monitor="m", keep_last=0)
    results = [kept.save(measured(step, value)) for step, value in enumerate([3.0, 4.0, 2.0, 5.0], 1)]
    assert [path is not None for path in results] == [True, False, True, False]
    assert steps(tmp_path) == [3]
    assert latest_checkpoint(tmp_path)[0] == kept.best_path


@pytest.mark.parametrize(
    "policy", [{"save_top_k": -1}, {"keep_last": -1}, {"monitor": "m", "save_top_k": -1, "keep_last": 0}]
)
def test_minus_one_keeps_everything(tmp_path, policy):
    kept = keeper(tmp_path, **policy)
    for step in range(1, 5):
        kept.save(measured(step, float(step)))
    assert steps(tmp_path) == [1, 2, 3, 4]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.floats(-10, 10) | st.just(math.nan), min_size=1, max_size=6),
    mode=st.sampled_from(["min", "max"]),
    top=st.integers(0, 3),
    newest=st.integers(1, 3),
)
@pytest.mark.filterwarnings("ignore::taskloom.core.errors.TaskloomWarning")
def test_what_is_left_is_the_newest_and_the_best(tmp_path_factory, values, mode, top, newest):
    folder = tmp_path_factory.mktemp("keep")
    kept = keeper(folder, monitor="m", mode=mode, save_top_k=top, keep_last=newest)
    for step, value in enumerate(values, 1):
        kept.save(measured(step, value))
    finite = [
        (value if mode == "min" else -value, step) for step, value in enumerate(values, 1) if math.isfinite(value)
    ]
    best = [step for _, step in sorted(finite)][:top]
    last = range(max(1, len(values) - newest + 1), len(values) + 1)
    assert steps(folder) == sorted({*best, *last})
    assert (kept.best_path is None) == (not best)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_not_finite_is_saved_but_never_best(tmp_path, value):
    kept = keeper(tmp_path, monitor="m")
    kept.save(measured(1, 5.0))
    with pytest.warns(TaskloomWarning, match=r"The monitored metric 'm' is .* at step 2.*never best"):
        kept.save(measured(2, value))
    assert (kept.best_score, steps(tmp_path)) == (5.0, [1, 2])
    assert pointer(tmp_path, "best.json")["best"]["m (min)"]["step"] == 1
    assert pointer(tmp_path, "last.json")["step"] == 2
    assert str(open_checkpoint(tmp_path / "step-00000002").manifest.metrics["m"][0]) == str(value)


def test_missing_metric_names_those_that_exist(tmp_path):
    kept = keeper(tmp_path, monitor="val/los")
    known = r"'val/los', which was not logged by step 10\. Logged so far: train/loss, val/loss.*"
    with pytest.raises(ConfigError, match=known + r"Did you mean 'val/loss'"):
        kept.save(make_content(10, metrics={"val/loss": (1.0, 10), "train/loss": (1.0, 10)}))
    assert not tmp_path.joinpath("last.json").exists()
    assert kept.save(make_content(11), on_schedule=False) == tmp_path / "step-00000011"
    assert kept.best_path is None


def test_metric_of_an_earlier_step_is_refused_on_schedule_and_unranked_otherwise(tmp_path):
    kept = keeper(tmp_path, monitor="m")
    kept.save(measured(1, 5.0))
    stale = make_content(2, metrics={"m": (1.0, 1)})
    with pytest.raises(
        ConfigError, match=r"'m', measured at step 1, and a checkpoint is due at step 2.*equal to val_check_interval"
    ):
        kept.save(stale)
    kept.save(stale, on_schedule=False)
    assert (kept.best_score, steps(tmp_path)) == (5.0, [1, 2])
    kept.save(measured(3, 4.0), on_schedule=False)
    assert kept.best_score == 4.0


def test_policies_share_a_checkpoint_and_leave_each_others_alone(tmp_path, killed_after):
    best = keeper(tmp_path, monitor="m", save_top_k=1, keep_last=0)
    newest = keeper(tmp_path, keep_last=2, every="1 steps")
    contents = [measured(step, value) for step, value in enumerate([0.5, 0.1, 0.9, 0.8, 0.7], 1)]
    for content in contents:
        best.save(content)
        newest.save(content)
        path = tmp_path / f"step-{content.step:08d}"
        assert open_checkpoint(path).manifest.save_id == content.save_id
    assert steps(tmp_path) == [2, 4, 5]
    assert best.kept == [tmp_path / "step-00000002"]
    assert newest.kept == [tmp_path / "step-00000004", tmp_path / "step-00000005"]


def test_shared_checkpoint_is_written_once(tmp_path):
    content = measured(1, 0.5)
    first, second = keeper(tmp_path, monitor="m"), keeper(tmp_path, keep_last=3)
    first.save(content)
    weights = tmp_path / "step-00000001/model/model-00001-of-00001.safetensors"
    before = weights.stat().st_ino
    second.save(content)
    assert weights.stat().st_ino == before
    second.save(measured(1, 0.5))  # the same step again, but another state
    assert weights.stat().st_ino != before


def test_full_policy_replaces_what_a_weights_only_one_saved(tmp_path):
    content = make_content(1)
    weights, full = keeper(tmp_path, weights_only=True), keeper(tmp_path)
    weights.save(content)
    assert open_checkpoint(tmp_path / "step-00000001").manifest.weights_only
    full.save(content)
    assert not open_checkpoint(tmp_path / "step-00000001", verify=True).manifest.weights_only
    weights.save(content)
    assert not open_checkpoint(tmp_path / "step-00000001").manifest.weights_only


def test_policies_with_equal_settings_coexist(tmp_path):
    pair = [keeper(tmp_path, monitor="m", name=name) for name in ("one", "two")]
    for step, value in enumerate([0.2, 0.5, 0.9], 1):
        content = measured(step, value)
        for kept in pair:
            kept.save(content)
    pair[0].save(measured(4, 0.1))
    pair[0].save(measured(5, 0.8))
    assert [kept.best_score for kept in pair] == [0.1, 0.2]
    assert steps(tmp_path) == [1, 3, 4, 5]


def test_other_runs_checkpoints_are_neither_deleted_nor_replaced(tmp_path):
    theirs = keeper(tmp_path, run_id="run-b", keep_last=3)
    theirs.save(make_content(2, run_id="run-b"))
    ours = keeper(tmp_path, keep_last=1)
    ours.save(make_content(1))
    with pytest.raises(
        CheckpointError, match=r"step-00000002 belongs to the run 'run-b', so 'run-a' does not replace it.*run_dir"
    ):
        ours.save(make_content(2))
    ours.save(make_content(3))
    assert steps(tmp_path) == [2, 3]
    stranger = keeper(tmp_path, run_id="run-c", keep_last=1)
    stranger.load_state_dict(ours.state_dict())  # told to keep what another run wrote
    stranger.save(make_content(4, run_id="run-c"))
    assert steps(tmp_path) == [2, 3, 4]


def test_what_a_pointer_still_names_is_never_deleted(tmp_path):
    first = keeper(tmp_path, monitor="m")
    first.save(measured(1, 0.1))
    resumed = keeper(tmp_path)  # no metric is monitored any more, and best.json is as it was
    resumed.load_state_dict(first.state_dict())
    (tmp_path / "kept.json").unlink()  # and the first policy's claim is lost
    for step in (2, 3):
        resumed.save(measured(step, 0.5))
    assert steps(tmp_path) == [1, 3]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000001"


def test_pointer_is_replaced_whole(tmp_path):
    kept = keeper(tmp_path)
    kept.save(make_content(1))
    with (tmp_path / "last.json").open() as reader:
        kept.save(make_content(2))
        assert json.loads(reader.read())["step"] == 1  # whoever is reading sees the old one to its end
    assert pointer(tmp_path, "last.json")["step"] == 2


def test_pinned_checkpoint_stays(tmp_path):
    kept = keeper(tmp_path, keep_last=1)
    kept.pin(kept.save(make_content(1)))
    kept.save(make_content(2))
    kept.save(make_content(3))
    assert steps(tmp_path) == [1, 3]
    kept.pin(tmp_path / "step-00000001", pinned=False)
    kept.save(make_content(4))
    assert steps(tmp_path) == [4]


def test_resumed_keeper_goes_on_where_the_other_stopped(tmp_path):
    def keep():
        return keeper(tmp_path, monitor="m", save_top_k=2, keep_last=1)

    first = keep()
    for step, value in enumerate([0.3, 0.9], 1):
        first.save(measured(step, value))
    state = json.loads(json.dumps(first.state_dict()))  # what the checkpoint of step 3 holds
    first.save(measured(3, 0.5))
    resumed = keep()
    resumed.load_state_dict(state, resumed_from=tmp_path / "step-00000003")
    assert (resumed.kept, resumed.best_path, resumed.best_score) == (first.kept, first.best_path, first.best_score)
    for kept_value, step in ((0.1, 4), (0.2, 5), (0.8, 6)):
        resumed.save(measured(step, kept_value))
    assert steps(tmp_path) == [3, 4, 5, 6]  # the one resumed from is left alone by this process
    last = keep()
    last.load_state_dict(resumed.state_dict(), resumed_from=tmp_path / "step-00000006")
    last.save(measured(7, 0.7))
    assert steps(tmp_path) == [4, 5, 6, 7]


def test_best_that_is_gone_at_resume_is_a_warning(tmp_path):
    first = keeper(tmp_path, monitor="m", save_top_k=2)
    for step, value in enumerate([0.1, 0.3, 0.5], 1):
        first.save(measured(step, value))
    import shutil

    shutil.rmtree(tmp_path / "step-00000001")
    resumed = keeper(tmp_path, monitor="m", save_top_k=2)
    with pytest.warns(TaskloomWarning, match=r"step-00000001 in .* was kept and is gone"):
        resumed.load_state_dict(first.state_dict())
    assert resumed.best_score == 0.3


def test_another_metric_after_resume_forgets_the_old_values(tmp_path):
    first = keeper(tmp_path, monitor="m")
    first.save(measured(1, 0.1))
    other = keeper(tmp_path, monitor="f1", mode="max")
    other.load_state_dict(first.state_dict())
    assert (other.best_path, other.last_path) == (None, tmp_path / "step-00000001")


def test_state_is_data_and_the_same_for_the_same_history(tmp_path):
    states = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        kept = keeper(folder, monitor="m")
        kept.save(measured(1, 0.1))
        states.append(kept.state_dict())
    assert states[0] == states[1] == json.loads(json.dumps(states[0]))


def test_damaged_checkpoint_in_the_way_is_moved_aside(tmp_path):
    kept = keeper(tmp_path)
    path = kept.save(make_content(1))
    (path / "manifest.json").write_text("{")
    with pytest.warns(TaskloomWarning, match=r"step-00000001 is in the way.*it is now step-00000001\.damaged-1"):
        kept.save(make_content(1))
    assert verify_checkpoint(path) == []
    assert (tmp_path / "step-00000001.damaged-1/model").is_dir()


def test_failed_save_moves_nothing_and_deletes_nothing(tmp_path):
    kept = keeper(tmp_path)
    kept.save(make_content(1))
    with pytest.raises(CheckpointError, match=r"state\.hook is not data"):
        kept.save(make_content(2, state={"hook": print}))
    with pytest.raises(CheckpointError, match=r"'w' is not complete"):
        kept.save(make_content(2, model=[Shard("w", torch.ones(2), (4,), (0,))]))
    assert steps(tmp_path) == [1]
    assert pointer(tmp_path, "last.json")["step"] == 1
    assert kept.last_path == tmp_path / "step-00000001"


def test_read_only_folder_is_an_error_with_the_remedy(unwritable):
    with pytest.raises(CheckpointError, match=r"could not be written.*run_dir"):
        keeper(unwritable / "checkpoints").save(make_content(1))


def test_killed_at_any_change_leaves_good_pointers_and_a_good_checkpoint(tmp_path, killed_after):
    def start(folder):
        kept = keeper(folder, monitor="m")
        kept.save(measured(1, 0.5))
        kept.save(measured(2, 0.7))
        return kept

    reference = start(tmp_path / "reference")
    total = killed_after(None, lambda: reference.save(measured(3, 0.1)))
    for survives in range(total):
        folder = tmp_path / f"kill-{survives}"
        kept = start(folder)
        killed_after(survives, lambda kept=kept: kept.save(measured(3, 0.1)))
        last = folder / pointer(folder, "last.json")["checkpoint"]
        assert verify_checkpoint(last) == [], survives
        for path in folder.glob("step-*"):
            assert verify_checkpoint(path) == [], (
                survives
            )  # nothing half written or half deleted has a checkpoint's name
        assert verify_checkpoint(best_checkpoint(folder)) == [], survives
        found, _ = latest_checkpoint(folder)
        resumed = keeper(folder, monitor="m")
        resumed.load_state_dict({"monitor": "m", "mode": "min", "entries": []}, resumed_from=found)
        resumed.save(measured(4, 0.05))
        assert latest_checkpoint(folder)[0] == folder / "step-00000004"
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")], survives


def test_killed_between_the_renames_of_a_replacement_the_old_one_is_put_back(tmp_path):
    kept = keeper(tmp_path)
    path = kept.save(make_content(1))
    from taskloom.checkpoint.staging import hidden

    os.rename(path, hidden(path, "replaced", "run-a"))
    found, _ = latest_checkpoint(tmp_path)
    assert found is not None
    assert verify_checkpoint(found) == []
    keeper(tmp_path, keep_last=2).save(make_content(2))
    assert steps(tmp_path) == [1, 2]


def test_leftovers_of_other_runs_are_not_touched(tmp_path):
    (tmp_path / ".step-00000001.writing-00000000").mkdir()
    write_checkpoint(tmp_path / "other", make_content(1, run_id="run-b"))
    keeper(tmp_path).save(make_content(2))
    assert (tmp_path / ".step-00000001.writing-00000000").is_dir()
    assert (tmp_path / "other").is_dir()
