"""The directive `module-docstring`: shows the docstring of a module, so that a contract is written in one place only.

The docstring is read from the source, without importing it, and parsed as the Markdown it is. Docstrings of properties
are prepared for napoleon here too.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


def docstring_of(module: str) -> tuple[Path, str]:
    """Return where a module lies and its docstring."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"There is no module {module!r} to show the docstring of.")
    path = Path(spec.origin)
    return path, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


class ModuleDocstring(SphinxDirective):
    """`{module-docstring} taskloom.loop.fit`, in Markdown pages."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Parse the docstring in place."""
        path, text = docstring_of(self.arguments[0])
        self.env.note_dependency(str(path))
        holder = nodes.container(classes=["contract"])
        self.state.nested_parse(StringList(text.splitlines(), source=str(path)), 0, holder)
        return [holder]


def keep_first_words(app: Sphinx, what: str, name: str, owner: object, options: object, lines: list[str]) -> None:
    """Stop napoleon from taking the words before a colon, in the docstring of a property, for its type."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)


def setup(app: Sphinx) -> dict:
    """Register the directive."""
    app.add_directive("module-docstring", ModuleDocstring)
    app.connect("autodoc-process-docstring", keep_first_words, priority=400)  # napoleon's has 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
