"""Sphinx's settings: make docs. Pages are Markdown (MyST); the API reference comes from the docstrings."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
# The docs describe the checkout that they lie in, whatever else is installed.
sys.path[:0] = [str(HERE.parent), str(HERE), str(HERE / "extensions")]

import purify_jax  # noqa: E402

project = "purify_jax"
author = "the authors of purify_jax"
version = release = purify_jax.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "docstrings",
    "flowchart",
    "formulas",
    "notebooks",
]
exclude_patterns = ["_build"]
templates_path = ["templates"]

myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
myst_fence_as_directive = ["mermaid"]

autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"  # the docstrings add shapes and units, which types do not have
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
autodoc_preserve_defaults = True
autodoc_default_options = {"exclude-members": "__init__, __new__, replace", "no-value": True}
napoleon_numpy_docstring = False

# Classes of other packages, and words that look like one; names of this package must all resolve.
nitpick_ignore_regex = [
    ("py:class", r"(?!purify_jax).*"),
    # Type variables, and what a signature names that users only pass on.
    (
        "py:class",
        r"purify_jax\..*\.(Tree|Pixels|Bridge|Plan|Parts|Gallery|DenoisedSheet|SuiteResult)",
    ),
]
default_role = "code"

html_theme = "furo"
html_math_renderer = "mathml"
html_title = f"purify_jax {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["static"]
html_js_files = ["accessible.js"]
