"""Sphinx configuration: MyST pages, one for each kind of user."""

project = "dgis"
author = "The dgis team"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Many archives as one remote AE", "fixed_sidebar": True}
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
