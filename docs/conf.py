"""The site: Markdown pages, and a reference out of the docstrings. `make docs` builds it."""

import inspect
import pathlib

import mnms_jax

ROOT = pathlib.Path(__file__).parent.parent

project = "mnms_jax"
author = copyright = "the mnms_jax authors"
version = release = mnms_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "mnms_jax"
html_static_path = ["static"]
# So that the README's table fits into a line.
html_theme_options = {"light_css_variables": {"code-font-size": "var(--font-size--small--3)"}}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True

# Pages that are files of the repository, and what their links are on the site.
PAGES = {
    "index": "README.md",
    "results": "benchmarks/RESULTS.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}
LINKS = {
    **{f"]({path}": f"]({page}.md" for page, path in PAGES.items()},
    **{f"](../{path}": f"]({page}.md" for page, path in PAGES.items()},
    "](notebooks)": "](notebooks.md)",
    "](notebooks/)": "](notebooks.md)",
    "](docs/": "](",
    "](CITATION.cff)": "](../CITATION.cff)",
}


def prepare(app, page, content):
    """Puts the repository's file before a page's own content, and has links lead to pages."""
    text = content[0]
    if page in PAGES:
        text = (ROOT / PAGES[page]).read_text(encoding="utf-8") + f"\n{text}"
    for link, target in LINKS.items():
        text = text.replace(link, target)
    content[0] = text


def show_fields(app, what, name, obj, options, lines):
    """Shows a NamedTuple's fields as the source has them: with types, shapes and comments."""
    if what == "class" and issubclass(obj, tuple):
        body = inspect.getsource(obj).split('"""', 2)[2].split("    @property")[0]
        lines += ["", ".. code-block:: python", "", *body.splitlines(), ""]


def setup(app):
    app.connect("source-read", prepare)
    app.connect("autodoc-process-docstring", show_fields, priority=600)  # after napoleon
