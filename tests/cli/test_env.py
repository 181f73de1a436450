"""`task env` reports what is there and what to install, whatever is missing."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest
import torch
from cli.command import Run

from taskloom import __version__
from taskloom.accelerators import CUDAAccelerator


@pytest.mark.holds("CL-07")
def test_versions_devices_and_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    required = [
        "torch>=2.8",
        "a-missing-core-package>=1",
        "pytest>=8; extra == 'test'",
        "nobody-has-this; extra == 'x'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: required)
    outcome = run(["env"])
    rows = {line.split()[0]: line.split(maxsplit=1)[1] for line in outcome.out.splitlines() if line.startswith("  ")}
    assert rows["taskloom"] == __version__
    assert rows["cpu"].endswith("threads")
    assert rows["torch"] == torch.__version__ or rows["torch"] == metadata.version("torch")
    assert rows["pytest"] == metadata.version("pytest")
    assert rows["nobody-has-this"] == "not installed. Install: pip install 'taskloom[x]'"
    assert rows["a-missing-core-package"] == "not installed. Install: pip install a-missing-core-package"


@pytest.mark.holds("CL-07")
def test_works_without_torch_and_without_an_installation(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", not_installed)
    monkeypatch.setitem(sys.modules, "torch", None)
    outcome = run(["env"])
    assert outcome.code == 0
    assert "pip install torch" in outcome.out
    assert "without an installation" in outcome.out


@pytest.mark.holds("AC-11")
def test_the_environment_chooses_devices_and_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    rows = dict(line.split(maxsplit=1) for line in run(["env"]).out.splitlines() if line.startswith("  "))
    assert rows["CUDA_VISIBLE_DEVICES"] == "1,0"
    assert rows["CUDA_DEVICE_ORDER"] == "not set"
    # `devices` counts and numbers what torch sees after the environment made its choice.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert CUDAAccelerator.device_count() == 2
    assert CUDAAccelerator.parse_devices("auto") == [0, 1]
