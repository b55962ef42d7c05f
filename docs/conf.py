"""The site of these pages: ``python -m sphinx -W -b html docs build/site``. It needs no network."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # this checkout's package, not an installed one

from mulfree_cupy import __version__  # noqa: E402

project, release, author = "mulfree_cupy", __version__, "the authors of mulfree_cupy"
project_copyright = author
extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser"]
default_role = "py:obj"  # in docstrings
highlight_language = "none"  # a block says what it is

# Pages: Markdown that GitHub shows as well, whose links name files and headings.
myst_heading_anchors = 3

# The reference: a page a name, from its docstring. Two names differ in their case alone.
autosummary_filename_map = {
    f"mulfree_cupy.{name}": f"mulfree_cupy.{name}-function"
    for name in ("launch.emulator.device", "lessons.trace")
}
autosummary_generate = True
autosummary_imported_members = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"  # numpydoc has the types
numpydoc_show_class_members = False

templates_path = ["_templates"]
exclude_patterns = ["_templates"]

html_theme = "pydata_sphinx_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": True,
    "navbar_align": "left",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": [],
    "footer_end": [],
}


def run_examples(app) -> None:
    """Run examples/*.py and save their output for gallery.md."""
    folder = Path(app.srcdir) / "_examples"
    folder.mkdir(exist_ok=True)
    for example in sorted((ROOT / "examples").glob("*.py")):
        with (folder / f"{example.stem}.txt").open("w", encoding="utf-8") as printed:
            subprocess.run(
                [sys.executable, example],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=printed,
                check=True,
            )


def setup(app) -> None:
    app.connect("builder-inited", run_examples)
