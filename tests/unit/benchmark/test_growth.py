"""Exponents of growth, from tables whose growth is known, and the figures of benchmarks."""

import math

import pandas as pd
import pytest
from matplotlib.lines import Line2D

from papa_lightning.benchmark.figures import growth_figure, speed_figure
from papa_lightning.benchmark.growth import fit_exponent, growths

BASE = {"encoder": "bert", "hidden": 64, "layers": 2, "heads": 4, "batch": 1, "length": 512, "padding": 0}


def row(variant=("stock", math.nan), speed=1.0, bound=1.0, seconds=None, **size):
    own = BASE | size
    length, layers = own["length"], own["layers"]
    exponent = 2.0 if variant[0] == "stock" else 1.0
    return own | {
        "kind": variant[0],
        "share": variant[1],
        "backend": "sdpa",
        "work": "forward",
        "seconds": seconds or (1e-6 * length**exponent + 1e-4) * layers,
        "peak_bytes": 1000 * length,
        "held_bytes": 0 if variant[0] == "stock" else length**2 * layers,
        "speed": speed,
        "speed_low": speed - 0.01,
        "speed_high": speed + 0.02,
        "bound": bound,
    }


def table(*variants):
    lengths = [512, 64, 128, 256, 1024, 2048, 4096]
    sizes = [{"length": length} for length in lengths] + [{"layers": layers} for layers in (1, 4, 8)]
    sizes += [{"heads": heads} for heads in (1, 2)]
    return pd.DataFrame([row(variant, **size) for size in sizes for variant in variants])


def test_exponents():
    found = {
        (one.axis, one.quantity, one.variant[0]): one for one in growths(table(("stock", math.nan), ("constant", 1.0)))
    }
    assert {axis for axis, *_ in found} == {"length", "layers", "heads"}
    time = found["length", "seconds", "stock"]
    assert time.exponent == pytest.approx(2.0, abs=0.01)
    assert (time.fitted, len(time.points)) == (512, 7)
    assert time.variant == ("stock", None, "sdpa", "forward")
    assert found["length", "seconds", "constant"].exponent == pytest.approx(0.95, abs=0.04)
    assert found["length", "memory", "stock"].exponent == pytest.approx(1.0)
    assert 1.5 < found["length", "memory", "constant"].exponent < 2
    assert found["layers", "seconds", "constant"].exponent == pytest.approx(1.0)
    assert found["heads", "seconds", "constant"].exponent == pytest.approx(0.0, abs=1e-9)


def test_two_points_are_no_growth():
    assert (
        growths(table(("stock", math.nan)).query("length <= 512 and length >= 256 and heads == 4 and layers == 2"))
        == []
    )
    assert growths(table(("stock", math.nan)).iloc[:0]) == []


def test_memory_that_is_not_known_is_left_out():
    found = growths(table(("stock", math.nan)).assign(peak_bytes=None))
    assert {one.quantity for one in found} == {"seconds"}


def test_only_the_upper_part_counts():
    points = [(size, 1000.0 + size**2) for size in (1, 2, 4, 8, 1024, 2048, 4096, 8192)]
    exponent, error, fitted = fit_exponent(points)
    assert exponent == pytest.approx(2.0, abs=0.001)
    assert (fitted, error < 0.001) == (1024, True)
    assert fit_exponent([(1, 1.0), (100, 100.0), (101, 101.0)])[2] == 1


def test_the_figure_of_growth():
    found = growths(table(("stock", math.nan), ("constant", 1.0)))
    figure = growth_figure(found)
    assert len(figure.axes) == 2 * 3
    lengths = figure.axes[0]
    assert (lengths.get_xscale(), lengths.get_yscale()) == ("log", "log")
    curve = next(line for line in lengths.get_lines() if len(line.get_xdata()) == 7)
    assert list(zip(curve.get_xdata(), curve.get_ydata(), strict=True)) == found[0].points
    assert {text.get_text() for text in lengths.texts} == {
        f"{one.exponent:.2f}" for one in found if (one.axis, one.quantity) == ("length", "seconds")
    }
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == ["stock, sdpa", "constant 100 %"]


def test_the_figure_of_speeds():
    rows = [
        row(kind, speed, bound, length=length, hidden=hidden)
        for hidden in (384, 768)
        for length in (64, 512)
        for kind, speed, bound in [
            (("stock", math.nan), 1.0, 1.0),
            (("constant", 1.0), 1.2, 1.3),
            (("x", 0.5), 0.9, None),
        ]
    ]
    figure = speed_figure(pd.DataFrame(rows))
    first, second = figure.axes
    assert [bar.get_height() for bar in first.patches] == [1.2, 0.9, 1.2, 0.9]
    marks = [line for line in first.get_lines() if len(set(line.get_ydata())) == 1 and line.get_linewidth() == 2]
    assert [line.get_ydata()[0] for line in marks] == [1.3, 1.3]
    for mark, bar in zip(marks, first.patches[::2], strict=True):
        left, right = mark.get_xdata()
        assert left <= bar.get_x() <= bar.get_x() + bar.get_width() <= right
    assert "d 384" in first.get_title()
    assert "d 768" in second.get_title()
    for axes in (first, second):
        assert any(isinstance(line, Line2D) and line.get_linestyle() == "--" for line in axes.get_lines())
        assert [text.get_text() for text in axes.get_xticklabels()] == ["1 x 64", "1 x 512"]
