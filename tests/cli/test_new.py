"""`task new`: projects from templates, and templates that change afterwards."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from cli.command import Run

from taskloom.cli import templates

pytest.importorskip("copier")


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one small template, in place of those of the package."""
    folder = tmp_path / "shelf" / "tiny"
    (folder / "project").mkdir(parents=True)
    (folder / "copier.yml").write_text(
        "# The tiniest project\n_subdirectory: project\n"
        "name:\n  type: str\n  default: thing\nsize:\n  type: int\n  default: 3\n"
    )
    (folder / "project" / "cfg.yaml.jinja").write_text("name: {{ name }}\nsize: {{ size }}\na: 1\nb: 2\nc: 3\nd: 4\n")
    (folder / "project" / "notes.txt").write_text("first\n")
    (folder / "project" / "old.txt").write_text("old\n")
    monkeypatch.setattr(templates, "_own_folders", lambda: [tmp_path / "shelf"])
    monkeypatch.chdir(tmp_path)
    return folder / "project"


@pytest.mark.holds("CL-11")
def test_lists_templates(run: Run, shelf: Path) -> None:
    outcome = run(["new"])
    assert "tiny  The tiniest project" in outcome.out
    assert "task new TEMPLATE FOLDER" in outcome.out


@pytest.mark.holds("CL-11")
def test_our_own_templates_are_found(run: Run) -> None:
    assert {"minimal", "image-classification", "causal-lm"} <= set(templates.find_templates())


@pytest.mark.holds("CL-11")
def test_makes_a_project_and_says_what_to_type(run: Run, shelf: Path, tmp_path: Path) -> None:
    outcome = run(["new", "tiny", "project", "--data", "name=digits"])
    assert outcome.code == 0
    assert (tmp_path / "project" / "cfg.yaml").read_text().startswith("name: digits\nsize: 3\n")
    assert "cd project" in outcome.out
    assert "task fit --config cfg.yaml" in outcome.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["new", "tiny", "full"], "The folder is not empty.*task new --update"),
        (["new", "tini", "p"], "There is no such template.*Did you mean 'tiny'"),
        (["new", "tiny"], "The folder of the new project is not named"),
        (["new", "tiny", "p", "--data", "names=x"], "asks no such question.*Did you mean 'name'"),
        (["new", "tiny", "p", "--data", "name"], "written KEY=VALUE"),
        (["new", "tiny", "p", "--data", "size=big"], "copier refused"),
        (["new", "--update", "full"], "was not made by `task new`"),
        (["new", "--update", "full", "p"], "takes the project's folder only"),
    ],
)
def test_mistakes(args: list[str], message: str, run: Run, shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    outcome = run(args)
    assert outcome.code == 2
    import re

    assert re.search(message, outcome.err), outcome.err


@pytest.mark.holds("CL-11")
def test_update_follows_the_template_and_keeps_changes(run: Run, shelf: Path, tmp_path: Path) -> None:
    run(["new", "tiny", "project"])
    project = tmp_path / "project"
    (project / "cfg.yaml").write_text("name: mine\n" + (project / "cfg.yaml").read_text().partition("\n")[2])
    (project / "own.txt").write_text("untouched by any template\n")
    (shelf / "cfg.yaml.jinja").write_text("name: {{ name }}\nsize: {{ size }}\na: 1\nb: 2\nc: 3\nd: 40\n")
    (shelf / "notes.txt").write_text("second\n")
    (shelf / "added.txt").write_text("added\n")
    (shelf / "old.txt").unlink()
    outcome = run(["new", "--update", "project"])
    assert outcome.code == 0
    assert (project / "cfg.yaml").read_text() == "name: mine\nsize: 3\na: 1\nb: 2\nc: 3\nd: 40\n"
    assert (project / "notes.txt").read_text() == "second\n"
    assert (project / "added.txt").read_text() == "added\n"
    assert not (project / "old.txt").exists()
    assert (project / "own.txt").exists()
    assert "merged with your changes: cfg.yaml" in outcome.out
    assert "up to date" in run(["new", "--update", "project"]).out


@pytest.mark.holds("CL-11")
def test_update_shows_conflicts_and_respects_deletions(
    run: Run, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["new", "tiny", "project"])
    project = tmp_path / "project"
    (project / "notes.txt").write_text("mine\n")
    (project / "old.txt").unlink()
    (shelf / "notes.txt").write_text("theirs\n")
    (shelf / "old.txt").write_text("changed\n")
    monkeypatch.chdir(project)
    outcome = run(["new", "--update"])
    assert outcome.code == 1
    assert (project / "notes.txt").read_text() == "<<<<<<< yours\nmine\n=======\ntheirs\n>>>>>>> template\n"
    assert not (project / "old.txt").exists()
    assert "CONFLICT" in outcome.out
    assert "left as you have it" in outcome.out


def test_update_may_change_an_answer_and_needs_the_template(run: Run, shelf: Path, tmp_path: Path) -> None:
    run(["new", "tiny", "project", "--data", "size=5"])
    run(["new", "--update", "project", "--data", "name=other"])
    assert (tmp_path / "project" / "cfg.yaml").read_text().startswith("name: other\nsize: 5\n")
    shutil.rmtree(shelf.parent)
    assert "There is no such template" in run(["new", "--update", "project"]).err


def test_without_copier_the_extra_is_named(run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "copier", None)
    outcome = run(["new", "tiny", "project"])
    assert outcome.code == 2
    assert "pip install 'taskloom[templates]'" in outcome.err
