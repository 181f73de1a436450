"""Links: a value that is written once and used twice, as the number of classes that data knows and a model needs.

A source that is a parameter is copied before anything is built. Any other source is an attribute of the built `task` or
`data`: it is read as soon as that object exists and before the other one is built, in an order that jsonargparse works
out. Either way the value ends in the saved configuration, so a run can be repeated without its links.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import ArgumentParser

from taskloom.cli.root import Root
from taskloom.cli.schema import made_by
from taskloom.cli.tree import INIT_ARGS, Node, copied, find, nested, node_of, overlay, plain, split_key
from taskloom.core.errors import ConfigError, explain, nearest

OBJECTS = ("data", "task")


@dataclass
class Link:
    """`target` takes its value from `sources`.

    Args:
        sources: dotted keys; several only with `compute`.
        target: dotted key of a parameter.
        origin: where the link was written, for messages.
        compute: makes the value from those of the sources.
    """

    sources: tuple[str, ...]
    target: str
    origin: str
    compute: Callable[..., Any] | None = None
    explicit: Node | None = field(default=None, repr=False)
    resolved: Any = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The link as it is written on a command line."""
        return f"{', '.join(self.sources)}={self.target}"

    @property
    def label(self) -> str:
        """The link as the source of a value."""
        return f"link {', '.join(self.sources)}"

    def value_of(self, values: Sequence[Any]) -> Any:
        """Return the value for the target.

        Raises:
            ConfigError: `compute` raised.
        """
        if self.compute is None:
            return values[0]
        try:
            return self.compute(*values)
        except Exception as error:  # a user's function may raise anything
            raise ConfigError(
                [
                    f"{self.origin}: {self.text}: "
                    + explain(
                        "The function of this link raised an error",
                        got=list(values),
                        why=f"{type(error).__name__}: {error}",
                    )
                ]
            ) from error


def read_link(text: str, origin: str) -> Link:
    """Read `source=target`.

    Raises:
        ConfigError: the text is no link.
    """
    source, _, target = text.partition("=")
    if not source.strip() or not target.strip() or "=" in target:
        raise ConfigError(
            [
                f"{origin}: "
                + explain("A link is written SOURCE=TARGET", got=text, fix="data.num_classes=task.num_classes")
            ]
        )
    return Link((_key(source),), _key(target), origin)


def links_of_tree(node: Node | None, problems: list[str]) -> list[Link]:
    """Read the `link:` section of a file: a list of `source=target`, or a mapping of source to target."""
    if node is None or node.is_null:
        return []
    if node.is_mapping:
        written = [(f"{source}={plain(target)}", target.source) for source, target in node.value.items()]
    else:
        written = [(str(plain(item)), item.source) for item in (node.value if node.is_list else [node])]
    found = []
    for text, origin in written:
        try:
            found.append(read_link(text, origin))
        except ConfigError as error:
            problems.extend(error.problems)
    return found


def _key(text: str) -> str:
    return ".".join(split_key(text.strip()))


class Links:
    """The links of one configuration, sorted into those between parameters and those that read built objects."""

    def __init__(self, links: Sequence[Link], root: Root, tree: Node, problems: list[str]) -> None:
        self.root, self.problems = root, problems
        self.on_parse: list[Link] = []
        self.on_build: list[Link] = []
        taken: dict[str, Link] = {}
        for link in links:
            if link.target in taken:
                self._report(
                    link,
                    explain(
                        f"{link.target} is the target of two links",
                        why=f"the other is {taken[link.target].text} ({taken[link.target].origin})",
                        fix="remove one of them",
                    ),
                )
            elif self._known(link, tree):
                taken[link.target] = link
                built = any(root.parameter_at(tree, source) is None for source in link.sources)
                (self.on_build if built else self.on_parse).append(link)
        self.on_parse = self._sorted()
        self._check_objects()

    @property
    def targets(self) -> set[str]:
        """The keys that links fill."""
        return {link.target for link in (*self.on_parse, *self.on_build)}

    def apply_on_parse(self, tree: Node) -> Node:
        """Copy values between parameters; return the new tree."""
        for link in self.on_parse:
            sources = [find(tree, source) or self.root.default_at(tree, source) for source in link.sources]
            if any(node is None for node in sources):
                missing = next(source for source, node in zip(link.sources, sources, strict=True) if node is None)
                self._report(link, explain(f"{missing} has no value to take", fix=f"pass --{missing}"))
                continue
            try:
                value = (
                    copied(sources[0])
                    if link.compute is None and sources[0]
                    else node_of(link.value_of([plain(node) for node in sources if node]), link.label)
                )
            except ConfigError as error:
                self.problems.extend(error.problems)
                continue
            tree = self._set(tree, link, value)
        return tree

    def without_built_targets(self, tree: Node) -> Node:
        """Take away explicit values of targets that built objects will fill, to compare them later."""
        for link in self.on_build:
            link.explicit = find(tree, link.target)
            if link.explicit is not None:
                tree = _without(tree, split_key(link.target))
        return tree

    def add_to(self, parser: ArgumentParser, tree: Node) -> None:
        """Hand the links that read built objects to jsonargparse, which orders the construction.

        Raises:
            ConfigError: the links go round in a circle.
        """
        for link in self.on_build:
            heads = tuple(dict.fromkeys(source.split(".")[0] for source in link.sources))
            try:
                parser.link_arguments(
                    heads, self._spelled_out(link.target, tree), compute_fn=_Reader(link, heads), apply_on="instantiate"
                )
            except ValueError as error:
                if "cycle" not in str(error):
                    raise
                others = " and ".join(other.text for other in self.on_build)
                raise ConfigError(
                    [
                        f"{link.origin}: {link.text}: "
                        + explain(
                            "Links go round in a circle",
                            got=others,
                            why="each of these objects would have to be built before the other",
                            fix="write one of the values",
                        )
                    ]
                ) from error

    def add_built_values(self, values: dict[str, Any], tree: Node) -> None:
        """Write the values that were read from built objects into the data of the saved configuration."""
        for link in self.on_build:
            *above, last = self._spelled_out(link.target, tree).split(".")
            place = values
            for part in above:
                place = place.setdefault(part, {})
            place[last] = link.resolved

    def _set(self, tree: Node, link: Link, value: Node) -> Node:
        explicit = find(tree, link.target)
        new = copied(value)
        new.source = link.label
        if explicit is not None and not explicit.is_null and str(plain(explicit)) != str(plain(new)):
            self._report(link, _conflict(link, explicit, plain(new)))
        return overlay(tree, nested(link.target, new), [])

    def _known(self, link: Link, tree: Node) -> bool:
        fine = True
        if self.root.parameter_at(tree, link.target) is None and not _unknowable(self.root, tree, link.target):
            self._report(
                link,
                explain(f"There is no parameter {link.target!r} to set", got=link.text)
                + nearest(link.target, self.root.known_keys(tree)),
            )
            fine = False
        for source in link.sources:
            if self.root.parameter_at(tree, source) is not None:
                continue
            head, _, rest = source.partition(".")
            kind = made_by(self.root.kind_at(tree, head)) if head in OBJECTS else None
            if head not in OBJECTS or not rest:
                self._report(
                    link,
                    explain(
                        f"There is no parameter {source!r} to take a value from",
                        got=link.text,
                        why="beside parameters, only attributes of task and data can be linked",
                    )
                    + nearest(source, self.root.known_keys(tree)),
                )
                fine = False
            elif kind is not None:
                names = attribute_names(kind)
                first = rest.split(".")[0]
                if names is not None and first not in names:
                    self._report(
                        link,
                        explain(f"{kind.__name__} has neither a parameter nor an attribute {first!r}", got=link.text)
                        + nearest(first, names),
                    )
                    fine = False
        return fine

    def _check_objects(self) -> None:
        for link in self.on_build:
            head = link.target.split(".")[0]
            if head not in OBJECTS:
                self._report(
                    link,
                    explain(
                        "An attribute of a built object can only be given to task or data",
                        got=link.text,
                        fix="take it from a parameter",
                    ),
                )
            elif any(source.split(".")[0] == head for source in link.sources):
                self._report(
                    link,
                    explain(
                        "Links go round in a circle",
                        got=link.text,
                        why=f"{head} would have to be built before itself",
                        fix="take the value from a parameter",
                    ),
                )

    def _sorted(self) -> list[Link]:
        ordered: list[Link] = []
        waiting = list(self.on_parse)
        while waiting:
            pending = {link.target for link in waiting}
            ready = [
                link
                for link in waiting
                if not any(_touches(source, target) for source in link.sources for target in pending)
            ]
            if not ready:
                self._report(
                    waiting[0],
                    explain(
                        "Links go round in a circle",
                        got=" and ".join(link.text for link in waiting),
                        fix="write one of the values",
                    ),
                )
                return ordered
            ordered += ready
            waiting = [link for link in waiting if link not in ready]
        return ordered

    def _report(self, link: Link, text: str) -> None:
        self.problems.append(f"{link.origin}: {text}" if link.text in text else f"{link.origin}: {link.text}: {text}")

    def _spelled_out(self, key: str, tree: Node) -> str:
        """Return a key with the `init_args` that jsonargparse wants."""
        parts = split_key(key)
        found = parts[:1]
        for number, part in enumerate(parts[1:], 1):
            if ".".join(parts[:number]) not in self.root.fixed:
                found.append(INIT_ARGS)
            found.append(part)
        return ".".join(found)


@dataclass
class _Reader:
    """Reads the sources of a link from the built objects; the callable that jsonargparse is given."""

    link: Link
    heads: tuple[str, ...]

    def __call__(self, *objects: Any) -> Any:
        built = dict(zip(self.heads, objects, strict=True))
        value = self.link.value_of(
            [read_attribute(self.link, built[source.split(".")[0]], source) for source in self.link.sources]
        )
        explicit = self.link.explicit
        if explicit is not None and not explicit.is_null and str(plain(explicit)) != str(value):
            raise ConfigError([f"{self.link.origin}: {self.link.text}: {_conflict(self.link, explicit, value)}"])
        self.link.resolved = value
        return value


def read_attribute(link: Link, owner: Any, source: str) -> Any:
    """Follow a dotted source from a built object.

    Raises:
        ConfigError: the object has no such attribute, or reading it raised.
    """
    for name in source.split(".")[1:]:
        try:
            owner = getattr(owner, name)
        except Exception as error:  # a property may raise anything
            raise ConfigError(
                [
                    f"{link.origin}: {link.text}: "
                    + explain(
                        f"Reading {name!r} of the built {type(owner).__name__} failed",
                        why=f"{type(error).__name__}: {error}",
                        fix="set the attribute in __init__; setup and prepare_data run later",
                    )
                ]
            ) from error
    return owner


def _conflict(link: Link, explicit: Node, value: Any) -> str:
    return explain(
        f"{link.target} has a value of its own and another one from this link",
        got=plain(explicit),
        why=f"{explicit.source} says {plain(explicit)!r}, the link says {value!r}",
        fix="remove the value or the link",
    )


def attribute_names(kind: type) -> set[str] | None:
    """Return the attributes that objects of a class have by its source; `None` when that cannot be known."""
    names = set(dir(kind))
    for base in kind.__mro__[:-1]:
        if base.__module__.startswith("torch."):
            continue
        names |= set(vars(base).get("__annotations__", {}))
        if "__getattr__" in vars(base):
            return None
        try:
            source = textwrap.dedent(inspect.getsource(base))
            names |= {
                node.attr
                for node in ast.walk(ast.parse(source))
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            }
        except (OSError, TypeError, SyntaxError):
            return None
    return names


def _unknowable(root: Root, tree: Node, key: str) -> bool:
    """Whether the class above a key cannot be known, which is reported elsewhere."""
    parts = split_key(key)
    return len(parts) > 1 and parts[0] in root.parameters and root.kind_at(tree, ".".join(parts[:-1])) is None


def _touches(one: str, other: str) -> bool:
    return one == other or one.startswith(other + ".") or other.startswith(one + ".")


def _without(node: Node, parts: list[str]) -> Node:
    if not node.is_mapping:
        return node
    items = dict(node.value)
    if INIT_ARGS in items and parts[0] not in items:
        items[INIT_ARGS] = _without(items[INIT_ARGS], parts)
    elif len(parts) == 1:
        items.pop(parts[0], None)
    elif parts[0] in items:
        items[parts[0]] = _without(items[parts[0]], parts[1:])
    return Node(items, node.source, node.folded)
