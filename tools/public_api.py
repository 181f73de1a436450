"""Write tests/public_api.txt: every public name of taskloom with its signature and its public methods.

A change to what users may call shows up as a change of that file, which is reviewed like any other (`make api`).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import taskloom

SNAPSHOT = Path(__file__).resolve().parents[1] / "tests" / "public_api.txt"


def signature(function: object) -> str:
    """The parameters of a callable as text, the same on every run and every supported Python."""
    if not callable(function):
        return ""
    text = str(inspect.signature(function)).replace("(self, ", "(").replace("(self)", "()")
    # Objects that serve as defaults show where they lie in memory.
    return re.sub(r"<([\w.]+)[^<>]*? at 0x[0-9a-f]+>", r"<\1>", text)


def members(cls: type) -> Iterator[str]:
    """The public attributes of a class, one line each, without those of public base classes and of other packages."""
    public_bases = {getattr(taskloom, name) for name in taskloom.__all__} - {cls}
    own = [base for base in cls.__mro__ if base.__module__.split(".")[0] == cls.__module__.split(".")[0]]
    attributes = {
        name: value for base in reversed(own) if base not in public_bases for name, value in vars(base).items()
    }
    for name, value in sorted(attributes.items()):
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"  {name}: property"
        elif isinstance(value, (classmethod, staticmethod)):
            yield f"  {name}{signature(value.__func__)}: {type(value).__name__}"
        elif inspect.isfunction(value):
            yield f"  {name}{signature(value)}"


def describe(name: str, value: object) -> Iterator[str]:
    """The lines of one public name."""
    if isinstance(value, type):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        plain = issubclass(value, BaseException) or value.__init__ is object.__init__
        parameters = "" if plain else signature(value.__init__)  # type: ignore[misc]
        yield f"class {name}{f'({bases})' if bases else ''} {parameters}".rstrip()
        yield from members(value)
    elif callable(value):
        yield f"{name}{signature(value)}"
    else:
        yield f"{name}: {type(value).__name__}"


def render() -> str:
    """The whole snapshot as text."""
    public = sorted(taskloom.__all__)
    return "\n".join(line for name in public for line in describe(name, getattr(taskloom, name))) + "\n"


if __name__ == "__main__":
    SNAPSHOT.write_text(render(), encoding="utf-8")
