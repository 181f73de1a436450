"""`deterministic` and `benchmark`: what torch is told during a stage, and that it is untold afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from loop.tiny import At, Line, loader, quiet

from taskloom import Trainer
from taskloom.core.errors import ConfigError
from taskloom.core.policies import Determinism


def seen() -> tuple[bool, bool, bool, str | None]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.fixture(params=[False, True], ids=["benchmark off", "benchmark on"])
def before(request: pytest.FixtureRequest) -> Iterator[bool]:
    torch.backends.cudnn.benchmark = request.param
    yield request.param
    torch.backends.cudnn.benchmark = False


@pytest.mark.holds("UT-02")
@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize(
    ("given", "algorithms", "warns", "benchmark"),
    [
        (False, False, False, None),
        (True, True, False, False),
        ("warn", True, True, False),
        (Determinism(benchmark=True), True, False, True),
        (Determinism("warn", benchmark=True), True, True, True),
        (Determinism(False, benchmark=True), False, False, True),
        (Determinism(False, benchmark=False), False, False, False),
    ],
    ids=str,
)
def test_torch_is_told_during_every_stage(
    stage: str, given: Any, algorithms: bool, warns: bool, benchmark: bool | None, before: bool
) -> None:
    found: list[Any] = []
    hook = {"fit": "on_train_start"}.get(stage, f"on_{'validation' if stage == 'validate' else stage}_start")
    trainer = quiet(At(**{hook: lambda *_: found.append(seen())}), max_epochs=1, deterministic=given)
    untold = seen()
    getattr(trainer, stage)(Line(), loader(4))
    expected = (algorithms, warns, before if benchmark is None else benchmark, ":4096:8" if algorithms else None)
    assert found == [expected]
    assert seen() == untold


@pytest.mark.holds("UT-02")
def test_an_operation_without_a_deterministic_algorithm_is_an_error_or_a_warning() -> None:
    class Pools(Line):
        """`put_` without accumulation has none on the CPU."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            torch.zeros(4).put_(torch.tensor([0, 1]), torch.ones(2))
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
        quiet(max_epochs=1, deterministic=True).fit(Pools(), loader(4))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.warns(UserWarning, match="does not have a deterministic implementation"):
        quiet(max_epochs=1, deterministic="warn").fit(Pools(), loader(4))
    quiet(max_epochs=1).fit(Pools(), loader(4))


def test_a_workspace_of_ones_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    found: list[Any] = []
    quiet(At(on_train_start=lambda *_: found.append(seen()[3])), max_epochs=1, deterministic=True).fit(
        Line(), loader(4)
    )
    assert found == [":16:8"] == [seen()[3]]


def test_other_words_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"deterministic is True, False or 'warn'.*'always'"):
        Trainer(accelerator="cpu", max_epochs=1, deterministic="always")  # type: ignore[arg-type]
