# SPDX-License-Identifier: GPL-2.0-or-later
"""How the documentation is built: ``script/docs``, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import generate  # noqa: E402

import swtdx  # noqa: E402

project = "swtdx"
author = "the swtdx contributors"
copyright = f"2025-2026, {author}"
version = release = swtdx.__version__
language = "en"
smartquotes_action = "qe"  # quotes and ellipses; two hyphens stay two: options begin so

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"swtdx {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "deflist", "attrs_inline", "fieldlist"]
myst_heading_anchors = 3

# The examples in docstrings need a VM to work on: tests/uapi/test_client_examples.py runs them with one.
doctest_test_doctest_blocks = ""
autodoc_member_order = "bysource"
autodoc_typehints = "description"
default_role = "code"  # docstrings name things in single backticks

man_pages = [("reference/commands", "swtdx", "Intel TDX under KVM, in software", [author], 1)]
man_show_urls = True


def toctree_of_the_rest() -> str:
    """A table of contents of the pages that index.md does not name, so that a new page is never lost."""
    named = (HERE / "index.md").read_text(encoding="utf-8")
    pages = [path.relative_to(HERE).with_suffix("").as_posix() for path in sorted(HERE.rglob("*.md"))]
    rest = [page for page in pages if page != "index" and not page.startswith("_") and f"\n{page}\n" not in named]
    return "\n".join(["```{toctree}", ":maxdepth: 1", ":caption: More", "", *rest, "```", ""]) if rest else ""


def write_generated(app: Any) -> None:
    """The parts that follow from code and tables."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    for name, make in {**generate.PAGES, "rest": toctree_of_the_rest}.items():
        path, text = folder / f"{name}.md", make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> None:
    """Sphinx calls this."""
    app.connect("builder-inited", write_generated)
