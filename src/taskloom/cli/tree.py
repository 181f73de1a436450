"""Configuration as a tree of values that remember where they were written, and how one layer goes over another.

Every layer (a file, the environment, a flag) becomes a tree of `Node`s. `overlay` puts a higher layer over a lower one
without looking at any class, so all of them can be merged before anything is imported; what the values mean is decided
afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taskloom.core.errors import explain, nearest

CLASS_PATH, INIT_ARGS = "class_path", "init_args"
# Ends the source of a flag that was written alone and therefore means true.
WITHOUT_VALUE = " (without a value)"
SPEC_KEYS = frozenset({CLASS_PATH, INIT_ARGS, "dict_kwargs"})
_NAME = re.compile(r"^(?=[\d.-]*[A-Za-z_])(?![\d.]+[eE][-+]?\d+$)\w[\w.-]*$")


@dataclass
class Node:
    """A value and where it was written.

    Args:
        value: a scalar, a `dict[key, Node]` or a `list[Node]`.
        source: `cfg.yaml:3`, `flag --max_epochs`, `env TASKLOOM_MAX_EPOCHS`, `link data.size`.
        folded: the key came from an environment variable, which has lost its case.
        partial: a mapping that sets one option of something, as `--key.option` does.
    """

    value: Any
    source: str
    folded: bool = False
    partial: bool = False

    @property
    def is_mapping(self) -> bool:
        """Whether the value is a mapping."""
        return isinstance(self.value, dict)

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return isinstance(self.value, list)

    @property
    def is_spec(self) -> bool:
        """Whether the value names a class (`class_path`) or holds its arguments under `init_args`."""
        return isinstance(self.value, dict) and (
            CLASS_PATH in self.value or (bool(self.value) and set(self.value) <= SPEC_KEYS)
        )

    @property
    def is_null(self) -> bool:
        """Whether the value says "nothing", in YAML or as the text of a flag."""
        return self.value is None or self.value == "null"


def node_of(value: Any, source: str) -> Node:
    """Wrap plain data, every part of it with the same source."""
    if isinstance(value, dict):
        return Node({key: node_of(item, source) for key, item in value.items()}, source)
    if isinstance(value, (list, tuple)):
        return Node([node_of(item, source) for item in value], source)
    return Node(value, source)


def plain(node: Node) -> Any:
    """Return the data of a tree without its sources."""
    if node.is_mapping:
        return {key: plain(item) for key, item in node.value.items()}
    if node.is_list:
        return [plain(item) for item in node.value]
    return node.value


def copied(node: Node) -> Node:
    """Return a tree that shares nothing with `node` but its scalars."""
    if node.is_mapping:
        return Node({key: copied(item) for key, item in node.value.items()}, node.source, node.folded)
    if node.is_list:
        return Node([copied(item) for item in node.value], node.source, node.folded)
    return Node(node.value, node.source, node.folded)


def nested(key: str, value: Node) -> Node:
    """Return the mapping that sets the dotted `key` to `value`."""
    for part in reversed(split_key(key)):
        value = Node({part: value}, value.source, value.folded, partial=True)
    return value


def split_key(key: str) -> list[str]:
    """Split a dotted key; `init_args` may be left out or written, and is left out of the result."""
    return [part for part in key.split(".") if part != INIT_ARGS]


def class_arguments(node: Node) -> dict[Any, Node]:
    """Return the arguments of a class that is written with or without `init_args`."""
    if not node.is_mapping:
        return {}
    if not node.is_spec:
        return dict(node.value)
    arguments = node.value.get(INIT_ARGS)
    return dict(arguments.value) if arguments is not None and arguments.is_mapping else {}


def find(node: Node, key: str) -> Node | None:
    """Return the node at a dotted key (list items by number), or `None`."""
    for part in split_key(key):
        if node.is_list:
            if not part.lstrip("-").isdigit() or int(part) >= len(node.value):
                return None
            node = node.value[int(part)]
            continue
        below = node.value if part == CLASS_PATH and node.is_mapping else class_arguments(node)
        if part not in below:
            return None
        node = below[part]
    return node


def walk(node: Node, key: str = "") -> Iterator[tuple[str, Node]]:
    """Yield every node below `node` with its dotted key, parents first."""
    items: Iterator[tuple[Any, Node]] = iter(())
    if node.is_spec:
        class_path = node.value.get(CLASS_PATH)
        if class_path is not None:
            yield f"{key}.{CLASS_PATH}" if key else CLASS_PATH, class_path
        items = iter(class_arguments(node).items())
    elif node.is_mapping:
        items = iter(node.value.items())
    elif node.is_list:
        items = iter(enumerate(node.value))
    for name, item in items:
        below = f"{key}.{name}" if key else str(name)
        yield below, item
        yield from walk(item, below)


def overlay(lower: Node | None, higher: Node, problems: list[str], key: str = "") -> Node:
    """Put `higher` over `lower` and return the result; neither is changed.

    Mappings are merged key by key, lists and scalars are replaced. A list is extended by `key+` and loses the items
    that `key-` names. A class of another name starts without the arguments of the one before.

    Args:
        lower: what earlier layers gave, if anything.
        higher: the layer on top.
        problems: where operations that make no sense are reported.
        key: dotted, for the reports.
    """
    if lower is None or lower.is_null:
        return _settled(higher, problems, key)
    if higher.is_mapping:
        if lower.is_list and not higher.is_spec and lower.value and _is_class_like(lower.value[-1]):
            # `--callbacks+ EarlyStopping --callbacks.patience 5`: options go to the item that was added last
            last = overlay(lower.value[-1], higher, problems, f"{key}.{len(lower.value) - 1}")
            return Node([*lower.value[:-1], last], higher.source)
        if isinstance(lower.value, str) and _is_class_like(lower):
            lower = Node({CLASS_PATH: lower}, lower.source)
        if lower.is_mapping:
            return _overlay_mappings(lower, higher, problems, key)
        if higher.partial and not lower.is_list and not isinstance(lower.value, bool):
            why = f"{lower.source} gives it the plain value {lower.value!r}, which an option cannot be added to"
            problems.append(
                f"{higher.source}: {key}: "
                + explain("An option is set beside a plain value", why=why, fix="write the value as an option too")
            )
    elif isinstance(higher.value, str) and lower.is_spec and _same_class(lower, higher):
        return lower
    elif isinstance(higher.value, str) and lower.is_mapping and not lower.is_spec and _is_class_like(higher):
        return Node({CLASS_PATH: higher, INIT_ARGS: lower}, higher.source)
    return _settled(higher, problems, key)


def _is_class_like(node: Node) -> bool:
    return node.is_spec or (isinstance(node.value, str) and _NAME.match(node.value) is not None)


def class_name(node: Node) -> str:
    """Return the class that a node names, as it was written, or an empty text."""
    named = node.value.get(CLASS_PATH) if node.is_mapping else node
    return named.value if named is not None and isinstance(named.value, str) else ""


def _same_class(one: Node, other: Node) -> bool:
    first, second = class_name(one), class_name(other)
    bare = "." not in first or "." not in second
    return first == second or (bare and first.rpartition(".")[2] == second.rpartition(".")[2])


def _overlay_mappings(lower: Node, higher: Node, problems: list[str], key: str) -> Node:
    if lower.is_spec or higher.is_spec:
        if class_name(lower) and class_name(higher) and not _same_class(lower, higher):
            return _settled(higher, problems, key)
        lower, higher = _as_spec(lower), _as_spec(higher)
    merged = dict(lower.value)
    for name, item in higher.value.items():
        _assign(merged, name, item, problems, key)
    return Node(merged, higher.source, higher.folded)


def _as_spec(node: Node) -> Node:
    if node.is_spec or not node.value:
        return node
    operations = {name: item for name, item in node.value.items() if name not in SPEC_KEYS}
    kept = {name: item for name, item in node.value.items() if name in SPEC_KEYS}
    return Node({**kept, INIT_ARGS: Node(operations, node.source, node.folded)}, node.source, node.folded)


def _settled(node: Node, problems: list[str], key: str) -> Node:
    """Return `node` as the first layer that has it: `key+` starts a list and `key-` has nothing to remove from."""
    if node.is_list:
        return Node(
            [_settled(item, problems, f"{key}.{number}") for number, item in enumerate(node.value)],
            node.source,
            node.folded,
        )
    if not node.is_mapping:
        return node
    merged: dict[Any, Node] = {}
    for name, item in node.value.items():
        _assign(merged, name, item, problems, key)
    return Node(merged, node.source, node.folded)


def _assign(merged: dict[Any, Node], name: Any, item: Node, problems: list[str], key: str) -> None:
    operation = name[-1] if isinstance(name, str) and len(name) > 1 and name[-1] in "+-" else ""
    bare = name[:-1] if operation else name
    spelled = _spelled(merged, bare, item)
    dotted = key if spelled == INIT_ARGS else f"{key}.{spelled}" if key else str(spelled)
    present = merged.get(spelled)
    if operation == "+":
        added = item.value if item.is_list else [item]
        before = [] if present is None or present.is_null else present.value if present.is_list else [present]
        merged[spelled] = Node([*before, *(_settled(one, problems, dotted) for one in added)], item.source)
    elif operation == "-":
        merged[spelled] = _without(present, item, problems, dotted)
    else:
        merged[spelled] = overlay(present, item, problems, dotted)


def _spelled(merged: dict[Any, Node], name: Any, item: Node) -> Any:
    """Return the key that `name` stands for: an environment variable has lost the case of its key."""
    if name in merged or not isinstance(name, str):
        return name
    for known, present in list(merged.items()):
        if isinstance(known, str) and known.lower() == name.lower():
            if item.folded:
                return known
            if present.folded:
                merged[name] = merged.pop(known)
                return name
    return name


def _without(present: Node | None, names: Node, problems: list[str], key: str) -> Node:
    items = present.value if present is not None and present.is_list else []
    kept = list(items)
    for wanted in names.value if names.is_list else [names]:
        matching = [
            item
            for item in kept
            if _same_class(item, wanted) or (not class_name(wanted) and plain(item) == plain(wanted))
        ]
        if not matching:
            listed = [class_name(item) or str(plain(item)) for item in items]
            short = [name.rpartition(".")[2] for name in listed]
            fix = f"name one of {', '.join(listed)}" if listed else f"leave {key}- out, the list is empty"
            problems.append(
                f"{names.source}: {key}-: "
                + explain("There is no such item to remove", got=plain(wanted), fix=fix)
                + nearest(str(plain(wanted)), [*listed, *short])
            )
        kept = [item for item in kept if item not in matching]
    return Node(kept, names.source)
