"""YAML files as trees that know the line of every key.

PyYAML's composer keeps the position of each node until values are constructed, so the tree is built from its nodes.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

import yaml

from taskloom.checkpoint.place import as_path, read_bytes
from taskloom.cli.tree import Node
from taskloom.core.errors import ConfigError, explain


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that `1e-3` is a number, as everybody who writes a learning rate expects."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$|^[-+]?[0-9][0-9_]*\.[0-9_]*[eE][0-9]+$"),
    list("-+0123456789"),
)


def read_file(path: str | PurePath) -> Node:
    """Return the tree of a YAML file, which may be a URL.

    Raises:
        ConfigError: the file cannot be read, is not YAML, repeats a key, or does not hold a mapping.
    """
    try:
        text = read_bytes(as_path(path)).decode()
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(
            [
                f"{path}: "
                + explain(
                    "The configuration file cannot be read", why=_reason(error), fix="correct the path after --config"
                )
            ]
        ) from error
    path = str(path)
    tree = read_text(text, path)
    if tree.value is None:
        return Node({}, f"{path}:1")
    if not tree.is_mapping:
        raise ConfigError(
            [
                f"{tree.source}: "
                + explain(
                    "A configuration file holds a mapping of keys to values",
                    got=tree.value if not tree.is_list else "a list",
                    fix="write lines such as `max_epochs: 3`",
                )
            ]
        )
    return tree


def read_text(text: str, name: str, source: str | None = None) -> Node:
    """Return the tree of YAML text.

    Args:
        text: YAML.
        name: of the file, for positions.
        source: given to every node in place of its position, for text that is no file (a flag, a variable).

    Raises:
        ConfigError: the text is not YAML or repeats a key.
    """
    loader = _Loader(text)
    problems: list[str] = []
    try:
        root = loader.get_single_node()
        tree = Node(None, source or f"{name}:1") if root is None else _build(loader, root, name, source, problems)
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, name, source)]) from error
    finally:
        loader.dispose()
    if problems:
        raise ConfigError(problems)
    return tree


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _syntax_problem(error: yaml.YAMLError, name: str, source: str | None) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{source or name}: " + explain("This is not YAML", why=" ".join(str(error).split()))
    mark = error.problem_mark
    detail = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{source or f'{name}:{mark.line + 1}'}: " + explain(
        f"YAML syntax error at column {mark.column + 1}", why=detail
    )


def _build(loader: _Loader, node: yaml.Node, name: str, source: str | None, problems: list[str]) -> Node:
    here = source or f"{name}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode):
        return Node([_build(loader, item, name, source, problems) for item in node.value], here)
    if not isinstance(node, yaml.MappingNode):
        return Node(loader.construct_object(node), here)
    own = sum(1 for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge")
    loader.flatten_mapping(node)
    inherited = len(node.value) - own  # what `<<` brings in comes first, and may be overridden
    merged: dict[Any, Node] = {}
    written: dict[Any, str] = {}
    for number, (key_node, value_node) in enumerate(node.value):
        key = loader.construct_object(key_node, deep=True)
        at = source or f"{name}:{key_node.start_mark.line + 1}"
        if not isinstance(key, (str, int, float, bool)) and key is not None:
            problems.append(f"{at}: " + explain("A key is a name or a number", got=key))
            continue
        if key in written:
            problems.append(
                f"{at}: {key}: "
                + explain(
                    "The key is written twice in the same mapping",
                    why=f"the first is at {written[key]}",
                    fix="keep one of them",
                )
            )
        if number >= inherited:
            written[key] = at
        merged[key] = Node(_build(loader, value_node, name, source, problems).value, at)
    return Node(merged, here)
