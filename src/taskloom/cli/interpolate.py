"""`${key.path}` in a value stands for the value of another key, whichever layer wrote it.

Resolved once, after all layers are merged. A value that is nothing but one reference keeps the type of what it refers
to; inside a longer text a reference becomes text. `$${` is a literal `${`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from taskloom.cli.tree import Node, copied, find, plain, split_key, walk
from taskloom.core.errors import explain, nearest

_REFERENCE = re.compile(r"(?<!\$)\$\{([^${}]*)\}")
_ESCAPED = re.compile(r"\$(\$\{)")

Default = Callable[[str], Node | None]


def resolve_references(tree: Node, default: Default, known: Callable[[], Iterable[str]], problems: list[str]) -> None:
    """Replace every reference in `tree`, in place.

    Args:
        tree: the merged configuration.
        default: returns the default of a key that no layer sets, or `None` when there is no such key.
        known: returns the keys that exist, to suggest one for a misspelt reference.
        problems: where unknown references and cycles are reported.
    """
    resolver = _Resolver(tree, default, known, problems)
    for key, node in list(walk(tree)):
        if isinstance(node.value, str) and "${" in node.value:
            resolver.resolve(key, node, (key,))


class _Resolver:
    def __init__(self, tree: Node, default: Default, known: Callable[[], Iterable[str]], problems: list[str]) -> None:
        self.tree, self.default, self.known, self.problems = tree, default, known, problems
        self.circles: set[frozenset[str]] = set()

    def resolve(self, key: str, node: Node, path: tuple[str, ...]) -> bool:
        """Resolve the references in `node`; return whether all could be."""
        text: str = node.value
        references = _REFERENCE.findall(text)
        found: list[Node] = []
        for reference in references:
            target = self._target(key, node, reference.strip(), path)
            if target is None:
                return False
            found.append(target)
        if len(references) == 1 and _REFERENCE.fullmatch(text.strip()):
            node.value = copied(found[0]).value
        else:
            values = iter(found)
            node.value = _ESCAPED.sub(r"\1", _REFERENCE.sub(lambda _: _as_text(next(values)), text))
        return True

    def _target(self, key: str, node: Node, reference: str, path: tuple[str, ...]) -> Node | None:
        wanted = ".".join(split_key(reference))
        if wanted in path:
            self._circle(node, key, [*path[path.index(wanted) :], wanted])
            return None
        target = find(self.tree, wanted) or self.default(wanted)
        if target is None:
            self._report(
                node,
                key,
                explain(
                    "There is no key to take a value from",
                    got=f"${{{reference}}}",
                    fix="name a key of the configuration, or write $${ for a literal ${",
                )
                + nearest(wanted, self.known()),
            )
            return None
        for below, inner in [(wanted, target), *((f"{wanted}.{name}", item) for name, item in walk(target))]:
            if below in path:
                self._circle(node, key, [*path[path.index(below) :], below])
                return None
            if (
                isinstance(inner.value, str)
                and _REFERENCE.search(inner.value)
                and not self.resolve(below, inner, (*path, below))
            ):
                return None
        return target

    def _circle(self, node: Node, key: str, keys: list[str]) -> None:
        if frozenset(keys) not in self.circles:
            self.circles.add(frozenset(keys))
            self._report(
                node,
                key,
                explain("References form a circle", got=" -> ".join(keys), fix="give one of these keys a value"),
            )

    def _report(self, node: Node, key: str, text: str) -> None:
        problem = f"{node.source}: {key}: {text}"
        if problem not in self.problems:
            self.problems.append(problem)


def _as_text(node: Node) -> str:
    value: Any = plain(node)
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_reference(value: Any) -> bool:
    """Whether a value still holds a reference, because it could not be resolved."""
    return isinstance(value, str) and _REFERENCE.search(value) is not None
