"""What the documentation's build rests on: drawings and links come from their programs, contracts are shown whole."""

from __future__ import annotations

import ast
import importlib.util
import zlib
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def extension(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "extensions" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_names_that_link_into_torch_exist() -> None:
    names = extension("torch_names")
    found = {name: resolve_name(name) for name in [*names.CLASSES, *names.FUNCTIONS, *names.DEFINED_IN]}
    assert all(callable(value) for value in found.values())
    for defined, documented in names.DEFINED_IN.items():
        assert found[defined] is found[documented]


def test_the_inventory_is_one_that_sphinx_reads(tmp_path: Path) -> None:
    names = extension("torch_names")
    header, body = names.write_inventory(tmp_path / "new" / "torch.inv").read_bytes().split(b"using zlib.\n")
    assert header.startswith(b"# Sphinx inventory version 2\n")
    lines = zlib.decompress(body).decode().splitlines()
    assert len(lines) == len(names.CLASSES) + len(names.FUNCTIONS) + len(names.DEFINED_IN)
    assert "torch.nn.Module py:class 1 generated/torch.nn.Module.html#torch.nn.Module -" in lines


def test_the_drawing_is_what_its_program_draws() -> None:
    drawing = extension("draw_window")
    assert drawing.TARGET.read_text(encoding="utf-8") == drawing.draw()


@pytest.mark.parametrize("module", ["fit", "evaluate", "predict"])
def test_the_page_of_the_loop_shows_the_contract_of_each_loop(module: str) -> None:
    page = (DOCS / "guide" / "loop.md").read_text(encoding="utf-8")
    assert f"```{{module-docstring}} taskloom.loop.{module}\n```" in page
    source = (ROOT / "src" / "taskloom" / "loop" / f"{module}.py").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(source)) or ""
    assert docstring.count("```") == 2, "the order of the hooks is a fenced block of the docstring"


def test_every_public_name_is_in_the_reference() -> None:
    import taskloom

    reference = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    shown = {
        line.split("::")[1].strip().rpartition(".")[2]
        for line in reference.splitlines()
        if line.startswith(".. auto") and "::" in line
    }
    assert set(taskloom.__all__) - {"__version__"} <= shown


def test_callbacks_and_loggers_are_in_the_reference() -> None:
    import taskloom.callbacks
    import taskloom.loggers

    for package, page in ((taskloom.callbacks, "callbacks.md"), (taskloom.loggers, "loggers.md")):
        text = (DOCS / "reference" / page).read_text(encoding="utf-8")
        internal = {"LoggerGroup", "sanitize_hyperparameters", "RichModelSummary"}
        assert [name for name in package.__all__ if name not in text and name not in internal] == []
