"""Sphinx: MyST pages, Furo, API from docstrings. `sphinx-build -W -b html docs docs/_build/html` builds it."""

import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature
from torch import nn

import gssf_plug

project = "gssf-plug"
author = "The gssf-plug developers"
copyright = "2026, the gssf-plug developers"
release = gssf_plug.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "gssf-plug"
html_static_path = ["_static"]
html_css_files = ["pages.css"]


def setup(app: Sphinx) -> None:
    """Formulas as MathML, which browsers draw without a network; signatures of constructors as they are."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.connect("autodoc-process-signature", constructor_signature)
    app.connect("include-read", pictures_of_both_themes)


def pictures_of_both_themes(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    """The README's <picture>, which GitHub chooses by the reader's theme, as two images, of which Furo shows one."""
    light, dark = r"![\2](\3){.only-light}", r"![\2](\1){.only-dark}"
    content[0] = re.sub(
        r'<picture><source [^>]*srcset="(.+?)"><img alt="(.+?)" src="(.+?)"></picture>', light + dark, content[0]
    )


def inline_formula(writer: Any, node: nodes.math) -> None:
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def displayed_formula(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def constructor_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """Sphinx reads huggingface_hub's `__new__(*args, **kwargs)`, where Python itself reads `__init__`."""
    if what != "class" or not signature or "*args" not in signature:
        return None
    if obj.__init__ is nn.Module.__init__:  # takes nothing, and says (*args, **kwargs)
        return "()", ""
    own = inspect.signature(obj).replace(return_annotation=inspect.Signature.empty)
    return stringify_signature(own, unqualified_typehints=True), ""
