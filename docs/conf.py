"""Settings of Sphinx for the pages of this folder; `make docs` builds them."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

project = "iaunet-workflow"
html_title = project
release = re.search(
    r'__version__ = "(.+)"', (REPOSITORY / "workflow/scripts/iaunet/__init__.py").read_text()
)[1]
extensions = ["myst_parser"]
exclude_patterns = ["_build"]
# Links to headings, as GitHub makes them.
myst_heading_anchors = 3
html_theme = "furo"
html_show_copyright = False
