"""`task new`: start a project from a template, or bring one to the present state of its template."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from taskloom.cli.templates import Changes, choose, create, find_templates, update
from taskloom.core.errors import ConfigError, explain


def run(args: Sequence[str]) -> None:
    """List templates, make a project, or update one.

    Raises:
        SystemExit: with 1 after an update that left conflicts to solve, with 2 for mistakes in the arguments.
    """
    options = _parser().parse_args(list(args))
    answers = _answers(options.data)
    templates = find_templates()
    if options.update:
        if options.destination is not None:
            raise ConfigError(
                [
                    f"argument {options.destination}: "
                    + explain(
                        "An update takes the project's folder only", fix=f"task new --update {options.destination}"
                    )
                ]
            )
        folder = Path(options.template or ".")
        template, changes = update(folder, templates, answers)
        _report(folder, template.name, changes)
        if changes.conflicts:
            raise SystemExit(1)
        return
    if options.template is None:
        width = max(map(len, templates), default=0)
        print("Templates:")
        for name, template in templates.items():
            print(f"  {name:<{width}}  {template.summary}".rstrip())
        print("\nStart a project with: task new TEMPLATE FOLDER")
        return
    template = choose(options.template, templates)
    if options.destination is None:
        raise ConfigError(
            [
                "destination: "
                + explain("The folder of the new project is not named", fix=f"task new {template.name} my-project")
            ]
        )
    folder = Path(options.destination)
    files = create(template, folder, answers)
    print(f"{len(files)} files written to {folder} from the template {template.name!r}. Next:\n")
    for command in _next_commands(folder, files):
        print(f"  {command}")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="task new", description="Start a project from a template; without arguments, list the templates."
    )
    parser.add_argument(
        "template",
        nargs="?",
        metavar="TEMPLATE",
        help="name of a template; with --update, the project's folder (default: here)",
    )
    parser.add_argument("destination", nargs="?", metavar="FOLDER", help="new or empty folder for the project")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="answer to a question of the template in place of its default; may be repeated",
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help=(
            "bring a project to the present state of its template; your changes are "
            "kept, or marked where both sides changed the same lines"
        ),
    )
    return parser


def _answers(given: Sequence[str]) -> dict[str, str]:
    problems = [
        f"--data {text}: " + explain("An answer is written KEY=VALUE", got=text, fix="--data project_name=digits")
        for text in given
        if not text.partition("=")[1] or not text.partition("=")[0]
    ]
    if problems:
        raise ConfigError(problems)
    return {key: value for key, _, value in (text.partition("=") for text in given)}


def _next_commands(folder: Path, files: Sequence[str]) -> list[str]:
    commands = [f"cd {folder}"]
    if "pyproject.toml" in files:
        commands.append("pip install -e .")
    configs = [name for name in files if name.endswith((".yaml", ".yml")) and not name.startswith(".")]
    if configs:
        commands.append(f"task fit --config {configs[0]}")
    if any(name.startswith("tests/") for name in files):
        commands.append("python -m pytest")
    return commands


def _report(folder: Path, template: str, changes: Changes) -> None:
    rows = (
        ("updated", changes.written),
        ("merged with your changes", changes.merged),
        ("removed, as in the template", changes.removed),
        ("left as you have it, though the template changed or dropped it", changes.kept),
        ("CONFLICT, solve it between the markers (a binary file: compare with FILE.template)", changes.conflicts),
    )
    if not any(names for _, names in rows):
        print(f"{folder} is up to date with the template {template!r}.")
    for what, names in rows:
        for name in names:
            print(f"{what}: {name}")
