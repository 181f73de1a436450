"""What `compare_checkpoints` names: every tensor and value that differs, and nothing else."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint.contents import make_content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from taskloom.checkpoint import CheckpointError, Shard, write_checkpoint
from taskloom.checkpoint.difference import Difference, compare_checkpoints
from taskloom.checkpoint.tensor_file import DTYPES


def save(path: Path, **fields: Any) -> Path:
    if isinstance(fields.get("model"), dict):
        fields["model"] = [Shard.whole(name, tensor) for name, tensor in fields["model"].items()]
    write_checkpoint(path, make_content(**fields), fsync=False)
    return path


def compared(tmp_path: Path, before: dict[str, Any], after: dict[str, Any], **options: Any) -> Difference:
    number = len(list(tmp_path.iterdir()))
    a, b = save(tmp_path / f"{number}-a", **before), save(tmp_path / f"{number}-b", **after)
    return compare_checkpoints(a, b, **options)


def lines(difference: Difference) -> list[str]:
    return [str(each) for each in (*difference.tensors, *difference.state, *difference.config)]


def test_a_state_saved_twice_does_not_differ(tmp_path: Path) -> None:
    state = {
        "nan": math.nan, "complex": complex(0, math.nan), "array": np.array([math.nan]), "scalar": np.float32("nan"),
        "random": random.getstate(), "tensor": torch.tensor([math.nan]), "empty": {}, "none": None,
    }  # fmt: skip
    model = {str(dtype): torch.arange(3).to(dtype) for dtype in DTYPES} | {"empty": torch.empty(0, 2)}
    difference = compared(tmp_path, {"state": state, "model": model}, {"state": state, "model": model, "run_id": "b"})
    assert lines(difference) == []
    assert difference.is_empty
    assert difference.compared == len(model) + 2


def test_two_equal_trainings_do_not_differ_by_their_clock(tmp_path: Path) -> None:
    one, other = ({"state": {"progress": {"steps": 10, "seconds": seconds}}} for seconds in (1.5, 2.5))
    assert compared(tmp_path, one, other).is_empty


@pytest.mark.holds("CL-09")
def test_tensors_are_named_with_how_far_they_are_apart(tmp_path: Path) -> None:
    weight = torch.arange(600_000, dtype=torch.float32) / 1000
    moved = weight.clone()
    moved[5] += 0.5
    moved[599_999] -= 0.25
    ones = torch.ones(3)
    before = {"w": weight, "same": ones, "gone": ones, "shape": ones, "dtype": ones, "bits": torch.zeros(2)}
    after = {
        "w": moved, "same": ones, "new": torch.ones(2, 2), "shape": torch.ones(1, 3), "dtype": ones.half(),
        "bits": torch.tensor([0.0, -0.0]),
    }  # fmt: skip
    assert lines(compared(tmp_path, {"model": before}, {"model": after})) == [
        "model: w float32[600000]: 2 elements differ by at most 0.5, relatively 0.99",
        "model: gone was removed, float32[3]",
        "model: shape was float32[3], is float32[1, 3]",
        "model: dtype was float32[3], is float16[3]",
        "model: bits float32[2]: 1 element differs by at most 0, relatively 0",
        "model: new was added, float32[2, 2]",
    ]


def test_moments_and_sets_of_callbacks_are_compared_too(tmp_path: Path) -> None:
    one = {"optimizer": [Shard.whole("w.exp_avg", torch.tensor([2**60, 1]))]}
    other = {
        "optimizer": [Shard.whole("w.exp_avg", torch.tensor([2**60 + 1, 1]))],
        "further": {"average": [Shard.whole("w", torch.ones(1))]},
    }
    assert lines(compared(tmp_path, one, other)) == [
        "optimizer: w.exp_avg int64[2]: 1 element differs by at most 1, relatively 8.67e-19",
        "average: w was added, float32[1]",
    ]
    assert lines(compared(tmp_path, other, one))[1] == "average: w was removed, float32[1]"


@pytest.mark.parametrize("dtype", list(DTYPES), ids=str)
def test_one_changed_bit_of_any_dtype_is_found(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.ones(7).to(dtype)
    changed = torch.ones(7).to(dtype)
    changed.view(torch.uint8)[-tensor.element_size()] ^= 1
    (found,) = compared(tmp_path, {"model": {"w": tensor}}, {"model": {"w": changed}}).tensors
    assert found.elements == 1
    assert found.largest_absolute > 0


def test_nan_and_infinity_are_told(tmp_path: Path) -> None:
    before = {"nan": torch.tensor([1.0, 2.0]), "inf": torch.tensor([1.0, math.inf])}
    after = {"nan": torch.tensor([math.nan, 2.5]), "inf": torch.tensor([1.0, 1.0])}
    difference = compared(tmp_path, {"model": before}, {"model": after})
    nan, infinite = difference.tensors
    assert nan.elements == 2
    assert math.isnan(nan.largest_absolute)
    assert infinite.largest_absolute == math.inf
    assert json.loads(json.dumps(difference.to_json(), allow_nan=False))["tensors"][0]["largest_absolute"] == "nan"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.tuples(st.floats(-10, 10, width=32), st.floats(-10, 10, width=32)), min_size=1, max_size=9),
    tolerance=st.sampled_from([0.0, 1e-3, 0.5]),
)
def test_a_tolerance_is_absolute_and_relative(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[float, float]], tolerance: float
) -> None:
    a, b = (torch.tensor([pair[side] for pair in values]) for side in (0, 1))
    difference = compared(
        tmp_path_factory.mktemp("pair"), {"model": {"w": a}}, {"model": {"w": b}}, tolerance=tolerance
    )
    expected = sum(
        abs(x - y) > tolerance * (1 + abs(x)) or (not tolerance and x.hex() != y.hex())
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    )
    assert sum(each.elements or 0 for each in difference.tensors) == expected


def test_values_are_named_by_their_path(tmp_path: Path) -> None:
    state = {
        "progress": {"steps": 10, "gone": None},
        "optimizers": {"AdamW": {"lr": 0.1, "betas": (0.9, 0.999)}},
        "row": list(range(20)),
        "generator": torch.arange(16, dtype=torch.uint8),
        "array": np.arange(4),
        "a.b": 1,
        "type": 1,
    }
    other = {
        "progress": {"steps": 11, "new": [1]},
        "optimizers": {"AdamW": {"lr": 0.05, "betas": (0.9, 0.99)}},
        "row": [*range(18), 0, 0],
        "generator": torch.arange(16, dtype=torch.uint8).flip(0),
        "array": np.array([0, 1, 2, 4]),
        "a.b": 2,
        "type": True,
    }
    difference = compared(
        tmp_path,
        {"state": state, "config": "lr: 0.1\ntask:\n  hidden: 4\n", "metrics": {"val/loss": (0.5, 10)}},
        {"state": other, "config": "lr: 0.1\ntask:\n  hidden: 8\nseed: 1\n", "metrics": {"val/loss": (0.25, 10)}},
    )
    assert lines(difference) == [
        "manifest.metrics.val/loss.value: 0.5 → 0.25",
        "progress.steps: 10 → 11",
        "progress.gone was removed: None",
        "optimizers.AdamW.lr: 0.1 → 0.05",
        "optimizers.AdamW.betas[1]: 0.999 → 0.99",
        "row: [18] 18 → 0, and 1 more of 20 values",
        "generator: tensor uint8[16] → 16 elements differ by at most 15",
        "array: array int64[4] → 1 element differs",
        "['a.b']: 1 → 2",
        "type: 1 → True",
        "progress.new[0] was added: 1",
        "task.hidden: 4 → 8",
        "seed was added: 1",
    ]
    assert compare_checkpoints(tmp_path / "0-a", tmp_path / "0-b", tolerance=0.1).state[3].path == "row"
    plain = json.loads(json.dumps(difference.to_json()))
    assert plain["equal"] is False
    assert plain["config"][0] == {"path": "task.hidden", "before": "4", "after": "8"}


@pytest.mark.holds("R14")
def test_a_configuration_that_is_no_plain_yaml_is_compared_as_text(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
        for before, name in ("ab", "bc", "cd", "de", "ef", "fg", "gh")
    )
    payload = "!!python/object/apply:os.system ['touch pwned']\n"
    difference = compared(tmp_path, {"config": bomb}, {"config": payload})
    assert difference.config[0].path == "line 1"
    assert difference.config[0].after == repr(payload.strip())
    assert not list(tmp_path.rglob("pwned"))
    deep = compared(tmp_path, {"config": "[" * 5000}, {"config": "a: 1"})
    assert deep.config


def test_pieces_are_compared_as_the_tensor_they_make_up(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).view(3, 4)
    flat = [Shard.flat_range("w", tensor.reshape(-1)[a:b], (3, 4), a) for a, b in ((0, 5), (5, 12))]
    rows = [Shard("w", tensor[a:b], (3, 4), (a, 0)) for a, b in ((0, 1), (1, 3))]
    assert compared(tmp_path, {"model": flat}, {"model": rows}).is_empty
    assert compared(tmp_path, {"model": flat}, {"model": {"w": tensor}}).is_empty


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = save(tmp_path / "a")
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        compare_checkpoints(a, tmp_path / "b")
    with pytest.raises(ValueError, match="A tolerance is not negative"):
        compare_checkpoints(a, a, tolerance=-1.0)


MEASURE = """
from pathlib import Path
from taskloom.checkpoint.difference import compare_checkpoints

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

compare_checkpoints("small", "other")  # what it brings into memory once
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
before = kilobytes("VmRSS")
compare_checkpoints("a", "b")
print(kilobytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets a process reset its peak")
def test_two_tensors_are_in_memory(tmp_path: Path) -> None:
    model = {f"w{number}": torch.arange(1_000_000, dtype=torch.float32) + number for number in range(8)}
    for name, each in (("a", model), ("b", {key: tensor + 1 for key, tensor in model.items()})):
        save(tmp_path / name, model=each, optimizer=[])
    save(tmp_path / "small")
    save(tmp_path / "other", seed=1)
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    peak = int(done.stdout) * 1024
    assert peak < 36_000_000, f"{peak:,} bytes of 64,000,000"
