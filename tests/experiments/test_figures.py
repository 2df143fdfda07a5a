"""Figures of exhibits: what is drawn against what."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_fedras.experiments import figures
from recbole_fedras.experiments.exhibits import read_exhibit
from recbole_fedras.experiments.panels import save, style_of, svg
from recbole_fedras.experiments.privacy_figure import draw_privacy


def row(dataset, method, metric, ours, setting="a", sd=0.1, paper=None):
    return {
        "dataset": dataset, "method": method, "metric": metric, "ours": ours,
        "setting": setting, "sd": sd, "paper": paper,
    }  # fmt: skip


def test_settings_are_drawn_as_lines_of_methods():
    rows = [
        row(dataset, method, metric, ours, setting)
        for dataset in ("x", "y")
        for method, ours in (("A", 0.25), ("B", 0.5))
        for metric in ("hit@10", "ndcg@10")
        for setting in ("10 %", "20 %")
    ]
    panels = figures.draw_settings(rows, "rate").axes
    assert [panel.get_title() for panel in panels] == ["x", "y"] * 2
    assert [panel.get_ylabel() for panel in panels] == ["hit@10"] * 2 + ["ndcg@10"] * 2
    for line, height in zip(panels[0].get_lines()[::3], (0.25, 0.5), strict=True):
        assert line.get_ydata().tolist() == [height, height]


def test_settings_may_differ_by_dataset():
    exhibit = read_exhibit("peft")
    sizes = {
        (entry.dataset, entry.setting): entry.keys["hash_rows"]
        for entry in exhibit.entries
    }
    assert sizes["ml-100k", "1/8"] == 214
    assert sizes["ml-1m", "1/16"] == 232
    for (dataset, setting), rows in sizes.items():  # equal values, to a hundredth
        n_items = {"ml-100k": 1682, "ml-1m": 3706}[dataset]
        share = {"1/8": 0.125, "1/16": 0.0625}[setting]
        own = next(
            entry.keys
            for entry in exhibit.entries
            if (entry.dataset, entry.setting) == (dataset, setting)
        )
        whole = n_items * 32
        for values in (
            rows * 32, 4 * own["rq_codes"] * 32, own["item_rank"] * (n_items + 32)
        ):  # fmt: skip
            assert values / whole == pytest.approx(share, rel=0.03)
        assert own["compression_rate"] == 1 - share
    for entry in exhibit.entries:
        tuned = {key: entry.tuning[key] for key in ("item_rank", "hash_rows")}
        assert tuned == {"item_rank": 2, "hash_rows": sizes[entry.dataset, "1/16"]}


def test_privacy_is_drawn_against_quality_and_bytes():
    """Right is where attackers find more; four times the bytes are twice across."""
    rows = [
        row("x", method, metric, ours, setting)
        | {"uplink MB": size, "downlink MB": size}
        for method, setting, auc, hit, size in (
            ("A", "bare", 1.0, 0.6, 8.0),
            ("B", "bare", 0.9, 0.5, 2.0),
            ("B", "noisy", 0.6, 0.4, 2.0),
            ("A", "noisy", np.nan, np.nan, np.nan),
        )
        for metric, ours in (("AUC", auc), ("precision", 0.1), ("hit@10", hit))
    ]
    (panel,) = draw_privacy(rows, "AUC").axes
    places = [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in panel.get_lines()
    ]
    assert places == [(1.0, 0.6), (0.9, 0.5), (0.6, 0.4)]
    sizes = [line.get_markersize() for line in panel.get_lines()]
    assert sizes[0] == pytest.approx(2 * sizes[1])
    markers = [line.get_marker() for line in panel.get_lines()]
    assert markers[0] == markers[1] != markers[2]
    assert panel.get_ylabel() == "hit@10"
    assert panel.get_xlim()[0] < 0.5


def test_quality_is_drawn_against_bytes():
    rows = [
        {"dataset": "tiny", "metric": "hit@10", "method": method, "setting": setting,
         "ours": ours, "sd": 0.01, "uplink MB": size, "downlink MB": 1.0}
        for method, setting, ours, size in (
            ("a", "1/8", 0.5, 2.0), ("a", "1/4", 0.6, 4.0), ("b", "1/8", 0.4, 3.0),
            ("b", "1/4", np.nan, np.nan),
        )
    ]  # fmt: skip
    figure = figures.draw_bytes(rows, "megabytes")
    (panel,) = figure.axes
    best = panel.lines[-1]
    assert list(best.get_xdata()) == [3.0, 5.0]  # b is beaten
    assert list(best.get_ydata()) == [0.5, 0.6]
    assert not panel.texts  # which would be printed over one another
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == ["a", "b", "1/8", "1/4", "not beaten in both"]
    points = [line for line in panel.lines if line.get_marker() not in ("None", "_")]
    colours = [line.get_color() for line in points]
    assert colours[0] == colours[1] != colours[2]
    assert points[0].get_marker() == points[2].get_marker() != points[1].get_marker()


def test_metrics_without_a_number_of_the_paper_are_drawn_as_bars():
    rows = [row("x", "A", "cosine", 0.9, paper=0.7)]
    rows += [row("x", "A", name, share) for name, share in (("1", 0.25), ("2", 0.75))]
    (panel,) = figures.draw_metrics(rows, "rows").axes
    assert [bar.get_height() for bar in panel.patches] == [0.25, 0.75]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2"]


def test_settings_that_are_no_numbers_are_groups_of_bars():
    rows = [
        row("x", method, "hit@10", value, setting)
        for method, value, setting in (
            ("A", 0.5, "calm"), ("A", 0.25, "attack"), ("B", 0.75, "attack")
        )
    ]  # fmt: skip
    figure = figures.draw_bars(rows, "attack")
    (panel,) = figure.axes
    bars = [(round(bar.get_x(), 2), bar.get_height()) for bar in panel.patches]
    assert bars == [(-0.2, 0.5), (0.8, 0.25), (1.2, 0.75)]  # B has no calm
    assert list(panel.get_xticks()) == pytest.approx([0.2, 1.2])
    assert [text.get_text() for text in panel.get_xticklabels()] == ["calm", "attack"]


def test_curves_are_means_over_seeds():
    curves = [
        figures.Curve("x", "A", [{"round": 9, "valid_hit@10": value}])
        for value in (0.25, 0.75)
    ]
    (panel,) = figures.draw_curves(curves, ["hit@10"], "round").axes
    assert panel.get_lines()[0].get_xydata().tolist() == [[9, 0.5]]


def test_curves_are_drawn_against_what_was_sent():
    rounds = [
        {
            "round": at,
            "uplink_bytes": 1e6 * at,
            "downlink_bytes": 2e6,
            "catch_up_bytes": 1e6,
            "valid_hit@10": 1,
        }
        for at in (1, 2)
    ]
    curves = [figures.Curve("x", "A", rounds)]
    (panel,) = figures.draw_curves(curves, ["hit@10"], "MB", "megabytes").axes
    assert panel.get_lines()[0].get_xdata().tolist() == [4, 5]


def test_fifteen_methods_are_told_apart_and_the_legend_hides_nothing():
    styles = [style_of(index) for index in range(15)]
    assert len({style["marker"] for style in styles}) == 15
    assert len({style["color"] for style in styles}) == 15
    again = style_of(15)
    assert again["color"] == styles[0]["color"]
    assert again["ls"] != styles[0]["ls"]
    rows = [row("x", f"method {i}", "hit@10", 0.1 * i, "a") for i in range(15)]
    figure = figures.draw_settings(rows, "rate")
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert not any(legend.overlaps(panel.get_window_extent()) for panel in figure.axes)
    assert legend.y0 >= 0


def test_figures_are_pictures_and_parts_of_a_page(tmp_path):
    figure = figures.draw_settings([row("x", "A & B", "hit@10", 0.5)], "rate")
    save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    page = svg(figure)
    assert page.startswith("<svg")
    assert "A &amp; B" in page
