"""The documentation site: ``sphinx-build -W docs site``."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generated
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from recbole_fedras import __version__
from recbole_fedras.config import registry

project = "recbole-fedras"
author = "recbole-fedras contributors"
copyright = f"2026, {author}"
release = version = __version__
html_title = f"recbole-fedras {__version__}"
html_theme = "furo"
smartquotes = False  # they make a dash of --key

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["site", "_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
suppress_warnings = ["myst.strikethrough"]

# Notebooks are stored without output. They run in a few seconds, and an error is one.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress bars

napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "inherited-members": False}


class Generated(SphinxDirective):
    """Put in a page that is made from the code, so that it is never out of date."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return its nodes."""
        made = getattr(generated, f"{self.arguments[0]}_page")()
        return self.parse_text_to_nodes(made, allow_section_headings=True)


class Shipped(SphinxDirective):
    """Document the classes of a kind that ship."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return their nodes."""
        paths = dict.fromkeys(registry.shipped(self.arguments[0]).values())
        return self.parse_text_to_nodes(
            "\n".join(f".. autoclass:: {path}\n   :no-members:\n" for path in paths)
        )


def lead_to_results(app: Sphinx, page: str, source: list[str]) -> None:
    """Let links to the results lead to their page of this site."""
    source[0] = re.sub(r"\]\((\.\./)+results/README\.md", "](/results.md", source[0])


def setup(app: Sphinx) -> None:
    """Register what pages are made with."""
    app.connect("source-read", lead_to_results)
    app.add_directive("generated", Generated)
    app.add_directive("shipped", Shipped)
