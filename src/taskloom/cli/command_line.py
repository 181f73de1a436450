"""The arguments of a stage command as one layer of configuration.

The grammar is jsonargparse's (`--key value`, `--key=value`, `--list+ item`), read here and not by argparse because
argparse stops at its first error, and because each value must remember which flag it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from taskloom.cli.tree import WITHOUT_VALUE, Node, nested
from taskloom.cli.yaml_file import read_text
from taskloom.core.errors import ConfigError, explain

_FLAG = re.compile(r"^--[A-Za-z_]")
BARE = "true"  # what a flag without a value means: `--fast_dev_run`


@dataclass
class CommandLine:
    """What was typed after the subcommand.

    Args:
        configs: files of `--config`, in order.
        layers: one tree per flag, in order.
        links: texts of `--link`.
        help_for: `""` for `--help`, a key for `--KEY.help`, `None` when no help was asked for.
        help_class: the class given to `--KEY.help`.
        print_config: `"values"`, `"sources"` or `None`.
        problems: what could not be read.
    """

    configs: list[str] = field(default_factory=list)
    layers: list[Node] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    help_for: str | None = None
    help_class: str | None = None
    print_config: str | None = None
    problems: list[str] = field(default_factory=list)


def read_command_line(args: Sequence[str]) -> CommandLine:
    """Read the arguments; what is wrong with them ends in `problems`, never in an exception."""
    line = CommandLine()
    for flag, value in _pairs(args, line.problems):
        _take(line, flag, value)
    return line


def _pairs(args: Sequence[str], problems: list[str]) -> Iterator[tuple[str, str | None]]:
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        if word == "-h":
            yield "help", None
        elif not _FLAG.match(word):
            problems.append(
                f"argument {word}: "
                + explain(
                    "This argument belongs to no flag",
                    got=word,
                    fix="write --key value, or --config FILE for a configuration file",
                )
            )
        elif "=" in word:
            flag, _, value = word[2:].partition("=")
            yield flag, value
        else:
            takes_next = (
                bool(waiting)
                and not _FLAG.match(waiting[0])
                and waiting[0] != "-h"
                and word[2:] not in ("help", "print_config")
            )
            yield word[2:], waiting.pop(0) if takes_next else None


def _take(line: CommandLine, flag: str, value: str | None) -> None:
    if flag == "help":
        line.help_for = ""
    elif flag.endswith(".help"):
        line.help_for, line.help_class = flag.removesuffix(".help"), value
    elif flag == "print_config":
        if value not in (None, "values", "sources"):
            line.problems.append(
                "flag --print_config: "
                + explain(
                    "The configuration is printed as values or with sources",
                    got=value,
                    fix="write --print_config or --print_config=sources",
                )
            )
        line.print_config = value or "values"
    elif flag in ("config", "link"):
        if value is None:
            line.problems.append(
                f"flag --{flag}: "
                + explain(
                    "This flag needs a value",
                    fix={"config": "--config cfg.yaml", "link": "--link data.num_classes=task.num_classes"}[flag],
                )
            )
        elif flag == "config":
            line.configs.append(value)
        else:
            line.links.append(value)
    else:
        line.layers.append(nested(flag, _value(flag, value, line.problems)))


def _value(flag: str, text: str | None, problems: list[str]) -> Node:
    source = f"flag --{flag}"
    if text is None:
        return Node(BARE, source + WITHOUT_VALUE)
    if text.lstrip()[:1] in ("[", "{"):
        try:
            return read_text(text, source, source)
        except ConfigError as error:
            problems.extend(error.problems)
    return Node(text, source)
