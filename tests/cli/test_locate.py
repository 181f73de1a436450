"""Names of classes: what was missing, and where a module failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from taskloom.callbacks.base import Callback
from taskloom.cli.locate import ClassNotFoundError, importable, locate


@pytest.mark.holds("CL-02")
def test_folders_are_importable_inside_the_block_only(tmp_path: Path) -> None:
    (tmp_path / "beside_the_config.py").write_text("class Here: ...\n")
    before = list(sys.path)
    with importable([tmp_path]):
        assert sys.path[0] == str(tmp_path)
        assert locate("beside_the_config.Here", [object]).__name__ == "Here"
    assert sys.path == before


@pytest.mark.holds("R30")
def test_syntax_error_in_a_module_is_placed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("unreadable.py").write_text("\n\nclass Broken(:\n    pass\n")
    with importable([tmp_path]), pytest.raises(ClassNotFoundError, match=r"SyntaxError at unreadable\.py:3: invalid"):
        locate("unreadable.Broken", [object])


@pytest.mark.holds("CL-02", "R30")
def test_bare_names_must_be_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    first = type("OnlyOne", (Callback,), {"__module__": "somewhere", "__qualname__": "OnlyOne"})
    assert locate("OnlyOne", [Callback]) is first
    second = type("OnlyOne", (Callback,), {"__module__": "elsewhere", "__qualname__": "OnlyOne"})
    with pytest.raises(ClassNotFoundError, match=r"Several imported classes.*somewhere\.OnlyOne, elsewhere\.OnlyOne"):
        locate("OnlyOne", [Callback])
    assert second is not first


def test_module_in_a_missing_package_and_submodules(tmp_path: Path) -> None:
    (tmp_path / "package_here").mkdir()
    (tmp_path / "package_here" / "__init__.py").write_text("")
    (tmp_path / "package_here" / "inner.py").write_text("class Outer:\n    class Inner: ...\n")
    with importable([tmp_path]):
        assert locate("package_here.inner.Outer.Inner", [object]).__qualname__ == "Outer.Inner"
        with pytest.raises(ClassNotFoundError, match=r"The module 'package_here' .* has no 'outer'"):
            locate("package_here.outer.Outer", [object])
        with pytest.raises(ClassNotFoundError, match=r"no module 'package_hare'.*Did you mean 'package_here'"):
            locate("package_hare.inner.Outer", [object])


@pytest.mark.holds("CL-02")
def test_our_callbacks_need_no_module(tmp_path: Path) -> None:
    config = tmp_path / "short.yaml"
    config.write_text(
        "max_epochs: 1\ntask: taskloom.TaskModule\noptimizer: adamw\n"
        "callbacks:\n  - class_path: Timer\n  - class_path: LambdaCalback\n"
    )
    # Another process, because any test before this one may have imported them.
    command = [sys.executable, "-m", "taskloom", "check", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert "LambdaCalback" in done.stderr
    assert "Did you mean 'LambdaCallback'?" in done.stderr
    assert "'Timer'" not in done.stderr
    config.write_text(config.read_text().replace("LambdaCalback", "TerminateOnNaN"))
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
