"""A configuration as YAML that can be fed back, on request with the place each value came from as a comment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from taskloom.cli.tree import CLASS_PATH, INIT_ARGS, Node, find

SourceOf = Callable[[str], str]


def as_yaml(values: Any) -> str:
    """Return plain data as YAML in its own order."""
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    return text


def with_sources(values: dict[str, Any], tree: Node) -> str:
    """Return plain data as YAML, each value followed by a comment that names its source."""

    def source_of(key: str) -> str:
        node = find(tree, key)
        if node is None and key.endswith(f".{CLASS_PATH}"):
            node = find(tree, key.removesuffix(f".{CLASS_PATH}"))  # `data: my.Data` names the class without the key
        return node.source if node is not None else "default"

    lines: list[tuple[str, str]] = []
    for key, value in values.items():
        _emit(lines, f"{key}:", value, key, "", source_of)
    width = min(60, max((len(text) for text, source in lines if source), default=0))
    return "".join(f"{text:<{width}}  # {source}\n" if source else f"{text}\n" for text, source in lines)


def _emit(lines: list[tuple[str, str]], head: str, value: Any, key: str, indent: str, source_of: SourceOf) -> None:
    if isinstance(value, dict) and value:
        lines.append((f"{indent}{head}", ""))
        for name, item in value.items():
            below = key if name == INIT_ARGS else f"{key}.{name}"
            _emit(lines, f"{_scalar(name)}:", item, below, indent + "  ", source_of)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        lines.append((f"{indent}{head}", ""))
        for number, item in enumerate(value):
            _emit_item(lines, item, f"{key}.{number}", indent, source_of)
    else:
        lines.append((f"{indent}{head} {_scalar(value)}", source_of(key)))


def _emit_item(lines: list[tuple[str, str]], item: Any, key: str, indent: str, source_of: SourceOf) -> None:
    if not isinstance(item, dict) or not item:
        lines.append((f"{indent}- {_scalar(item)}", source_of(key)))
        return
    start = len(lines)
    for name, value in item.items():
        below = key if name == INIT_ARGS else f"{key}.{name}"
        _emit(lines, f"{_scalar(name)}:", value, below, indent + "  ", source_of)
    first, source = lines[start]
    lines[start] = (f"{indent}- {first[len(indent) + 2 :]}", source)


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...").removesuffix("...").strip()
