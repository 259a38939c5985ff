# SPDX-License-Identifier: MIT
"""The site: sphinx reads the repository from its root, so that links are those of GitHub.

pip install -e ".[docs]" && python -m sphinx -W --keep-going -q -c docs . build/site
"""

import re
import tomllib
from pathlib import Path

import jaxgen

PACKAGE = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

project = "jaxgen"
author = "The jaxgen authors"
copyright = "The jaxgen authors, MIT licence"
version = release = jaxgen.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
include_patterns += ["jaxgen/models/shapes/README.md"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the stored outputs are shown; notebooks/build.py executes
# cells begin with %% in their source, and a notebook may begin below its first heading
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them
autodoc_preserve_defaults = True

html_theme = "sphinx_book_theme"
html_title = "jaxgen"
html_theme_options = {
    "repository_url": PACKAGE["urls"]["Repository"],
    "use_repository_button": True,
    "show_toc_level": 1,
    "navbar_persistent": [],  # one search box is enough
}
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False


def as_text(app, what, name, obj, options, lines):
    """Shows a docstring as the plain text that it is: its columns and equations are laid out."""
    if len(lines) > 2:
        lines[1:] = ["", ".. code-block:: text", "", *(f"   {line}" for line in lines[2:]), ""]
    lines[:1] = [re.sub(r"([*`|_\\])", r"\\\1", line) for line in lines[:1]]


def setup(app):
    """Called by sphinx."""
    app.connect("autodoc-process-docstring", as_text)
