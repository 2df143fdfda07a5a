"""The documentation: navigation, links, code, and the pages made from the code."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from recbole_fedras.config import Config, registry
from recbole_fedras.version import __version__

DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), ROOT / "results/README.md"]
    if "site" not in path.relative_to(ROOT).parts
)
TUTORIALS = sorted(
    page
    for page in (DOCS / "tutorials").glob("*.md")
    if "```python" in page.read_text()
)
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def generated():
    sys.path.insert(0, str(DOCS))
    import generated

    yield generated
    sys.path.remove(str(DOCS))


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{__version__}]" in changes


def test_every_page_is_in_the_navigation():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^(?:[\w ]+ <)?([\w/]+)>?$", index, re.M))
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix()
        for suffix in ("md", "rst", "ipynb")
        for path in DOCS.rglob(f"*.{suffix}")
        if path.parent.name != "methods" and "site" not in path.parts
    }
    assert pages - {"index"} == listed & pages
    assert not {name for name in listed if "/" in name} - pages


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_the_reference_says_what_every_key_may_be(generated):
    page = generated.keys_page()
    rows: dict[str, list[str]] = {}
    for line in page.splitlines():
        cells = [cell.strip(" `") for cell in re.split(r"(?<!\\)\|", line)]
        if len(cells) == 7:
            rows.setdefault(cells[1], cells[2:6])
    kinds = ("", *registry.GIVEN)
    for kind in kinds:
        for name in registry.names(kind) if kind else ["overall"]:
            keys = registry.read_properties(kind or ".", name)
            for key in keys.keys() - {kind, f"{kind}_class"}:
                assert key in rows, key
    ours = registry.read_properties(".", "overall")
    assert [key for key in ours if not all(rows[key][i] for i in (0, 2, 3))] == []
    assert rows["client_fraction"][:3] == ["float", "0.1", "a number > 0 and <= 1"]
    assert "KLT" in rows["compressor"][2]
    assert str(Path.home()) not in page
    assert str(ROOT) not in page


def test_the_reference_has_the_help_of_every_command(generated):
    page = generated.command_page()
    for command in ("compare", "deploy", "rate-distortion", "recommend"):
        assert f"usage: recbole-fedras {command} [-h]" in page


def runs_of(page: Path) -> list[list[str]]:
    """Return the arguments of a page's runs, as ``--key=value``, but for files."""
    written = re.findall(r"^    recbole-fedras (-.*)$", page.read_text("utf-8"), re.M)
    found = []
    for line in written:
        if "[--key=value" in line or "_class=" in line:
            continue  # a form to be filled in; a file that other tests write
        line = re.sub(r"-d (\S+)", r"--dataset=\1", line)
        line = re.sub(r"-m (\S+)", r"--model=\1", line)
        words = shlex.split(line, comments=True)
        left = ("--config_files=", "--resume=", "--list")
        found.append([word for word in words if not word.startswith(left)])
    return found


@pytest.mark.slow
def test_runs_on_all_pages_have_keys_that_exist(workspace):
    runs = {tuple(run) for page in PAGES for run in runs_of(page)}
    assert len(runs) > 10
    for run in runs:
        Config(argv=run)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a program in an empty folder that classes may be imported from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")

    def run(program: str) -> None:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})  # noqa: S102

    return run


@pytest.mark.slow
@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_code_of_tutorials_runs(tutorial, run):
    program = []
    text = tutorial.read_text(encoding="utf-8")
    for language, block in re.findall(r"```(python|yaml)\n(.*?)```", text, re.S):
        if named := re.match(r"# (\w+\.(?:py|yaml))\n", block):
            Path(named[1]).write_text(block, encoding="utf-8")
        elif language == "python":
            program.append(block)
    run("\n".join(program))


@pytest.mark.long
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, run):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in code)  # the site's build makes them
    run("\n".join("".join(cell["source"]) for cell in code))
