"""Sphinx builds these pages with `make docs`, warnings as errors, without the network."""

from __future__ import annotations

from importlib.metadata import version as version_of
from pathlib import Path

import django
from django.conf import settings
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from kombu_pools_ext.documentation import BASE, Page

# autodoc imports django_app, and Django wants settings before it lets anyone import from an application.
settings.configure(INSTALLED_APPS=["django_app"], KOMBU_POOLS={"default": {"URL": "memory://"}})
django.setup()

project = "kombu-pools-ext"
author = "kombu-pools-ext contributors"
copyright = "2026, kombu-pools-ext contributors"
release = version_of("kombu-pools-ext")
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
# What `make bench` and `make bench-outbox` write is included by pages of explanation/.
exclude_patterns = [
    "_build",
    "examples",
    "explanation/performance/*.md",
    "explanation/outbox-performance/*.md",
]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"kombu-pools-ext {release}"
html_show_sourcelink = False


def check_pages(app: Sphinx, exception: Exception | None) -> None:
    """Refuse to end well without a page, or a section of one, that a message of the library points to."""
    if exception is not None or app.builder.name != "html":
        return
    for page in Page:
        name, _, section = page.removeprefix(BASE).partition("#")
        file = Path(app.outdir, name)
        if not file.is_file() or (section and f'id="{section}"' not in file.read_text()):
            raise ExtensionError(f"{page!r} is not among the pages that were built")


def setup(app: Sphinx) -> None:
    app.connect("build-finished", check_pages)
