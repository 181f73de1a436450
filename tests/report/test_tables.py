"""Numbers, tables and lines as people read them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from taskloom.report import batch_line, closing_lines, next_commands, render_metrics, start_lines
from taskloom.report.text import format_count, format_duration, format_rate, format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (300, "300"), (12345.678, "12345.7"), (1.23e-5, "1.230e-05"), (2.5e7, "2.500e+07"),
     (0.0, "0"), (math.nan, "nan"), (-math.inf, "-inf"), (-0.5, "-0.5"), (torch.tensor(0.25), "0.25")],
)  # fmt: skip
def test_values(value: Any, text: str) -> None:
    assert format_value(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999, "999"), (1_234, "1.2 K"), (999_999, "1.0 M"), (7_100_000_000, "7.1 B"), (2 * 10**15, "2,000.0 T")],
)
def test_counts(count: int, text: str) -> None:
    assert format_count(count) == text


def test_durations_and_rates() -> None:
    assert [format_duration(seconds) for seconds in (0.04, 59.94, 61, 3725)] == ["0.0 s", "59.9 s", "1:01", "1:02:05"]
    assert [format_rate(rate) for rate in (0, 0.4, 38.14)] == ["", "2.5 s/batch", "38.1 batches/s"]


def test_metrics_of_one_loader() -> None:
    text = render_metrics([{"test/loss": 0.5, "test/accuracy": 0.75}], stage="test", terminal=False)
    assert text == "test\nmetric         value\ntest/loss        0.5\ntest/accuracy   0.75"


def test_metrics_of_several_loaders_stand_side_by_side() -> None:
    text = render_metrics([{"a": 1, "b": 2}, {"a": 3}], loaders=["clean", "noisy"], terminal=False)
    assert text == "metric  clean  noisy\na           1      3\nb           2"
    assert "loader 0  loader 1" in render_metrics([{"a": 1}, {"a": 3}], terminal=False)


def test_metrics_on_a_terminal_are_drawn_and_not_read_as_markup() -> None:
    text = render_metrics([{"[bold]x[/bold]": 1}], terminal=True, width=60)
    assert "┃" in text
    assert "[bold]x[/bold]" in text


def test_nothing_to_show() -> None:
    assert render_metrics([{}], stage="test") == "test: nothing was logged"


def test_the_arithmetic_of_a_batch() -> None:
    assert batch_line(32, 4, 2) == "32 × accumulation 4 × data-parallel 2 = 256 samples per step"
    assert batch_line(None, 4, 1) == "unknown size × accumulation 4 × data-parallel 1 per step"


def test_the_start_says_what_was_chosen_and_why() -> None:
    text = start_lines(
        device="cpu",
        precision="32-true",
        strategy="single",
        batch=batch_line(8, 1, 1),
        chosen={"accelerator=cpu": "this machine has no GPU"},
        run_folder="runs/x",
        resumed_from="runs/x/checkpoints/step-00000005",
    )
    assert "accelerator=cpu, because this machine has no GPU" in text
    assert "8 × accumulation 1 × data-parallel 1 = 8 samples per step" in text
    assert "from runs/x/checkpoints/step-00000005" in text
    assert text.splitlines()[-1].split() == ["Run", "folder", "runs/x"]


def test_the_end_says_where_everything_is_and_what_to_type_next() -> None:
    commands = next_commands(
        config="runs/x/config.yaml",
        checkpoint="runs/x/checkpoints/best one",
        tests=True,
        viewers=["", "tensorboard --logdir runs/x"],
    )
    text = closing_lines(
        status="finished",
        steps=500,
        epochs=1,
        seconds=10.0,
        steps_this_run=100,
        aside={"epoch boundaries": 0.25, "validation": 90.0},
        metrics={"val/loss": 0.25},
        run_folder="runs/x",
        best="best one",
        best_score="val/loss 0.25",
        last="last one",
        logs=["runs/x/metrics.csv", ""],
        next_commands=commands,
    )
    assert text.splitlines() == [
        "Finished    500 steps, 1 epoch in 10.0 s (10.0 steps/s)",
        "Aside       epoch boundaries 0.2 s, validation 1:30",
        "Metrics     val/loss 0.25",
        "Run folder  runs/x",
        "Best        best one (val/loss 0.25)",
        "Last        last one",
        "Logs        runs/x/metrics.csv",
        "Next        task test --config runs/x/config.yaml --ckpt_path 'runs/x/checkpoints/best one'",
        "            tensorboard --logdir runs/x",
    ]


def test_an_interrupted_run_is_told_how_to_go_on() -> None:
    assert next_commands(config="c.yaml", checkpoint="last", resume=True, tests=True) == [
        "task fit --config c.yaml --ckpt_path last"
    ]
    assert next_commands(checkpoint="last", tests=True) == ["trainer.test(task, ckpt_path='last')"]
    assert next_commands(tests=True) == []
    text = closing_lines(status="interrupted", steps=1, epochs=0, seconds=0.0, reason="Ctrl-C", best="x", last="x")
    assert text.splitlines() == ["Interrupted 1 step, 0 epochs in 0.0 s", "Because     Ctrl-C", "Best        x"]
