"""The report of a comparison: one page that fetches nothing and needs no program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from recbole_fedras.experiments.identity import Outcome
from recbole_fedras.experiments.panels import svg
from recbole_fedras.experiments.report_figures import (
    draw_changes,
    draw_curves_against,
    draw_fairness,
    draw_parts,
    draw_quality,
)
from recbole_fedras.experiments.tables import Table

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff;
 max-width:76rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;margin:.5rem 0}
h2{font-size:1.2rem;margin:2rem 0 .5rem;border-top:1px solid #ddd;padding-top:1rem}
p{max-width:46rem}
.first{font-size:1.1rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;text-align:right;white-space:nowrap;
 border-bottom:1px solid #eee}
th{border-bottom:2px solid #888}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
figure{margin:0}
.figures{display:grid;gap:1rem;
 grid-template-columns:repeat(auto-fit,minmax(min(28rem,100%),1fr))}
svg{width:100%;height:auto}
summary{cursor:pointer;font-weight:600}
footer{color:#555;font-size:.85rem;margin-top:3rem;border-top:1px solid #ddd}
"""


class Comparison(NamedTuple):
    """What has come of a comparison.

    Attributes
    ----------
    table, shown : Table
        Every column; and those that one puts into a paper.
    clients : Table
        Groups of clients.
    runs : dict of str to list
        Outcomes of each method that did not fail, one for each seed.
    """

    table: Table
    shown: Table
    clients: Table
    runs: dict[str, list[Outcome]]

    @property
    def metric(self) -> str:
        """The first of the test."""
        tested = next(iter(self.runs.values()))[0]["result"]["test_result"]
        return str(next(iter(tested)))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Those of the methods that did not fail."""
        return [dict(row) for row in self.table.rows if row["method"] in self.runs]


class Section(NamedTuple):
    """A part of the page.

    Attributes
    ----------
    title, text : str
        What it shows, and how to read it.
    figures : sequence of Figure
    tables : sequence of Table
    """

    title: str
    text: str
    figures: Sequence[Figure]
    tables: Sequence[Table] = ()


def write_page(path: Path, comparison: Comparison) -> None:
    """Write the report."""
    body = "".join(map(_html, _sections(comparison)))
    title, first = escape(comparison.table.title), escape(_at_first_sight(comparison))
    path.write_text(
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
        f"<p class='first'>{first}</p>{_table(comparison.shown)}"
        f"<p>{escape(comparison.table.note)}</p>{body}"
        f"<footer><p>{escape(_made_by(comparison.runs))}</p></footer></html>\n",
        encoding="utf-8",
    )


def _at_first_sight(comparison: Comparison) -> str:
    """Say which method is best, and which sends least of those not worse than it."""
    metric, rows = comparison.metric, comparison.rows
    best = max(rows, key=lambda row: row[metric])
    said = f"{best['method']!r} has the best {metric}, {best[metric]:.4f}"
    first, *others = rows
    alike = [row for row in others if row["p adjusted"] >= 0.05]
    if alike:
        least = max(alike, key=lambda row: row["CR charged"])
        said += (
            f"; {least['method']!r} is not told apart from {first['method']!r}, and "
            f"sends {least['CR charged']:.1%} less than plain FedAvg, everything "
            "charged"
        )
    return said + "."


def _sections(comparison: Comparison) -> Iterator[Section]:
    runs, metric, rows = comparison.runs, comparison.metric, comparison.rows
    first = next(iter(runs))
    yield Section(
        "Quality against cost",
        "Up and to the left is better; nothing on the dotted line is beaten in both. "
        "Megabytes of all clients, everything charged: sent up, sent down, and caught "
        "up on. Bars are deviations over seeds.",
        [draw_quality(rows, metric)],
    )
    if drawn := list(draw_curves_against(runs, metric)):
        yield Section(
            "Learning",
            f"{metric} on validation, by rounds, by megabytes (everything charged) "
            "and, in a described world, by hours; bands are deviations over seeds.",
            drawn,
        )
    if len(rows) > 1:
        yield Section(
            "Is it more than chance?",
            f"Users whose held-out item stands higher, or lower, than with {first}. p "
            "is of Wilcoxon's signed ranks over users' reciprocal ranks in the test, 0 "
            "beyond topk, two-sided; effect, from -1, all users worse, to 1, their "
            "rank-biserial correlation; adjusted: for so many tests, by Benjamini and "
            "Hochberg. [ ]: 95 % of a bootstrap over users and seeds, of - first the "
            "same of both methods.",
            [draw_changes(rows)],
            [_significance(comparison)],
        )
    if fair := draw_fairness(runs):
        yield Section(
            "Who is served",
            "Hits in the test by how active clients are, in tenths from the least to "
            "the most; the largest number of interactions in each stands below.",
            [fair],
        )
    yield Section(
        "What the bytes are",
        "Shares of all that is charged: values of items, ids (which rows, which "
        "groups), the network, what is sent once, framing; up and down; and what "
        "clients missed and catch up on.",
        [draw_parts(runs)],
    )
    groups = [comparison.clients] if comparison.clients.rows else []
    yield Section("All numbers", "", [], [comparison.table, *groups])


def _significance(comparison: Comparison) -> Table:
    """Return the columns of tests, and the first metric with its interval."""
    asked = ("method", comparison.metric, "better users", "worse users", "effect", "p",
             "p adjusted")  # fmt: skip
    ends = [
        key for key in comparison.rows[0] if key.startswith(f"{comparison.metric} ")
    ]
    rows = [{key: row[key] for key in (*asked, *ends)} for row in comparison.rows]
    return Table("", rows)


def _html(section: Section) -> str:
    figures = "".join(
        f"<figure class='wide'>{_picture(shown)}</figure>" for shown in section.figures
    )
    tables = "".join(map(_table, section.tables))
    title, body = escape(section.title), f"<div class='figures'>{figures}</div>{tables}"
    if not section.text:
        return f"<h2>{title}</h2><details><summary>Show</summary>{body}</details>"
    return f"<h2>{title}</h2><p>{escape(section.text)}</p>{body}"


def _picture(figure: Figure) -> str:
    """Return a figure, from two thirds to 1.3 times of the width it is drawn for."""
    pixels = 96 * figure.get_size_inches()[0]
    limits = f"min-width:{pixels / 1.5:.0f}px;max-width:{pixels * 1.3:.0f}px"
    return svg(figure).replace("<svg", f"<svg style='{limits}'", 1)


def _table(table: Table) -> str:
    return f"<div class='wide'>{table.shown('html')}</div>"


def _made_by(runs: dict[str, list[Outcome]]) -> str:
    """Name versions and commits of what made the runs."""
    made = [run["made"] for group in runs.values() for run in group]
    commits = sorted({one["commit"] for one in made if one.get("commit")})
    versions = ", ".join(f"{name} {of}" for name, of in made[-1]["versions"].items())
    return versions + "".join(f"; commit {commit}" for commit in commits)
