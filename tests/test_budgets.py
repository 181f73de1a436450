"""The budgets that keep the package readable: sizes, floors of imports, and what source code must not do.

Static ones are read from the syntax tree of every module; those of a process are in tests/test_import_time.py. A budget
may be exceeded only by a name in EXCEPTIONS, with its reason, and a name there must need it.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "taskloom"

FILE_LINES, FUNCTION_LINES, CLASS_LINES = 600, 80, 400
TRAINER_PARAMETERS = 24
FRAMES_TO_TRAINING_STEP, FILES_TO_TRAINING_STEP = 4, 3

# From the ground up. A module imports its own floor and those below; each line is one floor.
FLOORS = """
core
accelerators precision
metrics optim data checkpoint
launch
strategies
resolve
fabric
integrations loggers callbacks tune report inference
loop
trainer
cli conformance
"""
FLOOR = {name: number for number, names in enumerate(FLOORS.split("\n")) for name in names.split()}
TOP = max(FLOOR.values())
# The package itself and `python -m taskloom` stand outside the house: they only hand out names.
OUTSIDE = {"__init__", "__main__"}

# "path: what exceeds" as a check words it, without numbers, to the reason why that is right.
EXCEPTIONS: dict[str, str] = {
    "loop/determinism.py: writes to os.environ: pass the value": "cuBLAS learns the size of its workspace nowhere else",
}


@dataclass(frozen=True)
class Module:
    """One source file of the package, parsed."""

    path: str
    text: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """The folder or module directly under the package: what has a floor."""
        return self.path.split("/")[0].removesuffix(".py")

    def nodes(self, *kinds: type[ast.AST]) -> Iterator[ast.AST]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


Check = Callable[[Module], Iterator[str]]


@cache
def modules() -> tuple[Module, ...]:
    files = sorted(PACKAGE.rglob("*.py"))
    texts = [(file, file.read_text(encoding="utf-8")) for file in files]
    return tuple(Module(file.relative_to(PACKAGE).as_posix(), text, ast.parse(text)) for file, text in texts)


def parse(source: str, path: str = "core/example.py") -> Module:
    return Module(path, source, ast.parse(source))


def lines_of(node: ast.AST) -> int:
    assert isinstance(node, ast.stmt)
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def sizes(module: Module) -> Iterator[str]:
    if (lines := module.text.count("\n")) > FILE_LINES:
        yield f"file of {lines} lines"
    for node in module.nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        if (lines := lines_of(node)) > FUNCTION_LINES:
            yield f"{node.name} of {lines} lines"
    for node in module.nodes(ast.ClassDef):
        if (lines := lines_of(node)) > CLASS_LINES:
            yield f"class {node.name} of {lines} lines"


def only_for_types(module: Module) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING`, and so never runs."""
    guarded = [node for node in module.nodes(ast.If) if "TYPE_CHECKING" in ast.unparse(node.test)]
    return {inner for node in guarded for statement in node.body for inner in ast.walk(statement)}


def imported_parts(module: Module) -> Iterator[str]:
    """The parts of the package that a module imports when it runs; "" for a public name of the package itself."""
    ignored = only_for_types(module)
    for node in module.nodes(ast.Import, ast.ImportFrom):
        if node in ignored:
            continue
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            names = [f"taskloom.{alias.name}" for alias in node.names] if source == "taskloom" else [source]
        else:
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("taskloom."):
                part = name.split(".")[1]
                yield part if part in FLOOR else ""


def floors(module: Module) -> Iterator[str]:
    if module.part in OUTSIDE:
        return
    if module.part not in FLOOR:
        yield f"{module.part} has no floor: give it one in FLOORS"
        return
    for node in module.nodes(ast.ImportFrom):
        if node.level:
            yield "relative import: write taskloom.… in full"
    for part in imported_parts(module):
        if not part and FLOOR[module.part] < TOP:
            yield "imports a public name of taskloom: import it from the module that defines it"
        elif part and FLOOR[part] > FLOOR[module.part]:
            yield f"{module.part} imports {part}, a floor above it"


def called_names(module: Module) -> Iterator[str]:
    for node in module.nodes(ast.Call):
        if isinstance(node.func, ast.Name):
            yield node.func.id


def probing(module: Module) -> Iterator[str]:
    if "hasattr" in called_names(module):
        yield "hasattr: declare the attribute on the interface"


def printing(module: Module) -> Iterator[str]:
    if module.part not in {"cli", "report"} and "print" in called_names(module):
        yield "print: only the command line and reports write to the terminal"


def bare_except(module: Module) -> Iterator[str]:
    if any(node.type is None for node in module.nodes(ast.ExceptHandler)):
        yield "bare except"


def unlinked_todo(module: Module) -> Iterator[str]:
    if any(re.search(r"#.*\b(TODO|FIXME|XXX)\b(?!.*https?://)", line) for line in module.text.splitlines()):
        yield "TODO without a link to an issue"


def configuring_through_environment(module: Module) -> Iterator[str]:
    for node in module.nodes(ast.Assign, ast.AugAssign, ast.Delete, ast.Call):
        targets = (
            [node.func] if isinstance(node, ast.Call) else getattr(node, "targets", [getattr(node, "target", None)])
        )
        written = [ast.unparse(target) for target in targets if target is not None]
        if any(
            re.match(r"os\.(environ(\[|\.(update|setdefault|pop|clear)$)|putenv|unsetenv)", text) for text in written
        ):
            yield "writes to os.environ: pass the value"


def helper_bin(module: Module) -> Iterator[str]:
    if re.search(r"(^|/|_)(utils?|helpers?|misc|common)(\.py|/|_)", module.path):
        yield "a bin for helpers: move each beside its caller, or find its noun"


CHECKS: tuple[Check, ...] = (
    sizes,
    floors,
    probing,
    printing,
    bare_except,
    unlinked_todo,
    configuring_through_environment,
    helper_bin,
)


def without_numbers(finding: str) -> str:
    return re.sub(r" of \d+ lines", "", finding)


def findings(check: Check, sources: Iterable[Module]) -> list[str]:
    return sorted({f"{module.path}: {finding}" for module in sources for finding in check(module)})


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_package_is_within(check: Check) -> None:
    exceeded = [found for found in findings(check, modules()) if without_numbers(found) not in EXCEPTIONS]
    assert not exceeded, "\n" + "\n".join(exceeded)


def test_every_exception_is_needed_and_has_a_reason() -> None:
    needed = {without_numbers(found) for check in CHECKS for found in findings(check, modules())}
    assert set(EXCEPTIONS) <= needed
    assert all(EXCEPTIONS.values())


BREACHES: dict[str, tuple[Check, str, str]] = {
    "long file": (sizes, "x = 1\n" * 601, "core/example.py"),
    "long function": (sizes, "def f():\n" + "    x = 1\n" * 80, "core/example.py"),
    "long class": (sizes, "class C:\n" + "    x = 1\n" * 400, "core/example.py"),
    "import from above": (floors, "from taskloom.trainer import Trainer", "core/example.py"),
    "import from above inside a function": (floors, "def f():\n    import taskloom.cli.fit", "trainer.py"),
    "public name": (floors, "from taskloom import Trainer", "callbacks/example.py"),
    "module by its package": (floors, "from taskloom import trainer", "loop/example.py"),
    "relative import": (floors, "from .errors import ConfigError", "core/example.py"),
    "no floor": (floors, "", "elsewhere.py"),
    "hasattr": (probing, "hasattr(x, 'y')", "core/example.py"),
    "print": (printing, "print(1)", "loop/fit.py"),
    "bare except": (bare_except, "try:\n    pass\nexcept:\n    pass", "core/example.py"),
    "TODO": (unlinked_todo, "x = 1  # TODO: later", "core/example.py"),
    "environment item": (configuring_through_environment, "os.environ['A'] = '1'", "core/example.py"),
    "environment call": (configuring_through_environment, "os.environ.setdefault('A', '1')", "core/example.py"),
    "environment deletion": (configuring_through_environment, "del os.environ['A']", "core/example.py"),
    "utils": (helper_bin, "", "core/utils.py"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_is_found(breach: str) -> None:
    check, source, path = BREACHES[breach]
    assert list(check(parse(source, path)))


@pytest.mark.parametrize(
    ("check", "source", "path"),
    [
        (floors, "from taskloom.core.loss import Loss\nfrom taskloom.loop.fit import fit", "loop/evaluate.py"),
        (floors, "if TYPE_CHECKING:\n    from taskloom.trainer import Trainer", "core/task.py"),
        (floors, "from taskloom import Trainer", "cli/fit.py"),
        (printing, "print(1)", "cli/env.py"),
        (unlinked_todo, "x = 1  # TODO: https://example.org/issues/1", "core/example.py"),
        (configuring_through_environment, "rank = os.environ.get('RANK')", "launch/example.py"),
        (sizes, "def f():\n" + "    x = 1\n" * 79, "core/example.py"),
    ],
)
def test_what_is_allowed_is_not_found(check: Check, source: str, path: str) -> None:
    assert not list(check(parse(source, path)))


def test_the_trainer_takes_few_parameters() -> None:
    from taskloom import Trainer

    assert len(inspect.signature(Trainer).parameters) <= TRAINER_PARAMETERS


def own_frames(innermost: FrameType) -> list[tuple[str, str]]:
    """(file, function) of the package's frames from the caller of `innermost` up to and with `Trainer.fit`."""
    found: list[tuple[str, str]] = []
    frame = innermost.f_back
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(str(PACKAGE)):
            found.append((Path(code.co_filename).relative_to(PACKAGE).as_posix(), code.co_name))
        if found and found[-1] == ("trainer.py", "fit"):
            return found
        frame = frame.f_back
    raise AssertionError(f"Trainer.fit is not on the stack: {found}")


def test_few_frames_lead_from_fit_to_training_step() -> None:
    from taskloom import TaskModule, Trainer

    seen: list[list[tuple[str, str]]] = []

    class Tiny(TaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            seen.append(own_frames(sys._getframe()))
            return self.layer(batch).mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    Trainer(max_steps=2, accelerator="cpu", progress=False).fit(Tiny(), DataLoader(torch.randn(4, 2), batch_size=2))
    assert len(seen) == 2
    for frames in seen:
        assert len(frames) <= FRAMES_TO_TRAINING_STEP, frames
        assert len({file for file, _ in frames}) <= FILES_TO_TRAINING_STEP, frames


def budgets() -> tuple[Any, ...]:
    """The table of all budgets, which is not part of the package."""
    spec = importlib.util.spec_from_file_location("budgets", ROOT / "benchmarks" / "budgets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module.BUDGETS


@pytest.mark.parametrize("budget", [pytest.param(each, id=each.what) for each in budgets()])
def test_every_budget_is_held(budget: Any) -> None:
    """By a test that exists; one of time by a benchmark of `python -m benchmarks --check` too."""
    if budget.awaits:
        assert not (PACKAGE / budget.awaits).exists(), f"{budget.awaits} is there: add what holds its budget"
        return
    assert budget.tests
    for holder in budget.tests:
        file, _, name = holder.partition("::")
        assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), holder
    if budget.benchmark:
        assert (ROOT / "benchmarks" / f"{budget.benchmark}.py").is_file()
        assert f'"{budget.benchmark}"' in (ROOT / "benchmarks" / "__main__.py").read_text()
