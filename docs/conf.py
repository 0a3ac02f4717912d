"""Sphinx: MyST pages, Furo, API from docstrings. `sphinx-build -W -b html docs docs/_build/html` builds it."""

import gssf_plug

project = "gssf-plug"
author = "The gssf-plug developers"
copyright = "2026, the gssf-plug developers"
release = gssf_plug.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "dollarmath", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
add_module_names = False

html_theme = "furo"
html_title = "gssf-plug"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
