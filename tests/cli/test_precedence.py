"""Layers (defaults < files in order < environment < flags), lists, references, and the printed configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.command import Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TASK = "task: sample_tasks.Classifier\n"
LAYERS = ("first file", "second file", "environment", "flag")


def printed(run: Run, *args: str) -> dict[str, Any]:
    outcome = run(["fit", *args, "--print_config"])
    assert outcome.err == ""
    loaded: dict[str, Any] = yaml.safe_load(outcome.out)
    return loaded


@pytest.mark.holds("R26", "CF-08", "CL-04")
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(epochs=st.sets(st.sampled_from(LAYERS)), hidden=st.sets(st.sampled_from(LAYERS)), equal_default=st.booleans())
def test_highest_layer_wins_and_default_wins_over_nothing(
    epochs: set[str], hidden: set[str], equal_default: bool, run: Run, samples: Path, tmp_path: Path
) -> None:
    """For any subset of layers, each key has the value of the highest layer that sets it, be it equal to a default."""
    numbers = {layer: 64 if equal_default and layer == "flag" else 10 + number for number, layer in enumerate(LAYERS)}
    args = []
    for layer, name in (("first file", "a"), ("second file", "b")):
        lines = [f"max_epochs: {numbers[layer]}\n"] if layer in epochs else []
        lines += [f"task: {{init_args: {{hidden: {numbers[layer]}}}}}\n"] if layer in hidden and name == "b" else []
        if name == "a":
            below = f"  init_args: {{hidden: {numbers[layer]}}}\n" if layer in hidden else ""
            lines += [f"task:\n  class_path: sample_tasks.Classifier\n{below}"]
        (tmp_path / f"{name}.yaml").write_text("".join(lines))
        args += ["--config", str(tmp_path / f"{name}.yaml")]
    with pytest.MonkeyPatch.context() as patch:
        if "environment" in epochs:
            patch.setenv("TASKLOOM_MAX_EPOCHS", str(numbers["environment"]))
        if "environment" in hidden:
            patch.setenv("TASKLOOM_TASK__HIDDEN", str(numbers["environment"]))
        args += [f"--max_epochs={numbers['flag']}"] if "flag" in epochs else []
        args += [f"--task.hidden={numbers['flag']}"] if "flag" in hidden else []
        values = printed(run, *args)
    highest = [layer for layer in LAYERS if layer in epochs]
    assert values["max_epochs"] == (numbers[highest[-1]] if highest else None)
    highest = [layer for layer in LAYERS if layer in hidden]
    assert values["task"]["init_args"]["hidden"] == (numbers[highest[-1]] if highest else 64)


@pytest.mark.holds("R26")
def test_another_class_starts_without_the_arguments_of_the_one_before(run: Run, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "task: {class_path: sample_tasks.Classifier, init_args: {hidden: 3}}\noptimizer: adamw\n"
    )
    values = printed(run, "--config", str(tmp_path / "a.yaml"), "--task", "sample_tasks.WithoutOptimizer")
    assert values["task"] == {"class_path": "sample_tasks.WithoutOptimizer", "init_args": {"hidden": 64}}
    same = printed(run, "--config", str(tmp_path / "a.yaml"), "--task", "sample_tasks.Classifier", "--optimizer=null")
    assert same["task"]["init_args"]["hidden"] == 3
    assert same["optimizer"] is None


@pytest.mark.holds("R26")
def test_lists_are_replaced_appended_to_and_shortened(run: Run, samples: Path, tmp_path: Path) -> None:
    stopper = "{class_path: sample_tasks.Stopper, init_args: {monitor: %s}}"
    (tmp_path / "a.yaml").write_text(f"{TASK}callbacks: [{stopper % 'a'}]\n")
    (tmp_path / "b.yaml").write_text(f"callbacks+: {stopper % 'b'}\n")
    both = ["--config", str(tmp_path / "a.yaml"), "--config", str(tmp_path / "b.yaml")]

    def monitors(*args: str) -> list[str]:
        return [item["init_args"]["monitor"] for item in printed(run, *both, *args)["callbacks"]]

    assert monitors() == ["a", "b"]
    assert monitors("--callbacks+", "sample_tasks.Stopper", "--callbacks.monitor", "c") == ["a", "b", "c"]
    assert monitors("--callbacks-", "Stopper") == []
    assert monitors(f"--callbacks=[{stopper % 'd'}]") == ["d"]


@pytest.mark.holds("R26")
def test_references_are_resolved_after_all_layers(run: Run, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "task:\n  class_path: sample_tasks.Classifier\n  init_args:\n    hidden: ${data.batch_size}\n"
        "data: sample_tasks.Images\nrun_dir: runs/${task.hidden}-of-$${literal}-${max_epochs}\n"
    )
    values = printed(run, "--config", str(tmp_path / "a.yaml"))
    assert values["task"]["init_args"]["hidden"] == 32  # a default of the data
    assert values["run_dir"] == "runs/32-of-${literal}-null"
    later = printed(run, "--config", str(tmp_path / "a.yaml"), "--data.batch_size", "8", "--max_epochs", "2")
    assert later["task"]["init_args"]["hidden"] == 8
    assert later["run_dir"] == "runs/8-of-${literal}-2"


@pytest.mark.holds("CL-04", "R26")
def test_printed_configuration_can_be_fed_back(run: Run, samples: Path, tmp_path: Path) -> None:
    args = ["--task", "sample_tasks.WithoutOptimizer", "--data", "sample_tasks.Images", "--data.batch_size", "8"]
    args += ["--optimizer", "adamw", "--optimizer.lr", "3e-4", "--lr_scheduler", "step", "--lr_scheduler.step_size=3"]
    args += ["--callbacks+", "sample_tasks.Stopper", "--callbacks.monitor", "val/loss", "--gradient_clip_val=0.5"]
    args += ["--checkpoint", "{monitor: val/loss}", "--link", "data.num_classes=task.hidden", "--limit_batches=0.5"]
    args += ["--run_dir.name", "first", "--val_check_interval.every", "2 epochs"]
    first = run(["fit", *args, "--print_config"])
    assert (first.code, first.err) == (0, "")
    printed_values = yaml.safe_load(first.out)
    chosen = {"root": "runs", "name": "first", "project": None, "overwrite": False}
    assert printed_values["run_dir"] == {**chosen, "storage_options": None, "log_root": "runs"}
    assert printed_values["val_check_interval"]["every"] == "2 epochs"
    (tmp_path / "printed.yaml").write_text(first.out)
    again = run(["fit", "--config", str(tmp_path / "printed.yaml"), "--print_config"])
    assert again.out == first.out
    sources = run(["fit", *args, "--print_config=sources"])
    assert yaml.safe_load(sources.out) == yaml.safe_load(first.out)


@pytest.mark.holds("R26")
def test_sources_name_file_line_variable_flag_and_default(
    run: Run, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "max_steps: 3\ntask:\n  class_path: sample_tasks.Classifier\n  init_args:\n    hidden: 16\n"
        "callbacks:\n  - class_path: sample_tasks.Stopper\n    init_args: {monitor: a}\n"
    )
    monkeypatch.setenv("TASKLOOM_SEED", "7")
    outcome = run(["fit", "--config", str(config), "--task.lr", "0.5", "--print_config=sources"])
    found = {}
    for line in outcome.out.splitlines():
        value, _, source = line.partition("  # ")
        found[value.strip()] = source
    assert found["max_steps: 3"] == f"{config}:1"
    assert found["class_path: sample_tasks.Classifier"] == f"{config}:3"
    assert found["hidden: 16"] == f"{config}:5"
    assert found["monitor: a"] == f"{config}:8"
    assert found["patience: 3"] == "default"
    assert found["lr: 0.5"] == "flag --task.lr"
    assert found["seed: 7"] == "env TASKLOOM_SEED"


@pytest.mark.holds("CL-04")
def test_variables_reach_names_with_capitals_and_files(
    run: Run, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text("task: sample_tasks.WithoutOptimizer\noptimizer: sgd\nlr_scheduler: cosine\n")
    monkeypatch.setenv("TASKLOOM_CONFIG", str(tmp_path / "a.yaml"))
    monkeypatch.setenv("TASKLOOM_LR_SCHEDULER__T_MAX", "9")
    assert printed(run)["lr_scheduler"]["init_args"]["T_max"] == 9
    assert printed(run, "--lr_scheduler.T_max", "5")["lr_scheduler"]["init_args"]["T_max"] == 5


@pytest.mark.holds("CF-05", "CF-06")
def test_options_of_a_precision_by_its_name(run: Run, samples: Path, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{TASK}precision: 16-mixed\ngradient_clip_val: 0.5\ncheckpoint: true\n")
    args = ("--config", str(tmp_path / "a.yaml"), "--checkpoint.monitor=val/loss")
    values = printed(run, *args, "--precision.cache_enabled", "false", "--precision.scaler.init_scale", "8")
    assert values["precision"]["class_path"].endswith("MixedPrecision")
    assert values["precision"]["init_args"]["dtype"] == "16"
    assert values["precision"]["init_args"]["cache_enabled"] is False
    assert values["precision"]["init_args"]["scaler"]["init_scale"] == 8
    assert values["checkpoint"]["monitor"] == "val/loss"
    lost = run(["fit", *args, "--gradient_clip_val.norm_type", "1"])
    assert "a.yaml:3 gives it the plain value 0.5, which an option cannot be added to" in lost.err


@pytest.mark.holds("CL-02", "CF-05", "CF-06")
def test_shorthand_and_typed_options(run: Run, samples: Path, tmp_path: Path) -> None:
    """A class by its path or by its bare name once imported, and records of options without a class path."""
    values = printed(
        run,
        *("--task", "sample_tasks.Classifier", "--task.decoder", "Decoder", "--task.decoder.size=4"),
        *("--checkpoint.monitor", "val/loss", "--checkpoint.mode=max", "--gradient_clip_val.max_value", "0.5"),
        *("--limit_batches.train", "10", "--accumulate_grad_batches", "{0: 1, 5: 4}", "--strategy.class_path=single"),
    )
    assert values["task"]["init_args"]["decoder"] == {
        "class_path": "sample_tasks.Decoder",
        "init_args": {"size": 4, "activation": "relu"},
    }
    assert (values["checkpoint"]["monitor"], values["checkpoint"]["mode"]) == ("val/loss", "max")
    assert values["gradient_clip_val"]["max_value"] == 0.5
    assert values["limit_batches"]["train"] == 10
    assert {int(epoch): number for epoch, number in values["accumulate_grad_batches"].items()} == {0: 1, 5: 4}
    assert values["strategy"]["class_path"].endswith("SingleStrategy")


@pytest.mark.holds("CL-04")
def test_printing_needs_no_task(run: Run, samples: Path) -> None:
    values = printed(run)
    assert values["task"] is None
    assert values["precision"] == "32-true"
