"""Figures of a report: what they show, that they can be read, and that they leave matplotlib as it was."""

import io
import itertools
import math
import re
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import LogNorm
from PIL import Image
from unit.study.synthetic_study import make_constants, make_table

from papa_lightning.figures import bars, curves, heads, style
from papa_lightning.study.statistics import summarize

CRITERIA = ("gate", "variance", "divergence", "output", "taylor", "random", "layer:bottom_up", "layer:top_down")


def averages(**shape):
    return summarize(make_table(**shape)).query("constants == 'average' and is_score")


def points(encoders=3, tasks=2):
    return pd.DataFrame(
        [
            {"encoder": f"e{e}", "task": f"t{t}", "baseline": 0.7 + 0.05 * e - 0.1 * t, "drop": 0.02 * e - 0.01}
            for e in range(encoders)
            for t in range(tasks)
        ]
    )


def levels(count=4):
    rows = [
        {"share": share, "level": level, "mean": 0.02 + 0.01 * level, "low": 0.01, "high": 0.03 + 0.01 * level}
        for share in (0.0, 1.0)
        for level in range(count)
    ]
    return pd.DataFrame(rows)


def control_rows():
    rows = summarize(make_table(controls=("zero", "sequences:1", "sequences:16"))).query("is_score and share > 0")
    return rows[rows["criterion"] == "gate"]


def sequences(shares=(1.0,)):
    rows = control_rows()
    return rows[rows["constants"].str.startswith("sequences") & rows["share"].isin(shares)]


def maps(count=3, layers=2, heads=4):
    generator = torch.Generator().manual_seed(0)
    return {f"criterion {number}": torch.randn(layers, heads, generator=generator) for number in range(count)}


FIGURES = {
    "score": lambda: curves.score_curves(averages(), "mini · sst2"),
    "score, many": lambda: curves.score_curves(averages(criteria=CRITERIA), "mini · sst2"),
    "score, one seed": lambda: curves.score_curves(averages(seeds=(0,)), "mini · sst2"),
    "relative": lambda: curves.relative_curves(averages(encoders=("a", "b"), tasks=tuple("uvwx"), criteria=("gate",))),
    "controls": lambda: bars.control_points(control_rows(), "mini · sst2", 0.8),
    "sequences": lambda: curves.sequences_curve([1, 16], sequences(), "mini · sst2", 0.8, 0.75),
    "levels": lambda: curves.level_curves(levels(), "mini · sst2"),
    "encoders": lambda: bars.drop_against_baseline(points()),
    "heads": lambda: heads.head_maps(maps(), "mini · sst2"),
    "constants": lambda: heads.constants_grid(make_constants().values, "mini · sst2"),
    "coverage": lambda: heads.coverage_histograms(make_constants().pair_counts, "mini · sst2"),
}


@pytest.fixture(scope="module", params=FIGURES)
def figure(request):
    return FIGURES[request.param]()


def data_axes(figure):
    return [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_axes_have_names_and_finite_limits(figure):
    assert data_axes(figure)
    for axes in data_axes(figure):
        assert axes.get_xlabel()
        assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()
        assert axes.get_xlim()[0] != axes.get_xlim()[1]
        assert axes.get_ylim()[0] != axes.get_ylim()[1]
    assert any(axes.get_ylabel() for axes in data_axes(figure))
    for axes in figure.axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()


def test_nothing_is_cut_off_and_no_labels_overlap(figure):
    with matplotlib.style.context(style._STYLE, after_reset=True):
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
        assert box.x0 >= -0.02
        assert box.y0 >= -0.02
        assert box.x1 <= figure.get_figwidth() + 0.02
        assert box.y1 <= figure.get_figheight() + 0.02
        for axes in data_axes(figure):
            ends = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
            inside = sorted(ends, key=lambda box: box.x0)
            assert all(left.x1 <= right.x0 for left, right in itertools.pairwise(inside))


def test_legend_covers_no_axes(figure):
    with matplotlib.style.context(style._STYLE, after_reset=True):
        figure.draw_without_rendering()
        for legend in figure.legends:
            for axes in figure.axes:
                assert not legend.get_window_extent().overlaps(axes.get_window_extent())


def test_lines_differ_without_colour():
    for name in ("score", "score, many", "relative", "sequences", "levels"):
        for axes in FIGURES[name]().axes:
            drawn = [one for one in axes.get_lines() if one.get_marker() not in ("|", "_") and one.get_gid() is None]
            styles = [(line.get_marker(), str(line._unscaled_dash_pattern)) for line in drawn]
            assert len(set(styles)) == len(styles) >= 2


def test_controls_differ_without_colour():
    markers = [line.get_marker() for line in FIGURES["controls"]().axes[0].get_lines()]
    assert {"o", "s"} <= set(markers)


def test_score_curves_show_the_numbers():
    rows = averages()
    axes = curves.score_curves(rows, "mini · sst2").axes[0]
    lines = [line for line in axes.get_lines() if line.get_marker() in ("o", "s") and line.get_gid() is None]
    for line, (_, expected) in zip(lines, rows.groupby("criterion", sort=False), strict=True):
        assert line.get_ydata() == pytest.approx(expected["mean"].to_numpy())
        assert line.get_xdata() == pytest.approx(100 * expected["share"].to_numpy(), abs=1)
    rows = curves.paired(rows).query("share > 0")
    segments = [path.vertices[:, 1] for bars in axes.collections for path in bars.get_paths()]
    segments = [(low, high) for low, high in segments if low < high]  # share 0 has none
    assert sorted(low for low, _ in segments) == pytest.approx(sorted(rows["low"]))
    assert sorted(high for _, high in segments) == pytest.approx(sorted(rows["high"]))
    dashed = next(line for line in axes.get_lines() if line.get_linestyle() == "--" and line.get_marker() == "None")
    assert dashed.get_ydata() == pytest.approx([averages().query("share == 0")["mean"].iloc[0]] * 2)


def test_score_axis_does_not_blow_up_noise():
    table = make_table(criteria=("gate",), seeds=(0,))
    table["score"] = 0.8 + 1e-4 * np.arange(len(table))
    low, high = curves.score_curves(summarize(table[table["is_score"]]), "x").axes[0].get_ylim()
    assert high - low >= 0.08


def test_error_bars_of_score_curves_are_those_of_paired_differences():
    rows = averages(criteria=("gate",))
    found = curves.paired(rows)
    half = found["share"] == 0.5
    baseline = float(rows.loc[rows["share"] == 0, "mean"].iloc[0])
    assert found.loc[half, "low"].tolist() == pytest.approx((baseline + rows.loc[half, "difference_low"]).tolist())
    assert found.loc[found["share"] == 0, ["low", "high"]].isna().all(axis=None)


def test_a_thumbnail_is_a_small_image_that_is_the_same_each_time():
    first, again = (heads.thumbnail(torch.eye(100), 20) for _ in range(2))
    assert first == again
    image = Image.open(io.BytesIO(first)).convert("RGB")
    assert image.size == (20, 20)
    assert sum(image.getpixel((3, 3))) > sum(image.getpixel((9, 3)))  # yellow on dark blue


def test_relative_curves_have_one_panel_a_task_and_one_scale():
    axes = FIGURES["relative"]().axes
    assert [one.get_title() for one in axes] == list("uvwx")
    assert len({one.get_ylim() for one in axes}) == 1


def test_sequences_are_in_order_whatever_the_order_of_rows():
    rows = sequences()
    axes = curves.sequences_curve([1, 16], rows, "x", 0.8, math.nan).axes[0]
    back = curves.sequences_curve([16, 1], rows.iloc[::-1], "x", math.nan, math.nan).axes[0]
    first, second = axes.get_lines()[0], back.get_lines()[0]
    assert first.get_xdata().tolist() == second.get_xdata().tolist() == [1.0, 16.0]
    assert first.get_ydata().tolist() == second.get_ydata().tolist() == rows["mean"].tolist()
    assert axes.get_xscale() == "log"


def test_skewed_scores_have_a_logarithmic_scale_with_plain_numbers():
    scores = torch.tensor([[1e-4, 1e-3], [2e-3, 1.0]])
    figure = heads.head_maps({"taylor": scores, "gate": -scores, "same": torch.ones(2, 2)}, "x")
    norms = [axes.get_images()[0].norm for axes in data_axes(figure)]
    assert [isinstance(norm, LogNorm) for norm in norms] == [True, False, False]
    assert all(norm.vmin < norm.vmax for norm in norms)
    style.as_png(figure)
    texts = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    assert texts
    assert not any("$" in text for text in texts)


def test_head_maps_are_the_scores():
    scores = torch.tensor([[0.5, math.nan], [0.25, 1.0]])
    shown = data_axes(heads.head_maps({"gate": scores}, "x"))[0]
    np.testing.assert_allclose(np.ma.filled(shown.get_images()[0].get_array(), np.nan), scores.numpy())
    assert shown.get_ylim() == (1.5, -0.5)  # layer 0 above, as in the grid of constants


def test_grid_of_constants_holds_each_matrix_once():
    values = torch.arange(6.0).reshape(2, 3, 1, 1).expand(2, 3, 20, 20) / 10
    sheet = data_axes(heads.constants_grid(values, "x"))[0].get_images()[0].get_array()
    side = 20 + max(2, 20 // 16)
    for layer in range(2):
        for head in range(3):
            tile = sheet[layer * side : layer * side + 20, head * side : head * side + 20]
            np.testing.assert_allclose(tile, values[layer, head].numpy())
    assert np.ma.count_masked(np.ma.masked_invalid(sheet)) == sheet.size - 6 * 400


def test_grid_of_a_large_encoder_has_chosen_layers_and_small_tiles():
    axes = data_axes(heads.constants_grid(torch.rand(24, 20, 64, 64), "x"))[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [str(layer) for layer in heads.shown_layers(24)]
    assert [text.get_text() for text in axes.get_xticklabels()] == [str(head) for head in range(16)]
    assert max(axes.get_images()[0].get_array().shape) < 600


def test_coverage_counts_entries_and_positions():
    counts = torch.tensor([[4.0, 2.0], [2.0, 2.0]])
    left, right = heads.coverage_histograms(counts, "x").axes
    assert sum(bar.get_height() for bar in left.patches) == 4
    assert right.patches[0].get_data().values.tolist() == [4.0, 2.0]


@pytest.mark.parametrize("name", ["$x$ \\frac{", "_hidden", "a" * 200, "line\nbreak", "<b>&"])
def test_names_may_hold_anything(name):
    table = make_table(encoders=(name,), tasks=(name,), criteria=("gate", name))
    rows = summarize(table).query("is_score")
    figure = curves.score_curves(rows, f"{name} · {name}")
    assert b"<svg" in style.as_svg(figure, "x")
    assert len(figure.legends[0].get_texts()) == 4
    assert max(len(text.get_text()) for text in figure.legends[0].get_texts()) <= 31


def test_the_settings_of_the_user_neither_change_nor_count():
    before = dict(matplotlib.rcParams)
    expected = style.as_svg(FIGURES["score"](), "a")
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "red", "svg.fonttype": "none"}):
        assert style.as_svg(FIGURES["score"](), "a") == expected
    assert dict(matplotlib.rcParams) == before
    sources = Path(style.__file__).parent.glob("*.py")
    assert not any("pyplot" in source.read_text() for source in sources)


def test_the_same_bytes_each_time_and_in_any_order():
    one, other = FIGURES["score"](), FIGURES["score"]()
    drawing, picture = style.as_svg(one, "a"), style.as_png(one)
    assert style.as_png(other) == picture
    assert style.as_svg(other, "a") == drawing
    assert not re.search(rb"\d{4}-\d\d-\d\dT", style.as_svg(one, "a"))
    assert Image.open(io.BytesIO(style.as_png(one))).size == (840, 600)
