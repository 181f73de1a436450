"""Sphinx configuration: `make docs` builds these pages without a network; see decisions/docs-site.md."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "extensions"), str(HERE.parent / "src")]

from torch_names import write_inventory  # noqa: E402

from taskloom import __version__  # noqa: E402 - the path has to be set first

project = "taskloom"
author = "the taskloom authors"
project_copyright = "2026, the taskloom authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "docstrings",
]
exclude_patterns = ["_build", "extensions"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings quote code in single backticks; as a role that means literal text.
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

intersphinx_mapping = {
    "torch": ("https://docs.pytorch.org/docs/stable/", str(write_inventory(HERE / "_build" / "torch.inv")))
}
intersphinx_disabled_reftypes = ["std:doc"]

html_theme = "furo"
html_title = f"taskloom {release}"
html_static_path = ["_static"]
html_css_files = ["taskloom.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
