"""What a class accepts, as jsonargparse sees it.

The signature is the schema: names, types and defaults come from `__init__` (followed through `*args` and `**kwargs`),
help from the docstring. Whatever this package needs from inside jsonargparse is imported here and nowhere else.
"""

from __future__ import annotations

import inspect
import types
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse._parameter_resolvers import get_signature_parameters

from taskloom.core.errors import ABSENT

UNTYPED: Final = inspect.Parameter.empty
_PLAIN_MODULES = frozenset({"builtins", "collections.abc", "typing", "pathlib", "datetime", "enum", "types"})
_SCALARS = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Parameter:
    """One parameter of a class.

    Args:
        name: as in the signature.
        annotation: its type, `UNTYPED` when none is written.
        default: `ABSENT` when it must be given.
    """

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is ABSENT


@cache
def parameters(kind: Callable[..., Any]) -> Mapping[str, Parameter]:
    """Return the parameters of a class, or of a function, by name."""
    found = get_signature_parameters(kind, None, logger=False)
    return {
        item.name: Parameter(item.name, item.annotation, ABSENT if item.default is UNTYPED else item.default)
        for item in found
    }


def branches(annotation: Any) -> tuple[Any, ...]:
    """Return the members of a union, nested ones included; a type that is no union is its only member."""
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in branches(part))
    if isinstance(annotation, TypeVar) and annotation.__bound__ is not None:
        return branches(annotation.__bound__)
    return (annotation,)


def is_class(annotation: Any) -> bool:
    """Whether values of this type are built from `class_path` and `init_args`."""
    origin = get_origin(annotation) or annotation
    if not inspect.isclass(origin) or annotation in _SCALARS or annotation in (Any, object, UNTYPED):
        return False
    if issubclass(origin, (str, bytes, int, float, list, tuple, set, frozenset, dict)):
        return False
    return not (origin.__module__ in _PLAIN_MODULES or issubclass(origin, Enum))


def built_class(annotation: Any) -> type | None:
    """Return the class that a branch builds: the class itself, or what a `Callable[..., Class]` returns."""
    if get_origin(annotation) is Callable:
        returned = get_args(annotation)[-1:]
        return built_class(returned[0]) if returned else None
    kind = get_origin(annotation) or annotation
    return kind if is_class(annotation) and isinstance(kind, type) else None


def add_class(
    parser: ArgumentParser, kind: Callable[..., Any], key: str, *, skip: int = 0, lenient: bool = False
) -> None:
    """Add the parameters of a class under `key`, hiding the `--key FILE` that jsonargparse adds beside them.

    Args:
        parser: to add to.
        kind: the class, or a function.
        key: what the flags begin with.
        skip: how many first parameters to leave out.
        lenient: take a required parameter without a type for optional, as a help text may and a configuration must not.

    Raises:
        ValueError: a required parameter has no type.
    """
    add = parser.add_class_arguments if inspect.isclass(kind) else parser.add_function_arguments
    add(kind, key, fail_untyped=not lenient, skip={skip} if skip else None)
    for action in parser._actions:
        if action.dest == key:
            action.help = SUPPRESS


def hide_class_help(parser: ArgumentParser) -> None:
    """Keep the `--KEY.help` of every key out of the help."""
    for action in parser._actions:
        if action.dest.endswith(".help"):
            action.help = SUPPRESS


def made_by(maker: Any) -> type | None:
    """Return the class of what a class or an annotated function makes; `None` when a function does not say."""
    if inspect.isclass(maker):
        return maker
    try:
        returned = get_type_hints(maker).get("return")
    except (NameError, TypeError):
        return None
    return returned if inspect.isclass(returned) else None


def is_options(kind: type) -> bool:
    """Whether a class is a plain record of options, whose arguments may be written without `class_path`."""
    return is_dataclass(kind)


def item_type(annotation: Any) -> Any:
    """Return the item type of a sequence type: `UNTYPED` when it has none, `ABSENT` when this is no sequence."""
    origin = get_origin(annotation) or annotation
    if (
        not inspect.isclass(origin)
        or issubclass(origin, (str, bytes, Mapping))
        or not issubclass(origin, (Sequence, AbstractSet))
    ):
        return ABSENT
    args = [arg for arg in get_args(annotation) if arg is not ...]
    return args[0] if args else UNTYPED


def value_type(annotation: Any) -> Any:
    """Return the type of the values of a mapping type, `UNTYPED` when it has none, `ABSENT` when this is no mapping."""
    origin = get_origin(annotation) or annotation
    if not inspect.isclass(origin) or not issubclass(origin, Mapping):
        return ABSENT
    args = get_args(annotation)
    return args[1] if len(args) == 2 else UNTYPED


def accepts(annotation: Any, value: Any) -> bool:
    """Ask jsonargparse whether a value is of a type."""
    return rejection(annotation, value) == ""


def rejection(annotation: Any, value: Any) -> str:
    """Return why jsonargparse takes a value not to be of a type, or an empty text when it is."""
    if annotation is UNTYPED or annotation is Any:
        return ""
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_argument("--value", type=annotation)
        parser.parse_object({"value": value}, env=False, defaults=False)
    except (ArgumentError, TypeError, ValueError, KeyError, AttributeError) as error:
        return str(error) or type(error).__name__
    return ""


def describe(annotation: Any) -> str:
    """Return a type in words, as in "Expected ..."."""
    words = list(dict.fromkeys(_word(member) for member in branches(annotation)))
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _word(annotation: Any) -> str:
    if annotation is UNTYPED or annotation is Any:
        return "anything"
    if annotation is type(None):
        return "null"
    if get_origin(annotation) is Literal:
        return " or ".join(repr(arg) for arg in get_args(annotation))
    made = built_class(annotation)
    if made is not None:
        return f"the options of {made.__name__}" if is_options(made) else f"a {made.__name__} class"
    if value_type(annotation) is not ABSENT:
        args = get_args(annotation)
        return f"a mapping of {describe(args[0])} to {describe(args[1])}" if len(args) == 2 else "a mapping"
    item = item_type(annotation)
    if item is not ABSENT:
        return (
            "a list"
            if item is UNTYPED
            else f"a list of ({describe(item)})"
            if len(branches(item)) > 1
            else f"a list of {describe(item)}"
        )
    if inspect.isclass(annotation):
        if issubclass(annotation, Enum):
            return " or ".join(repr(name) for name in annotation.__members__)
        return annotation.__name__
    return str(annotation)
