"""Settings of Sphinx for the documentation site. `make docs` builds it into build/docs, without network."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_ext"))

project = "preftune"
author = "The preftune developers"
project_copyright = "The preftune developers"
extensions = ["myst_parser", "figures", "mathml", "repository_links", "error_messages"]
root_doc = "index"
exclude_patterns = ["_ext", "_static"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 5  # the anchors of headings that GitHub makes
html_math_renderer = "mathml"

highlight_language = "none"  # blocks without a language are commands
suppress_warnings = ["misc.highlighting_failure"]  # JSON examples contain "..."

smartquotes = False  # options keep their two hyphens

html_theme = "furo"
html_title = "preftune"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
