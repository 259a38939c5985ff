# SPDX-License-Identifier: MIT
"""The site: sphinx reads the repository from its root, so that links are those of GitHub.

pip install -e ".[docs]" && python -m sphinx -W --keep-going -q -c docs . build/site
"""

import re
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml import converter

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
html_math_renderer = "mathml"  # browsers draw it themselves: MathJax would come from a CDN
html_copy_source = False
html_show_sourcelink = False


def as_text(app, what, name, obj, options, lines):
    """Shows a docstring as the plain text that it is: its columns and equations are laid out."""
    if len(lines) > 2:
        lines[1:] = ["", ".. code-block:: text", "", *(f"   {line}" for line in lines[2:]), ""]
    lines[:1] = [re.sub(r"([*`|_\\])", r"\\\1", line) for line in lines[:1]]


def mathml(tex, display):
    """Writes LaTeX as MathML. Raises ValueError for a command that the converter does not know."""
    tex = re.sub(r"\\[lr]?Vert\b", "\u2016", tex)  # whose names it keeps after \bigl
    # a space between the name of a function and its argument, which it leaves out
    named = r"(\\(?:log|exp|max|min|sin|cos))\s+(?=[a-zA-Z]|\\(?!big|Big|left))"
    tex = re.sub(named, r"\1\\,", tex)
    element = converter.convert(tex, display=display)
    unknown = re.search(r"\\[a-zA-Z]+", element)
    if unknown:
        raise ValueError(f"{unknown[0]} cannot be drawn in {tex!r}; write it in another way")
    return element


def inline_math(translator, node):
    """Draws a formula in the text."""
    translator.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def displayed_math(translator, node):
    """Draws an equation, with its number at the right."""
    tag = re.search(r"\\tag\{(.+?)\}", node.astext())
    equation = mathml(node.astext().replace(tag[0] if tag else "", ""), "block")
    number = f'<span class="number">({tag[1]})</span>' if tag else ""
    translator.body.append(f'<div class="equation">{equation}{number}</div>\n')
    raise nodes.SkipNode


def setup(app):
    """Called by sphinx."""
    app.connect("autodoc-process-docstring", as_text)
    app.add_html_math_renderer("mathml", (inline_math, None), (displayed_math, None))
