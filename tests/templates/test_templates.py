"""Every template gives a project that works at once; `task new`, and that the wheel has them, is tested elsewhere."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import copier
import pytest
import yaml
from copier.errors import CopierError

import taskloom

TEMPLATES = Path(__file__).parents[2] / "templates"
NAMES = ("causal-lm", "image-classification", "minimal")
AWKWARD = {"project_name": '7 "Strange" Fish!', "description": 'Says "hello" \\ 1', "author": "Zoë O'Neil"}


def render(name: str, folder: Path, **answers: str) -> Path:
    copier.run_copy(str(TEMPLATES / name), folder, data=answers, defaults=True, quiet=True, unsafe=False)
    return folder


def in_project(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a Python module in a project's folder, with this taskloom and nothing else on the path."""
    environment = {**os.environ, "PYTHONPATH": str(Path(taskloom.__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_these_are_all_templates():
    assert {path.parent.name for path in TEMPLATES.glob("*/copier.yml")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.holds("CL-11")
@pytest.mark.parametrize("name", NAMES)
def test_the_tests_of_a_new_project_pass_at_once(name, tmp_path):
    project = render(name, tmp_path / "my-project")

    ran = in_project(project, "pytest", "-q", "-p", "no:cacheprovider")

    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " passed" in ran.stdout


@pytest.mark.parametrize("name", NAMES)
def test_a_project_is_named_after_its_folder(name, tmp_path):
    project = render(name, tmp_path / "My first-Project")

    files = contents(project)
    assert {"README.md", "pyproject.toml", "configs/train.yaml", ".gitignore", ".copier-answers.yml"} <= set(files)
    assert {f"src/my_first_project/{module}.py" for module in ("__init__", "task", "data")} <= set(files)
    assert files["README.md"].startswith("# My first-Project\n")
    assert 'name = "my-first-project"' in files["pyproject.toml"]
    assert all("{{" not in text and "{%" not in text for text in files.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_an_installation_compiles_stays_behind(name, tmp_path):
    installed = shutil.copytree(TEMPLATES / name, tmp_path / "installed")
    compileall.compile_dir(installed, quiet=2)
    assert list(installed.rglob("*.pyc"))

    copier.run_copy(str(installed), tmp_path / "project", defaults=True, quiet=True, unsafe=False)

    assert list((tmp_path / "project").rglob("*.pyc")) == []
    assert list((tmp_path / "project").rglob("__pycache__")) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_answers_are_kept_for_updates(name, tmp_path):
    project = render(name, tmp_path / "project", task_name="Other", author="A. Writer")

    answers = yaml.safe_load((project / ".copier-answers.yml").read_text())
    assert answers["task_name"] == "Other"
    assert answers["author"] == "A. Writer"
    assert set(answers) >= {"_src_path", "project_name", "package_name", "description"}
    assert "class Other(TaskModule)" in (project / "src" / "project" / "task.py").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_awkward_answers_give_valid_files(name, tmp_path):
    project = render(name, tmp_path / "project", **AWKWARD)

    module = project / "src" / "p7_strange_fish"
    for path in [*project.rglob("*.py")]:
        compile(path.read_text(), str(path), "exec")
    assert module.is_dir()
    config = yaml.safe_load((project / "configs" / "train.yaml").read_text())
    assert config["task"]["class_path"].startswith("p7_strange_fish.task.")
    if sys.version_info >= (3, 11):
        import tomllib

        settings = tomllib.loads((project / "pyproject.toml").read_text())["project"]
        assert settings["description"] == AWKWARD["description"]
        assert settings["authors"] == [{"name": AWKWARD["author"]}]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ({"package_name": "Not-A-Name"}, "lower-case letters, digits and underscores"),
        ({"package_name": "torch"}, "choose another one"),
        ({"task_name": "lower"}, "class name of your own"),
        ({"task_name": "TaskModule"}, "class name of your own"),
    ],
)
def test_names_that_cannot_work_are_refused(name, answers, complaint, tmp_path):
    with pytest.raises((CopierError, ValueError), match=complaint):
        render(name, tmp_path / "project", **answers)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_project_is_clean(name, tmp_path):
    pytest.importorskip("ruff")
    project = render(name, tmp_path / "project")

    checked = in_project(project, "ruff", "check", "--no-cache", "--select", "E,F,W,I,B,UP,RUF", ".")
    formatted = in_project(project, "ruff", "format", "--no-cache", "--check", ".")

    assert checked.returncode == 0, checked.stdout
    assert formatted.returncode == 0, formatted.stdout
