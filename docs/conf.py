"""How Sphinx builds these pages: `sphinx-build -W -b html docs docs/_build/html`.

Every page reads well on the forge too: plain Markdown, relative links, formulas between dollars. Where a link
leaves `docs/` or leads to a notebook, it becomes a download here; the measured results become a page of their own.
"""

import re

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from hpcmpq import __version__

project = "hpcmpq"
project_copyright = "the hpcmpq authors, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.mathjax", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other libraries, which these pages do not have

autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
autodoc_default_options = {"exclude-members": "__init__, __new__"}
napoleon_use_ivar = True
default_role = "code"  # docstrings mark code with single backticks

html_theme = "furo"
html_title = f"hpcmpq {version}"
html_show_sphinx = False
html_copy_source = False


def links_out_of_docs(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Point links to the repository's other files at what the built pages have of them."""
    text = re.sub(r"\]\(\.\./bench/RESULTS\.md(#[^)]*)?\)", r"](results.md\1)", source[0])
    source[0] = re.sub(r"\]\((?=\.\./|\w+\.ipynb)", "](path:", text)


def setup(app: Sphinx) -> None:
    app.add_lexer("mermaid", TextLexer)  # which the forge draws
    app.connect("source-read", links_out_of_docs)
