"""Why a configuration was refused: every problem, where it was written, what was expected and what was got.

jsonargparse decides whether a configuration is valid; its message names one problem, all branches of a union, and no
line. When it refuses one, this walks the tree beside the signatures and tells the story for a reader: it descends only
into what is refused, and of a union only into the branch that the value was meant for.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args, get_origin

from taskloom.cli.interpolate import is_reference
from taskloom.cli.locate import ClassNotFoundError, Maker, import_path, locate
from taskloom.cli.schema import (
    UNTYPED,
    Parameter,
    accepts,
    branches,
    built_class,
    describe,
    is_options,
    item_type,
    made_by,
    parameters,
    value_type,
)
from taskloom.cli.tree import CLASS_PATH, INIT_ARGS, SPEC_KEYS, WITHOUT_VALUE, Node, class_arguments, class_name, plain
from taskloom.core.errors import ABSENT, explain, nearest


def placed(node: Node, key: str, text: str) -> str:
    """Put the place and the dotted key before a text, the key only where the place does not say it already.

    Whatever is wrong with a flag that was written alone, what it lacks is a value.
    """
    if node.source.endswith(WITHOUT_VALUE):
        return f"{node.source.removesuffix(WITHOUT_VALUE)}: " + explain("This flag needs a value", fix=f"--{key} VALUE")
    return f"{node.source}: {text}" if node.source == f"flag --{key}" else f"{node.source}: {key}: {text}"


class Explainer:
    """Collects the problems of a tree.

    Args:
        linked: dotted keys that links will fill, which are therefore not missing.
        names: per top-level key, the short names that stand for classes (`adamw`), for suggestions.
    """

    def __init__(self, linked: Collection[str] = (), names: Mapping[str, Collection[str]] | None = None) -> None:
        self.linked = frozenset(linked)
        self.names = names or {}
        self.problems: list[str] = []

    def report(self, node: Node, key: str, text: str) -> None:
        """Add one problem."""
        self.problems.append(placed(node, key, text))

    def value(self, node: Node, annotation: Any, key: str) -> None:
        """Explain why `node` is not of a type; says nothing when it is."""
        if is_reference(node.value) or accepts(annotation, plain(node)):
            return
        members = [member for member in branches(annotation) if member is not type(None)]
        class_members = [member for member in members if built_class(member) is not None]
        if node.is_mapping:
            self._mapping(node, annotation, members, class_members, key)
        elif node.is_list:
            self._list(node, annotation, members, key)
        elif (
            isinstance(node.value, str)
            and class_members
            and (len(class_members) == len(members) or _is_import_path(node.value))
        ):
            self._one_class(node, class_members, key)
        else:
            self._unexpected(node, annotation, key)

    def arguments(self, kind: Maker, given: Mapping[Any, Node], node: Node, key: str, skip: int = 0) -> None:
        """Explain what is wrong with the arguments of a class.

        Args:
            kind: the class, or the function that makes its object.
            given: its arguments.
            node: the whole, for the place of what is missing.
            key: dotted.
            skip: how many first parameters somebody else will give.
        """
        known = dict(list(parameters(kind).items())[skip:])
        for name, item in given.items():
            below = f"{key}.{name}" if key else str(name)
            if name not in known:
                self.unknown(item, below, str(name), known, f"{kind.__name__} has no parameter {str(name)!r}")
            elif below not in self.linked:
                self._parameter(known[name], kind, item, below)
        for name, parameter in known.items():
            below = f"{key}.{name}" if key else name
            if parameter.required and name not in given and below not in self.linked:
                self.missing(
                    node,
                    below,
                    f"{kind.__name__} needs {name!r} ({describe(parameter.annotation)}), which nothing sets",
                )
                if parameter.annotation is UNTYPED:
                    self._untyped(name, kind, node, below)

    def unknown(self, node: Node, key: str, name: str, known: Collection[str], what: str) -> None:
        """Report a key that does not exist."""
        node = Node(
            node.value, node.source.removesuffix(WITHOUT_VALUE)
        )  # what is wrong is the key, not a lack of value
        hint = nearest(name, known)
        listed = f"the keys here are {', '.join(known)}" if not hint and 0 < len(known) <= 12 else ""
        why = listed or ("" if hint or known else "there are no keys here")
        self.report(node, key, explain(what, why=why) + hint)

    def missing(self, node: Node, key: str, what: str) -> None:
        """Report a key that must be given."""
        place = f"{node.source}: " if node.source != "default" else ""
        self.problems.append(
            f"{place}{key}: " + explain(what, fix=f"pass --{key}, or add the key to a configuration file")
        )

    def _parameter(self, parameter: Parameter, kind: Maker, node: Node, key: str) -> None:
        if parameter.annotation is UNTYPED and parameter.required:
            self._untyped(parameter.name, kind, node, key)
        else:
            self.value(node, parameter.annotation, key)

    def _untyped(self, name: str, kind: Maker, node: Node, key: str) -> None:
        self.report(
            node,
            key,
            explain(
                f"The parameter {name!r} of {import_path(kind)} has no type, so a value for it cannot be read",
                fix=f"write a type in its signature ({_defined_at(kind)}), for example `{name}: int`",
            ),
        )

    def _mapping(self, node: Node, annotation: Any, members: list[Any], class_members: list[Any], key: str) -> None:
        if node.is_spec and class_members:
            self._one_class(node, class_members, key)
            return
        mappings = [member for member in members if value_type(member) is not ABSENT]
        options = options_meant(node, members)
        if options is not None:
            self._one_class(node, [options], key)
            return
        if mappings:
            self._mapping_items(node, mappings[0], key)
        elif class_members:
            self._one_class(node, class_members, key)
        else:
            items = [member for member in members if item_type(member) is not ABSENT]
            if items and any(built_class(part) for part in branches(item_type(items[0]))):
                self.value(node, item_type(items[0]), key)
            else:
                self._unexpected(node, annotation, key)

    def _mapping_items(self, node: Node, member: Any, key: str) -> None:
        before = len(self.problems)
        args = get_args(member)
        for name, item in node.value.items():
            if len(args) == 2 and not accepts(args[0], name):
                self.report(item, f"{key}.{name}", explain(f"Expected {describe(args[0])} as the key", got=name))
            if value_type(member) is not UNTYPED:
                self.value(item, value_type(member), f"{key}.{name}")
        if len(self.problems) == before:
            self._unexpected(node, member, key)

    def _list(self, node: Node, annotation: Any, members: list[Any], key: str) -> None:
        sequences = [member for member in members if item_type(member) is not ABSENT]
        before = len(self.problems)
        for member in sequences[:1]:
            for number, item in enumerate(node.value):
                self.value(item, item_type(member), f"{key}.{number}")
        if len(self.problems) == before:
            self._unexpected(node, annotation, key)

    def _one_class(self, node: Node, members: list[Any], key: str) -> None:
        bases = [built for built in map(built_class, members) if built is not None]
        kind = self._located(node, bases, key)
        if kind is None:
            return
        made = made_by(kind)
        base = next((number for number, one in enumerate(bases) if made is not None and issubclass(made, one)), None)
        if base is None:
            kinds = " or ".join(import_path(one) for one in bases)
            self.report(
                node.value.get(CLASS_PATH, node) if node.is_mapping else node,
                key,
                explain(f"Expected a subclass of {kinds}", got=import_path(kind), why=_ancestry(kind, made)),
            )
            return
        if inspect.isabstract(kind):
            names = ", ".join(
                sorted(
                    name
                    for name, member in inspect.getmembers(kind)
                    if name in vars(kind).get("__abstractmethods__", ())
                )
            )
            self.report(
                node,
                key,
                explain(
                    f"{kind.__name__} is abstract and cannot be built",
                    why=f"it leaves {names} to its subclasses",
                    fix="name one of its subclasses",
                ),
            )
            return
        self._specification(node, key)
        self.arguments(kind, class_arguments(node), node, key, skip=_given_by_caller(members[base]))

    def _located(self, node: Node, bases: list[type], key: str) -> Maker | None:
        name = class_name(node)
        named = node.value.get(CLASS_PATH) if node.is_mapping else node
        if not name:
            if node.is_mapping and not node.is_spec and len(bases) == 1 and is_options(bases[0]):
                return bases[0]
            kinds = " or ".join(base.__name__ for base in bases)
            text = explain(
                f"Expected {describe(bases[0])}, given by its import path"
                if named is not None
                else f"The {kinds} class is not named",
                got=plain(named) if named is not None else ABSENT,
                fix=f"pass --{key} module.Class, or write class_path: module.Class",
            )
            self.report(named or node, key, text)
            return None
        try:
            return locate(name, bases)
        except ClassNotFoundError as error:
            short = self.names.get(key, ())
            hint = nearest(name, short) if "." not in name else ""
            listed = f" Short names: {', '.join(sorted(short))}." if short and "." not in name and not hint else ""
            self.report(
                named or node, key, str(error).split(" Did you mean")[0] + hint if hint else str(error) + listed
            )
            return None

    def _specification(self, node: Node, key: str) -> None:
        if not node.is_spec:
            return
        for name, item in node.value.items():
            if name not in SPEC_KEYS:
                self.report(
                    item,
                    f"{key}.{name}",
                    explain(
                        "Beside class_path, arguments stand below init_args",
                        got=name,
                        fix=f"indent {name!r} below `init_args:`",
                    ),
                )
        arguments = node.value.get(INIT_ARGS)
        if arguments is not None and not arguments.is_mapping and not arguments.is_null:
            self.report(
                arguments,
                f"{key}.{INIT_ARGS}",
                explain("Expected a mapping of parameters to values", got=plain(arguments)),
            )

    def _unexpected(self, node: Node, annotation: Any, key: str) -> None:
        value = plain(node)
        hint = ""
        choices = [arg for member in branches(annotation) for arg in get_args(member) if isinstance(arg, str)]
        if isinstance(value, str) and choices:
            hint = nearest(value, choices)
        self.report(node, key, explain(f"Expected {describe(annotation)}", got=value) + hint)


def options_meant(node: Node, members: Sequence[Any]) -> type | None:
    """Return the record of options that a mapping is meant for: the one that shares most keys with it.

    Where a plain mapping would do as well, a record is meant only if it shares a key.
    """
    kinds = [kind for member in members for kind in [built_class(member)] if kind is not None and is_options(kind)]
    if not kinds or not node.is_mapping:
        return None
    given = set(node.value)
    best = max(kinds, key=lambda kind: len(given & set(parameters(kind))))
    plain_fits = any(value_type(member) is not ABSENT for member in members)
    return best if not plain_fits or given & set(parameters(best)) else None


def _ancestry(kind: Maker, made: type | None) -> str:
    if made is None:
        return f"{kind.__name__} is a function whose annotations do not say what it returns"
    derived = ", ".join(one.__name__ for one in made.__bases__)
    return f"{made.__name__} derives from {derived}" if made is kind else f"{kind.__name__} returns {made.__name__}"


def _is_import_path(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _given_by_caller(member: Any) -> int:
    """Return how many first arguments of the class the caller of `Callable[[...], Class]` gives."""
    args = get_args(member)
    return len(args[0]) if get_origin(member) is not None and len(args) == 2 and isinstance(args[0], list) else 0


def _defined_at(kind: Maker) -> str:
    try:
        code = vars(kind).get("__init__", kind) if inspect.isclass(kind) else kind
        return f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(code)[1]}"
    except (OSError, TypeError):
        return import_path(kind)
