"""Project templates: where they are, how they are rendered, and how a project follows a newer one.

Templates are copier's, and copier renders them. Its own update, however, needs git on both sides: the project and the
history of the template. A template inside a wheel has no history, so what a template once produced is remembered in the
project (`.taskloom-template.json`) and becomes the common ancestor of a three-way merge.
docs/decisions/cli-template-update.md tells what was tried.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

import taskloom
from taskloom.cli.three_way import merge_texts
from taskloom.core.errors import ConfigError, explain, missing_package, nearest

RECORD = ".taskloom-template.json"
_QUESTIONS = ("copier.yml", "copier.yaml")
# copier's own record holds the place of the template on this machine, which is no part of the project's content.
_ANSWERS = ".copier-answers.yml"
_NOT_MERGED = frozenset({_ANSWERS, RECORD})


@dataclass(frozen=True)
class Template:
    """One template.

    Args:
        name: what a user types.
        folder: that holds its `copier.yml`.
        summary: first comment of `copier.yml`.
    """

    name: str
    folder: Path
    summary: str

    @property
    def questions(self) -> dict[str, Any]:
        """Return the questions that it asks, by name."""
        loaded = yaml.safe_load(_question_file(self.folder).read_text(encoding="utf-8")) or {}
        return {name: question for name, question in loaded.items() if not name.startswith("_")}


@dataclass
class Changes:
    """What an update did, as paths below the project.

    Args:
        written: taken from the template because they were untouched, or new.
        merged: both sides changed them, in different places.
        conflicts: both sides changed the same place; the file holds conflict markers, or the template's version stands
            beside it.
        removed: the template dropped them and they were untouched.
        kept: the template dropped or changed them, but the project's own state was left alone.
    """

    written: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


def find_templates() -> dict[str, Template]:
    """Return the templates by name: ours, and those registered under the entry point `taskloom.templates`."""
    found = {}
    for parent in _own_folders():
        for folder in sorted(parent.iterdir()):
            if folder.is_dir() and _has_questions(folder):
                found[folder.name] = _template(folder.name, folder)
        break
    for entry in entry_points(group="taskloom.templates"):
        folder = Path(entry.load())
        if not _has_questions(folder):
            raise ConfigError(
                [
                    f"template {entry.name}: "
                    + explain(
                        "A registered template has no copier.yml",
                        got=str(folder),
                        fix=f"correct or remove the package that registers {entry.value}",
                    )
                ]
            )
        found[entry.name] = _template(entry.name, folder)
    return found


def choose(name: str, templates: Mapping[str, Template]) -> Template:
    """Return a template by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in templates:
        raise ConfigError(
            [
                f"template {name}: "
                + explain("There is no such template", got=name, fix=f"use one of {', '.join(templates)}")
                + nearest(name, templates)
            ]
        )
    return templates[name]


def create(template: Template, destination: Path, answers: Mapping[str, str]) -> list[str]:
    """Render a template into a new or empty folder and return the files.

    Raises:
        ConfigError: the folder holds something, or an answer belongs to no question or is refused.
        MissingPackageError: copier is not installed.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(
            [
                f"destination {destination}: "
                + explain(
                    "The folder is not empty",
                    why="a new project must not overwrite files",
                    fix="choose another name, or `task new --update` inside a project to follow its template",
                )
            ]
        )
    _check_answers(template, answers)
    given = _render(template, destination, answers)
    files = _contents(destination)
    _remember(destination, template, given, files)
    return sorted(files)


def update(
    destination: Path, templates: Mapping[str, Template], answers: Mapping[str, str]
) -> tuple[Template, Changes]:
    """Bring a project to the present state of its template, keeping what its user changed.

    Raises:
        ConfigError: the folder was not made by `task new`, or its template is gone.
    """
    record = _recall(destination)
    template = choose(record["template"], templates)
    _check_answers(template, answers)
    base = {name: base64.b64decode(text) for name, text in record["files"].items()}
    changes = Changes()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "project"
        known = {name: value for name, value in record["answers"].items() if name in template.questions}
        given = _render(template, folder, {**known, **answers})
        theirs = _contents(folder)
        for name in sorted({*base, *theirs}):
            _update_file(destination, name, base.get(name), theirs.get(name), changes)
        if (folder / _ANSWERS).is_file():
            (destination / _ANSWERS).write_bytes((folder / _ANSWERS).read_bytes())
    _remember(destination, template, given, theirs)
    return template, changes


def _own_folders() -> list[Path]:
    """Return where our templates may be: inside the installed package, or beside `src` in a checkout."""
    package = Path(taskloom.__file__).parent
    return [folder for folder in (package / "templates", package.parents[1] / "templates") if folder.is_dir()]


def _has_questions(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _QUESTIONS)


def _question_file(folder: Path) -> Path:
    return next(folder / name for name in _QUESTIONS if (folder / name).is_file())


def _template(name: str, folder: Path) -> Template:
    first = _question_file(folder).read_text(encoding="utf-8").partition("\n")[0]
    return Template(name, folder, first.removeprefix("#").strip() if first.startswith("#") else "")


def _check_answers(template: Template, answers: Mapping[str, str]) -> None:
    known = template.questions
    problems = [
        f"--data {name}: "
        + explain(
            f"The template {template.name!r} asks no such question", got=name, fix=f"use one of {', '.join(known)}"
        )
        + nearest(name, known)
        for name in answers
        if name not in known
    ]
    if problems:
        raise ConfigError(problems)


def _render(template: Template, destination: Path, answers: Mapping[str, Any]) -> dict[str, Any]:
    """Let copier write the project, asking nothing; return the answers to all questions."""
    try:
        from copier import run_copy
        from copier.errors import CopierError
    except ImportError as error:
        raise missing_package("task new", "copier", "templates") from error
    try:
        worker = run_copy(
            str(template.folder), destination, data=dict(answers), defaults=True, overwrite=True, quiet=True
        )
    except (CopierError, ValueError) as error:
        raise ConfigError(
            [
                f"template {template.name}: "
                + explain("copier refused to render it", why=str(error), fix="correct the answers given with --data")
            ]
        ) from error
    known = template.questions
    return {name: value for name, value in worker.answers.combined.items() if name in known}


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in _NOT_MERGED
    }


def _remember(destination: Path, template: Template, answers: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    record = {
        "about": (
            "What `task new` produced, so that `task new --update` can tell your "
            "changes from the template's. Commit it; do not edit it."
        ),
        "template": template.name,
        "taskloom": taskloom.__version__,
        "answers": answers,
        "files": {name: base64.b64encode(content).decode("ascii") for name, content in sorted(files.items())},
    }
    (destination / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _recall(destination: Path) -> dict[str, Any]:
    path = destination / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not {"template", "answers", "files"} <= set(record):
            raise ValueError("it lacks keys")
    except FileNotFoundError:
        raise ConfigError(
            [
                f"{path}: "
                + explain(
                    "This folder was not made by `task new`",
                    why=f"{RECORD} is missing",
                    fix="name the folder of a project: task new --update DEST",
                )
            ]
        ) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            [
                f"{path}: "
                + explain(
                    "The record of the template cannot be read",
                    why=str(error),
                    fix="restore the file from your history",
                )
            ]
        ) from error
    found: dict[str, Any] = record
    return found


def _update_file(destination: Path, name: str, base: bytes | None, theirs: bytes | None, changes: Changes) -> None:
    path = destination / name
    ours = path.read_bytes() if path.is_file() else None
    if theirs in (ours, base):
        return  # the template has nothing new for this file
    if ours == base:
        if theirs is None:
            path.unlink()
            changes.removed.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(theirs)
            changes.written.append(name)
    elif ours is None or theirs is None:
        changes.kept.append(name)
    else:
        _merge_file(path, name, base or b"", ours, theirs, changes)


def _merge_file(path: Path, name: str, base: bytes, ours: bytes, theirs: bytes, changes: Changes) -> None:
    try:
        merged = merge_texts(*(content.decode("utf-8") for content in (base, ours, theirs)))
    except UnicodeDecodeError:
        path.with_name(path.name + ".template").write_bytes(theirs)
        changes.conflicts.append(name)
        return
    path.write_bytes(merged.text.encode("utf-8"))
    (changes.conflicts if merged.conflicts else changes.merged).append(name)
