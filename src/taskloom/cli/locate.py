"""From the text that names a class to the class, with an account of what went wrong on the way.

A missing module, a missing attribute and a module that raises while it is imported are different mistakes with
different remedies, so they are told apart.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Union

from taskloom.core.errors import explain, nearest


class ClassNotFoundError(Exception):
    """Why a name led to no class; the text is ready to be shown."""


@contextmanager
def importable(folders: Iterable[str | Path]) -> Iterator[None]:
    """Put folders in front of `sys.path`, as Python does with the folder of a script, until the block ends.

    The working folder and the folders of configuration files come here, so `--task my_task.MyTask` works beside
    `my_task.py` without an installation. Modules stay imported afterwards; only the search path is restored.
    """
    before = list(sys.path)
    wanted = list(dict.fromkeys(str(Path(folder).resolve()) for folder in folders))
    sys.path[:] = [*wanted, *(entry for entry in before if entry not in wanted)]
    importlib.invalidate_caches()
    try:
        yield
    finally:
        added = [entry for entry in sys.path if entry not in wanted and entry not in before]
        sys.path[:] = [*added, *before]


Maker = Union[type, Callable[..., Any]]


def locate(name: str, bases: Sequence[type]) -> Maker:
    """Return the class, or the function that makes an object, that `name` stands for.

    Args:
        name: an import path, or the bare name of a class that is imported already and unique among the subclasses of
            `bases`.
        bases: what it should derive from; used to find bare names, not checked here.

    Raises:
        ClassNotFoundError: there is no such class; the text says why.
    """
    if "." not in name:
        return _by_bare_name(name, bases)
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        raise ClassNotFoundError(
            explain("This is not an import path", got=name, fix="write module.Class, without file endings or slashes")
        )
    for length in range(len(parts) - 1, 0, -1):
        module = _module(".".join(parts[:length]), name)
        if module is not None:
            return _attribute(module, parts[length:], name)
    raise ClassNotFoundError(_no_module(parts[0], name))


def subclasses(bases: Sequence[type]) -> list[type]:
    """Return every imported class below `bases` that can be named on a command line, `bases` included."""
    found: dict[type, None] = {}
    waiting = list(bases)
    while waiting:
        kind = waiting.pop(0)
        if kind not in found:
            found[kind] = None
            waiting.extend(type.__subclasses__(kind))
    return [kind for kind in found if "<locals>" not in kind.__qualname__ and not kind.__name__.startswith("_")]


def import_path(kind: Maker) -> str:
    """Return the path that imports a class or a function."""
    return f"{kind.__module__}.{kind.__qualname__}"


def importable_path(kind: type) -> str:
    """Return the path that imports a class in another process, also when it is defined in the script that runs."""
    if kind.__module__ != "__main__":
        return import_path(kind)
    file = vars(sys.modules["__main__"]).get("__file__")
    return f"{Path(file).stem}.{kind.__qualname__}" if file else import_path(kind)


def _by_bare_name(name: str, bases: Sequence[type]) -> type:
    known = subclasses(bases)
    named = [kind for kind in known if kind.__name__ == name]
    if len(named) == 1:
        return named[0]
    kinds = " or ".join(base.__name__ for base in bases)
    if named:
        raise ClassNotFoundError(
            explain(
                f"Several imported classes have this name: {', '.join(import_path(kind) for kind in named)}",
                got=name,
                fix="write the import path of one of them",
            )
        )
    raise ClassNotFoundError(
        explain(f"No imported subclass of {kinds} has this name", got=name, fix=f"write its import path, module.{name}")
        + nearest(name, [*(kind.__name__ for kind in known), *(each for base in bases for each in _not_loaded(base))])
    )


def _not_loaded(base: type) -> list[str]:
    """Return the names beside one of our own classes, which its package loads only when they are asked for."""
    package, _, _ = base.__module__.rpartition(".")
    return vars(importlib.import_module(package)).get("__all__", []) if package.startswith("taskloom.") else []


def _module(path: str, name: str) -> ModuleType | None:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is not None and (path == error.name or path.startswith(error.name + ".")):
            return None
        raise ClassNotFoundError(_module_raised(path, name, error)) from error
    except Exception as error:  # a module may raise anything while it runs
        raise ClassNotFoundError(_module_raised(path, name, error)) from error


def _attribute(module: ModuleType, names: Sequence[str], path: str) -> Maker:
    owner: Any = module
    for attribute in names:
        if not _present(owner, attribute):
            classes = [
                key
                for key, value in vars(owner).items()
                if inspect.isclass(value) and value.__module__ == module.__name__
            ]
            where = f"The module {module.__name__!r}" if owner is module else f"The class {owner!r}"
            listed = f"it has {', '.join(classes)}" if 0 < len(classes) <= 8 else ""
            raise ClassNotFoundError(
                explain(f"{where} ({_file(module)}) has no {attribute!r}", got=path, why=listed, fix="correct the name")
                + nearest(attribute, classes)
            )
        owner = getattr(owner, attribute)
    if not inspect.isclass(owner) and not inspect.isfunction(owner):
        raise ClassNotFoundError(
            explain(
                "The import path leads to something that is no class",
                got=path,
                why=f"its type is {type(owner).__name__}",
                fix="name a class",
            )
        )
    made: Maker = owner
    return made


def _present(owner: object, attribute: str) -> bool:
    """Whether the attribute exists, be it made on demand by a module's own `__getattr__` (PEP 562)."""
    try:
        getattr(owner, attribute)
    except AttributeError:
        return False
    return True


def _file(module: ModuleType) -> str:
    return _short(module.__file__) if module.__file__ else "built in"


def _short(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _no_module(top: str, name: str) -> str:
    folders = [
        entry
        for entry in sys.path
        if entry and Path(entry).is_dir() and "site-packages" not in entry and "lib/python" not in entry
    ]
    near: list[str] = []
    for folder in folders:
        near += [path.stem for path in Path(folder).glob("*.py")] + [
            path.parent.name for path in Path(folder).glob("*/__init__.py")
        ]
    what = explain(
        f"There is no module {top!r}",
        got=name,
        why="neither the working folder, nor a configuration's folder, nor an installed package has it",
        fix="correct the name, or install the package",
    )
    return what + nearest(top, near)


def _module_raised(path: str, name: str, error: Exception) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{_short(error.filename)}:{error.lineno}"
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if not frame.filename.startswith("<frozen") and "importlib" not in frame.filename
        ]
        own = [frame for frame in frames if Path(frame.filename).resolve() != Path(__file__).resolve()]
        where = f"{_short(own[-1].filename)}:{own[-1].lineno}" if own else path
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return explain(
        f"The module {path!r} exists, but raised an error while it was imported",
        got=name,
        why=f"{type(error).__name__} at {where}: {text}",
        fix="run python on that file, or correct it",
    )
