"""Reading one layer each: YAML text, and what was typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskloom.cli.command_line import read_command_line
from taskloom.cli.layers import merge
from taskloom.cli.tree import find, plain
from taskloom.cli.yaml_file import read_file, read_text
from taskloom.core.errors import ConfigError


@pytest.mark.holds("CL-04")
def test_lines_of_keys_and_numbers_as_people_write_them() -> None:
    tree = read_text("a: 1e-3\nb:\n  c: 3e5\n  d: [1, x]\ne: 2020-01-01\nf: 1.5e3\n", "cfg.yaml")
    assert plain(tree) == {"a": 1e-3, "b": {"c": 3e5, "d": [1, "x"]}, "e": "2020-01-01", "f": 1500.0}
    for key, line in (("a", 1), ("b", 2), ("b.c", 3), ("b.d.1", 4), ("e", 5)):
        node = find(tree, key)
        assert node is not None
        assert node.source == f"cfg.yaml:{line}"


def test_anchors_and_merge_keys_keep_the_lines_where_values_are_written() -> None:
    tree = read_text("base: &base\n  lr: 1\n  size: 2\nown:\n  <<: *base\n  size: 3\n", "cfg.yaml")
    assert plain(tree)["own"] == {"lr": 1, "size": 3}
    lines = [node.source for key in ("own.lr", "own.size") for node in [find(tree, key)] if node is not None]
    assert lines == ["cfg.yaml:2", "cfg.yaml:6"]


def test_an_empty_file_is_an_empty_configuration(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert plain(read_file(str(tmp_path / "empty.yaml"))) == {}
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(str(tmp_path / "binary.yaml"))


@pytest.mark.holds("CL-02", "CL-04")
def test_grammar_of_the_command_line() -> None:
    words = (
        "--config a.yaml --task my.Task --task.lr -1e-3 --data.path=x=y --fast_dev_run --config=b.yaml --link a.b=c.d"
    )
    line = read_command_line([*words.split(), "--limit_batches", "{train: 3}", "--task.init_args.depth", "2"])
    assert (line.problems, line.configs, line.links) == ([], ["a.yaml", "b.yaml"], ["a.b=c.d"])
    merged = merge(line.layers, line.problems)
    assert plain(merged) == {
        "task": {"class_path": "my.Task", "init_args": {"lr": "-1e-3", "depth": "2"}},
        "data": {"path": "x=y"},
        "fast_dev_run": "true",
        "limit_batches": {"train": 3},
    }


@pytest.mark.parametrize(
    ("words", "help_for", "help_class", "print_config"),
    [
        (["-h"], "", None, None),
        (["--help", "--task", "my.Task"], "", None, None),
        (["--task.help"], "task", None, None),
        (["--task.help", "my.Task"], "task", "my.Task", None),
        (["--print_config", "--task", "x"], None, None, "values"),
        (["--print_config=sources"], None, None, "sources"),
    ],
)
def test_questions(words: list[str], help_for: str | None, help_class: str | None, print_config: str | None) -> None:
    line = read_command_line(words)
    assert (line.help_for, line.help_class, line.print_config) == (help_for, help_class, print_config)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--config"], "flag --config: This flag needs a value"),
        (["--print_config=all"], "printed as values or with sources"),
        (["loose"], "This argument belongs to no flag. Got: 'loose'"),
        (["--x", "[1, 2"], "flag --x: YAML syntax error"),
    ],
)
def test_mistakes_are_collected(words: list[str], problem: str) -> None:
    problems = read_command_line([*words, "--y", "3"]).problems
    assert len(problems) == 1
    assert problem in problems[0]
