"""The measured tables and figures of the page on kinds of attention come from the file of results."""

import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

from papa_lightning.errors import PapaError
from papa_lightning.figures import as_svg
from papa_lightning.study.comparison.results import KindResult
from papa_lightning.study.store import StudyFolder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import make_kinds_tables  # noqa: E402

sys.path.pop(0)


def test_the_page_says_what_the_file_says():
    results = pd.read_csv(make_kinds_tables.DATA)
    text = make_kinds_tables.PAGE.read_text(encoding="utf-8")
    assert make_kinds_tables.with_blocks(text, results) == text, "run `python tools/make_kinds_tables.py page`"
    for name, rows in results.groupby("study"):
        if not make_kinds_tables.has_figure(rows):
            continue
        file = ROOT / "docs" / "figures" / make_kinds_tables.figure_name(str(name))
        drawn = as_svg(make_kinds_tables.figure(rows), file.name)
        # Another version of matplotlib draws the same figure in another way.
        same = file.read_bytes() == drawn or f"Matplotlib v{matplotlib.__version__},".encode() not in file.read_bytes()
        assert same, f"{file.name}: run `python tools/make_kinds_tables.py page`"


def finished(folder: Path, steps: int, scores: dict[str, list[float]], seeds: int = 3) -> Path:
    """The folder of a comparison of kinds."""
    store, cells = StudyFolder(folder), []
    for variant, known in scores.items():
        for seed, score in enumerate(known):
            facts = {"variant": variant, "kind": "dynamic", "seed": seed, "metric": "accuracy", "score": score}
            unmeasured = dict.fromkeys(("steps_per_second", "peak_memory_bytes", "step_memory_bytes"), float("nan"))
            key = f"{variant}-{seed}"
            facts |= {
                "loss": 1 - score,
                "parameters": 1200,
                "steps": steps,
                "seconds": 1.0,
                "versions": {},
                "hash": key,
            }
            KindResult(**facts, **unmeasured).save(store.cell(key))
            cells.append(store.relative(store.cell(key)))
    kinds = {"model": {"class_path": "M"}, "data": {"class_path": "D"}, "variants": {name: {} for name in scores}}
    store.write({"kinds": kinds | {"steps": steps}, "seeds": list(range(seeds))}, {}, {"cells": cells})
    return folder


def test_studies_that_differ_in_steps_become_one_table(tmp_path):
    early = finished(tmp_path / "early", 100, {"a": [0.5, 0.5, 0.5], "b": [0.4, 0.5, 0.6]})
    late = finished(tmp_path / "late", 2000, {"a": [0.7, 0.8, 0.9], "b": [0.6, 0.7, 0.8]})
    file = tmp_path / "kinds.csv"
    make_kinds_tables.collect("x", [late, early], file)
    make_kinds_tables.collect("y", [early], file)
    make_kinds_tables.collect("x", [late, early], file)  # in place of what the file has
    results = pd.read_csv(file)
    assert results["study"].value_counts().to_dict() == {"x": 12, "y": 6}
    lines = make_kinds_tables.table(results[results["study"] == "x"]).splitlines()
    assert lines[0] == "| attention | accuracy, 100 steps | 2,000 steps | minus `a` | loss, nats | parameters |"
    # Student's t of two degrees of freedom: 4.303 * 0.1 / sqrt(3).
    assert lines[2] == "| `a` | 0.500 ± 0.000 | 0.800 ± 0.248 |  | 0.200 ± 0.248 | 1,200 |"
    less = "\N{MINUS SIGN}0.100 ± 0.000"
    assert lines[3] == f"| `b` | 0.500 ± 0.248 | 0.700 ± 0.248 | {less} | 0.300 ± 0.248 | 1,200 |"
    page = "1\n<!-- kinds: y -->\nold\n<!-- end of y -->\n2\n<!-- kinds: x -->\n<!-- end of x -->\n3\n"
    text = make_kinds_tables.with_blocks(page, results)
    assert "old" not in text
    assert [text.count(one) for one in (lines[3], "1\n", "2\n", "3\n", "figures/kinds_y.svg")] == [1, 1, 1, 1, 0]
    assert "figures/kinds_x.svg" in text  # with several numbers of steps
    assert len(make_kinds_tables.figure(results[results["study"] == "x"]).axes[0].get_legend().get_texts()) == 2


def test_learning_rates_stand_beside_each_other(tmp_path):
    scores = {"dot-4-5e-4": [0.5], "dot-4-1.6e-2": [0.7], "simple-1.6e-2": [0.4]}
    rows = make_kinds_tables.collect("x", [finished(tmp_path / "rates", 1000, scores, 1)], tmp_path / "kinds.csv")
    page = make_kinds_tables.with_blocks("<!-- kinds: x -->\n<!-- end of x -->", rows)
    assert page.splitlines()[2:6] == [
        "| attention | accuracy / loss, 1,000 steps, rate 5e-4 | 1.6e-2 |",
        "| --- | --- | --- |",
        "| `dot-4` | 0.500 / 0.500 | **0.700 / 0.300** |",
        "| `simple` |  | **0.400 / 0.600** |",
    ]


def test_what_would_mislead_is_refused(tmp_path):
    folder = finished(tmp_path / "a", 100, {"a": [0.5, 0.6]})
    with pytest.raises(PapaError, match="a' is not finished"):
        make_kinds_tables.collect("x", [folder], tmp_path / "kinds.csv")
    whole = finished(tmp_path / "b", 100, {"a": [0.5, 0.6]}, seeds=2)
    with pytest.raises(PapaError, match="two studies of 'x' have the same steps"):
        make_kinds_tables.collect("x", [whole, whole], tmp_path / "kinds.csv")
    rows = make_kinds_tables.collect("x", [whole], tmp_path / "kinds.csv")
    assert "| `a` | 0.550 |  | 0.450 | 1,200 |" in make_kinds_tables.table(rows)  # no interval of two seeds
    with pytest.raises(PapaError, match=r"the page has the blocks \['y'\], but the file has \['x'\]"):
        make_kinds_tables.with_blocks("<!-- kinds: y -->", pd.read_csv(tmp_path / "kinds.csv"))
