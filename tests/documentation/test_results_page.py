"""The page of results says what the file of results says, and nothing else that was measured."""

import math
import re
import sys
from itertools import product
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch

from papa_lightning.errors import PapaError
from papa_lightning.study.intervals import Estimate
from papa_lightning.study.predictions import Predictions, save_predictions
from papa_lightning.study.results import CellResult, results_table, save_table
from papa_lightning.study.store import StudyFolder

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
from results_page import claims, collecting, data, figures, page, words  # noqa: E402

sys.path.pop(0)

DOCS = ROOT / "docs"
PAGE = (DOCS / "results.md").read_text(encoding="utf-8")
#: Numbers outside of the blocks that nobody measured here.
ALLOWED = {"95 %"}


@pytest.fixture(scope="module")
def results():
    return data.Results.read(DOCS / "data" / "evidence.parquet")


def test_the_blocks_are_what_the_file_says(results):
    assert page.with_blocks(PAGE, results) == PAGE, "run `python tools/make_results.py page`"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page.with_blocks(readme, results, page.SUMMARY) == readme, "run `python tools/make_results.py page`"
    assert (DOCS / "data" / "evidence.parquet").stat().st_size < 500_000


def test_the_figures_are_what_the_file_says(results):
    made = page.drawn(results)
    found = {path.name: path.read_bytes() for path in (DOCS / "figures").glob("results_*.svg")}
    assert sorted(found) == sorted(made), "run `python tools/make_results.py page`"
    version = f"Matplotlib v{matplotlib.__version__},".encode()
    for name, image in made.items():
        # Another version of matplotlib draws the same figure in another way.
        assert found[name] == image or version not in found[name], f"{name}: run `python tools/make_results.py page`"
    assert all(name in PAGE for name in found)


def measured_numbers(text: str) -> list[str]:
    """Decimals and percentages outside of the blocks, of code and of links."""
    text = re.sub(r"<!-- results: (.*?) -->.*?<!-- end of \1 -->", "", text, flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    return [one for one in re.findall(r"\d+(?:\.\d+)?\s*%|\d+\.\d+", text) if one not in ALLOWED]


def test_no_measured_number_is_typed_by_hand():
    assert not measured_numbers(PAGE)
    assert measured_numbers("0.5 of `0.6`, 3 %\n<!-- results: a -->\n0.7\n<!-- end of a -->\n95 %") == ["0.5", "3 %"]


def rows(changes: dict[tuple[str, str, float], tuple[float, float, float]], beats: bool = True) -> pd.DataFrame:
    """Rows of relative changes by encoder, task and share, with a score of 0.8 at share 0."""
    bases = {(encoder, task, 0.0): (0.0, 0.0, 0.0) for encoder, task, _ in changes}
    found = []
    for (encoder, task, share), change in {**bases, **changes}.items():
        names = {"kind": "score", "encoder": encoder, "task": task, "share": share, "against": "", "study": "s"}
        names |= {"criterion": "variance" if 0 < share < 1 else "", "constants": "average" if share else ""}
        names |= dict(zip(("relative", "relative_low", "relative_high"), change, strict=True))
        facts = {
            "metric": "accuracy",
            "is_score": True,
            "unit": "examples",
            "total_heads": 36,
            "n": 3,
            "mean": 0.8,
            "examples": 100,
            "shares": math.nan,
            "rankings": 1,
        }
        found.append(names | facts | {"low": 0.7, "high": 0.9, "beats_chance": beats})
    return pd.DataFrame(found)


def made(changes, beats=True):
    settings = {"encoders": {"a": ""}, "tasks": {"x": {}, "y": {}}, "criteria": ["variance"], "shares": [0.5, 1.0]}
    settings |= {"constants": ["average"], "control_shares": [1.0]}
    return data.Results(rows(changes, beats), {"s": {"runs": [settings], "pairs": []}})


def test_means_over_tasks_have_the_intervals_of_independent_examples():
    found = made({("a", "x", 1.0): (-0.02, -0.05, 0.02), ("a", "y", 1.0): (-0.04, -0.08, -0.01)}).tasks.change("a", 1.0)
    assert found.value == pytest.approx(-0.03)
    assert found.value - found.low == pytest.approx(math.hypot(0.03, 0.04) / 2)
    assert found.high - found.value == pytest.approx(math.hypot(0.04, 0.03) / 2)
    assert found.tasks == ("x", "y")
    nan = math.nan
    left = made({("a", "x", 1.0): (nan, nan, nan), ("a", "y", 1.0): (-0.04, -0.08, -0.01)}).tasks.change("a", 1.0)
    assert left.tasks == ("y",)  # x is at chance


@pytest.mark.parametrize(
    ("change", "said", "answer"),
    [
        ((-0.004, -0.009, 0.001), "at most 1 % lost", "Yes, within 1 %"),
        ((-0.004, -0.029, 0.021), "at most 3 % lost", "Nearly"),
        ((-0.02, -0.025, -0.015), "1 to 3 % lost", "Nearly"),
        ((-0.02, -0.04, 0.01), "not settled", "Not settled"),
        ((-0.03, -0.04, -0.02), "more than 1 % lost", "No."),
        ((-0.06, -0.08, -0.04), "more than 3 % lost", "No."),
    ],
)
def test_the_verdict_on_half_follows_from_the_interval(change, said, answer):
    assert words.verdict(Estimate(*change)) == said
    text = claims.verdicts(made({("a", "x", 0.5): change}))
    assert f"**Half of the heads cost nothing?** {answer}" in text
    assert f"({said}: a)" in text
    assert ("lost, settled: a on x" in text) == (change[2] < -0.01)


@pytest.mark.parametrize(
    ("change", "answer"),
    [((-0.02, -0.05, 0.01), "Less."), ((-0.07, -0.09, -0.05), "Not settled."), ((-0.2, -0.3, -0.1), "More.")],
)
def test_the_verdict_on_all_follows_from_the_interval(change, answer):
    assert f"**All heads cost 8 %?** {answer}" in claims.verdicts(made({("a", "x", 1.0): change}))


def test_what_is_open_for_one_encoder_does_not_depend_on_the_encoder():
    less, open_one, more = (-0.02, -0.05, 0.01), (-0.07, -0.09, -0.05), (-0.2, -0.3, -0.1)
    text = claims.verdicts(made({("a", "x", 1.0): less, ("b", "x", 1.0): open_one}))
    assert "**All heads cost 8 %?** Less, where it is settled. " in text
    assert "(less than 8 %: a; 8 % lies in the interval: b)" in text
    assert "It depends on the encoder" in claims.verdicts(made({("a", "x", 1.0): less, ("b", "x", 1.0): more}))


def test_better_models_are_settled_by_checkpoints_alone():
    def of(sign, high=0.2):
        steps = {f"step-{number:06d}": sign * number for number in range(8)}
        table = rows({(name, "x", 1.0): (-0.01 * drop, -0.2, high) for name, drop in steps.items()})
        table.loc[table["share"] == 0, "mean"] = [0.5 + 0.01 * number for number in range(8)]
        return claims.verdicts(data.Results(table, made({("a", "x", 1.0): (0.0, 0.0, 0.0)}).studies))

    unsettled = " by rank, but no loss of a checkpoint is settled. "
    assert "**Better models lose more?** Yes. " in of(1, high=-0.001)
    assert f"**Better models lose more?** Yes{unsettled}" in of(1)
    assert f"**Better models lose more?** The other way round{unsettled}" in of(-1)
    assert "the last one changes by \N{MINUS SIGN}7.0 % (\N{MINUS SIGN}20.0 to +20.0) with all heads constant." in of(1)


def test_few_encoders_have_no_interval_of_their_correlation():
    drops = {(name, "x", 1.0): (-0.01 * number, -0.2, 0.2) for number, name in enumerate("abc", start=1)}
    table = rows(drops)
    table.loc[table["share"] == 0, "mean"] = [0.5, 0.6, 0.7]
    text = claims.verdicts(data.Results(table, made({("a", "x", 1.0): (0.0, 0.0, 0.0)}).studies))
    assert "the pretrained ones: 1.00 (too few for an interval), 3 encoders, 1 task." in text


def test_sections_without_data_are_left_out_and_named(results):
    empty = made({("a", "x", 0.5): (-0.004, -0.009, 0.001)})
    assert [name for name in ("all", "constants", "criteria", "embeddings") if page.block(name, empty)] == []
    text = page.block("state", empty)
    assert "Not measured yet: graded encoders; embedding models; share 100 % for a on x; everything for a on y." in text
    with pytest.raises(PapaError, match="the page has the blocks state, but must have verdicts"):
        page.with_blocks("<!-- results: state -->\n<!-- end of state -->\n", results)


def test_the_first_figure_has_the_means_that_the_verdicts_tell():
    shares = {0.25: "x", 0.5: "xy", 1.0: "xy"}
    drops = {("a", task, share): (-0.1 * share, -0.2, 0.2) for share, names in shares.items() for task in names}
    drops |= {("b", "x", 1.0): (-0.1, -0.2, 0.2)}  # no share between: no curve
    (axes,) = figures.shares(made(drops)).axes
    (curve,) = [one for one in axes.get_lines() if len(one.get_xdata()) > 2 and one.get_linestyle() != "None"]
    assert list(curve.get_ydata()) == pytest.approx([0, -5, -10])  # not at a quarter, which one task has


def test_wide_intervals_do_not_hide_the_figure_by_task():
    narrow, wide = (-0.05, -0.1, 0.0), (-0.05, -0.2, 0.1)
    drawn = figures.tasks(made({("a", "x", 1.0): narrow, ("a", "y", 1.0): wide}))
    assert [axes.get_title() for axes in drawn.axes] == ["x"]
    assert figures.tasks(made({("a", "y", 1.0): wide})) is None


def test_the_short_table_is_of_the_encoder_with_most_tasks_above_chance():
    found = made({("a", "x", 0.5): (-0.01, -0.02, 0.0), ("b", "x", 1.0): (0, 0, 0), ("b", "y", 1.0): (-0.1, -0.2, 0.0)})
    text = page.block("summary", found)
    assert text.startswith("| b, 3 probes a cell |")
    assert "| y, accuracy, n 100 | 0.800 |  | " in text


def test_studies_may_not_disagree_and_paths_stay_here():
    one = made({("a", "x", 1.0): (-0.02, -0.05, 0.02)}).rows.assign(scores=[[0.8]] * 2)
    other = one.assign(study="t", scores=[[0.8], [0.7]])
    assert len(collecting._without_repeats(pd.concat([one, one], ignore_index=True))) == 2
    with pytest.raises(PapaError, match=r"'s' and 't' have different scores of encoder 'a', task 'x'"):
        collecting._without_repeats(pd.concat([one, other], ignore_index=True))
    plain = {"data_dir": "sst2", "of": ["a/b", 1]}
    assert collecting._without_places({"data_dir": "/home/me/sst2", "of": ["a/b", 1]}) == plain


def test_an_area_over_few_shares_does_not_replace_one_over_more():
    area = dict.fromkeys(collecting.NAMES, "") | {"kind": "area", "share": math.nan, "rankings": 1}
    few, more = area | {"shares": 1, "relative": 0.1, "study": "s"}, area | {"shares": 3, "relative": 0.2, "study": "s"}
    for order in ([few, more], [more, few]):
        assert list(collecting._without_repeats(pd.DataFrame(order))["relative"]) == [0.2]
    new = more | {"relative": 0.3}
    assert list(collecting._without_repeats(pd.DataFrame([new, few, more]))["relative"]) == [0.3]


def test_a_mean_over_few_random_orders_does_not_replace_one_over_more():
    one = made({("a", "x", 0.5): (-0.02, -0.05, 0.02)}).rows.query("share == 0.5").assign(scores=[[0.8]])
    more = one.assign(rankings=5, scores=[[0.7]], relative=-0.03)
    for order in ([one, more], [more, one]):
        assert list(collecting._without_repeats(pd.concat(order))["relative"]) == [-0.03]


def test_means_of_criteria_are_compared_on_the_tasks_that_all_have():
    one = made({("a", "x", 0.5): (0.01, 0.0, 0.02), ("a", "y", 0.5): (0.05, 0.04, 0.06)})
    gate = one.rows.query("share == 0.5 and task == 'x'").assign(criterion="gate", relative=0.03)
    lines = page.block("half", data.Results(pd.concat([one.rows, gate], ignore_index=True), one.studies)).splitlines()
    (whole,), (common,) = ([line for line in lines if words in line] for words in ("**mean**", "all criteria have"))
    assert "| +3.0 %" in whole
    assert "| +1.0 % (0.0 to +2.0) ≤ 1 % | +3.0 % (" in common
    assert "all criteria have" not in page.block("half", one)


def test_tasks_of_other_constants_are_counted_for_each_share():
    one = made({("a", "x", 0.5): (0.0, -0.1, 0.1), ("a", "x", 1.0): (0.0, -0.1, 0.1), ("a", "y", 1.0): (0, -0.1, 0.1)})
    pruned = one.rows.query("share > 0").assign(constants="zero")
    found = pd.concat([one.rows, pruned, pruned.assign(kind="difference", against="average")], ignore_index=True)
    text = page.block("constants", data.Results(found, one.studies))
    assert "| `zero` | half 1, all 2 | " in text


def test_the_fewest_rows_that_are_enough_follow_from_the_intervals():
    one = made({("a", "x", 0.5): (0.0, -0.1, 0.1)})
    lows = {"sequences:1": -0.03, "sequences:16": -0.009, "sequences:256": -0.002}
    found = [
        one.rows.query("share > 0").assign(constants=kind, kind="difference", relative=0.0, relative_low=low)
        for kind, low in lows.items()
    ]
    text = page.block("constants", data.Results(pd.concat([one.rows, *found], ignore_index=True), one.studies))
    assert "settled: half, a on x: from 16 rows (of 1, 16 and 256 measured)." in text
    found[2]["relative_low"] = -0.02
    text = page.block("constants", data.Results(pd.concat([one.rows, *found], ignore_index=True), one.studies))
    assert "half, a on x: more than 256 rows (of" in text
    # A task that only one number of rows has says nothing of the others.
    other = found[0].assign(task="y", relative_low=0.0)
    found[2]["relative_low"] = -0.002
    text = page.block("constants", data.Results(pd.concat([one.rows, *found, other], ignore_index=True), one.studies))
    assert "half, a on x: from 16 rows (of" in text


def test_random_orders_that_are_missing_are_named():
    one = made({("a", "x", 0.5): (0.0, 0.0, 0.0)})
    orders = one.rows.query("share == 0.5").assign(criterion="random", rankings=2)
    one.studies["s"]["runs"][0]["criteria"] = ["variance", "random", "random:1", "random:2"]
    text = page.block("state", data.Results(pd.concat([one.rows, orders], ignore_index=True), one.studies))
    assert "share 100 % and 1 random order for a on x;" in text


def with_areas(areas: dict[tuple[str, str, str], tuple[float, float, float]]) -> data.Results:
    """Results of an encoder with areas by criterion, other criterion and task."""
    one = made({("a", task, 0.5): (0.0, 0.0, 0.0) for _, _, task in areas})
    scores = [one.rows.assign(criterion=name).query("share == 0.5") for name, _, _ in areas]
    found = [
        {"kind": "area", "criterion": name, "against": other, "task": task, "share": math.nan, "shares": 1}
        | {"encoder": "a", "constants": "average", "metric": "accuracy", "study": "s", "is_score": True}
        | {"unit": "examples", "beats_chance": True}
        | dict(zip(("relative", "relative_low", "relative_high"), area, strict=True))
        for (name, other, task), area in areas.items()
    ]
    return data.Results(pd.concat([one.rows, *scores, pd.DataFrame(found)], ignore_index=True), one.studies)


def test_criteria_are_compared_on_the_tasks_that_both_have():
    # On y, where only `variance` has an area, it is far better than a random order: no reason to prefer it.
    areas = {("variance", "random", "x"): (0.01, 0.005, 0.015), ("variance", "random", "y"): (0.2, 0.1, 0.3)}
    areas |= {("gate", "random", "x"): (0.04, 0.03, 0.05), ("gate", "variance", "x"): (0.03, 0.02, 0.04)}
    text = page.block("criteria", with_areas(areas))
    assert (
        "on the tasks that both have with scores of at least 0.2, `gate` does best: a +3.0 % (+2.0 to +4.0). " in text
    )
    assert "settled for 1 of 1 encoder: take it where 2.7 passes are affordable, else `variance`" in text
    assert "By task: better: a on x." in text
    assert "| `gate`: 2.7 | 1; 1 | +4.0 % (+3.0 to +5.0) |" in text
    areas[("gate", "variance", "x")] = (0.03, -0.01, 0.07)
    assert "settled for 0 of 1 encoder: take `variance`, which costs 0 passes." in page.block(
        "criteria", with_areas(areas)
    )
    # Another is better on x and was measured on y too, where nothing helps: no reason to prefer `gate`.
    further = {("taylor", "variance", "x"): (0.04, 0.03, 0.05), ("taylor", "variance", "y"): (0.002, 0.001, 0.003)}
    text = page.block("criteria", with_areas(areas | further))
    assert "of at least 0.2, `taylor` does best: a +2.1 % (" in text
    both = {("variance", "random", "x"): (0.01, 0.005, 0.015), ("random", "variance", "x"): (-0.01, -0.015, -0.005)}
    alone = with_areas(both)
    assert "No other criterion than `variance` has been measured beside" in page.block("criteria", alone)


def finished_study(folder: Path, base: int = 50, task: str = "x", device: str = "cpu") -> None:
    """The files of a study of two shares by two criteria, with pruning beside the average, over 60 examples."""
    store, labels, cells = StudyFolder(folder), torch.arange(60) % 2, []
    rights = {("variance", 0.0, "average"): base, ("variance", 0.5, "average"): 49, ("random", 0.5, "average"): 40}
    rights |= {("variance", 0.5, "zero"): 30, ("variance", 1.0, "average"): 45, ("gate", 1.0, "average"): 45}
    for ((criterion, share, constants), fewest), seed in product(rights.items(), range(3)):
        right = max(fewest + seed, 0)
        chosen = torch.where(torch.arange(60) < right, labels, 1 - labels)
        key = f"{criterion}-{share}-{constants}-{seed}"
        one = Predictions(torch.nn.functional.one_hot(chosen, 2).float(), labels, torch.arange(60), 60, ["no", "yes"])
        scores = {"accuracy": right / 60, "accuracy/best": right / 60, "epoch/best": 2.0}
        heads = {"constant_heads": int(12 * share), "total_heads": 12, "share": share, "constants": constants}
        facts = {"encoder": "a", "task": task, "metric": "accuracy", "seconds": 60.0, "versions": {}, "hash": key}
        cell = CellResult(criterion=criterion, seed=seed, scores=scores, **heads, **facts)
        cell.save(store.cell(key))
        save_predictions(store.predictions(key), {"": one, "best": one})
        cells.append(cell)
    settings = {"encoders": {"a": "/home/me/a"}, "tasks": {task: {"class_path": "X"}}, "seeds": [0, 1, 2]}
    settings |= {"criteria": ["variance", "random"], "shares": [0.0, 0.5, 1.0], "control_shares": [0.5]}
    settings |= {"constants": ["average", "zero"]}
    store.write(settings, {"versions": {}, "device": device}, {})
    save_table(results_table(cells[:-3]), folder)  # the last run had no gate


def test_a_study_becomes_rows_and_sentences(tmp_path):
    finished_study(tmp_path / "s")
    collecting.collect([tmp_path / "s"], tmp_path / "e.parquet", [{"encoders": {}, "tasks": {}}])
    found = data.Results.read(tmp_path / "e.parquet")
    part = found.tasks
    base, half = part.row("a", "x", 0.0), part.row("a", "x", 0.5, "variance")
    assert list(half["scores"]) == pytest.approx([49 / 60, 50 / 60, 51 / 60], abs=1e-6)
    assert (half["n"], half["seconds"], half["examples"], base["constants"]) == (3, 180, 60, "")
    assert part.row("a", "x", 0.5, "variance", best=True)["mean"] == half["mean"]
    assert part.row("a", "x", 1.0)["n"] == 3  # once, whatever the criterion
    (area,) = part.areas("a", "variance", "random")
    assert area["difference"] == pytest.approx(9 / 60 / 2, abs=1e-5)
    assert area["relative"] == pytest.approx(9 / 60 / 2 / base["mean"], abs=1e-5)
    pruned = part.row("a", "x", 0.5, "variance", constants="zero", kind="difference")
    assert pruned["difference"] == pytest.approx(-19 / 60, abs=1e-5)
    assert pruned["relative_high"] < 0
    constants = page.block("constants", found)
    assert "the average is better: a on x" in constants
    assert "| `average` | 1 | " in constants
    assert "| `zero` | 1 | " in constants
    assert "`variance` against random orders: better: a." in page.block("criteria", found)
    assert "/home" not in str(found.studies)


def test_a_study_of_one_criterion_has_no_area(tmp_path):
    finished_study(tmp_path / "s")
    for path in (tmp_path / "s" / "cells").glob("*.json"):
        if CellResult.load(path).criterion == "random":
            path.unlink()
    found = collecting.collect([tmp_path / "s"], tmp_path / "e.parquet", [{"encoders": {}, "tasks": {}}])
    assert set(found["kind"]) == {"score", "difference"}


def test_changes_of_a_score_of_0_are_not_defined(tmp_path):
    finished_study(tmp_path / "s", base=-9)
    collecting.collect([tmp_path / "s"], tmp_path / "e.parquet", [{"encoders": {}, "tasks": {}}])
    part = data.Results.read(tmp_path / "e.parquet").tasks
    assert part.row("a", "x", 0.0)["mean"] == 0
    pruned = part.row("a", "x", 0.5, "variance", constants="zero", kind="difference")
    assert pruned["difference"] == pytest.approx(-19 / 60, abs=1e-5)
    assert math.isnan(pruned["relative"])


def test_results_of_another_folder_are_added_to_a_file(tmp_path):
    def collected(folder, output, *earlier):
        plans = [{"encoders": {"a": "a"}, "tasks": {"w": {"class_path": "W"}}, "criteria": ["variance", "random"]}]
        collecting.collect([tmp_path / folder], tmp_path / output, plans, None, *earlier)
        return data.Results.read(tmp_path / output)

    finished_study(tmp_path / "s", task="z")
    finished_study(tmp_path / "elsewhere" / "s", task="y")
    first = collected("s", "first.parquet")
    both = collected("elsewhere/s", "both.parquet", tmp_path / "first.parquet")
    assert (both.tasks.tasks, list(both.studies)) == (["y", "z"], ["s"])
    pd.testing.assert_frame_equal(both.rows[both.rows["task"] == "z"].reset_index(drop=True), first.rows)
    assert page.block("criteria", both).count("better: a.") == 1
    again = collected("s", "again.parquet", tmp_path / "both.parquet")
    pd.testing.assert_frame_equal(again.rows, collected("s", "again.parquet", tmp_path / "again.parquet").rows)
    assert again.tasks.tasks == ["z", "y"]  # as the settings of the folder, then those of the file

    finished_study(tmp_path / "gpu" / "s", task="v", device="cuda")
    with pytest.raises(
        PapaError, match="parts of the study 's' differ in device: cpu in the earlier file, cuda in the"
    ):
        collected("gpu/s", "both.parquet", tmp_path / "first.parquet")
    finished_study(tmp_path / "changed" / "s", base=47, task="z")
    with pytest.raises(PapaError, match=r"study 's' has other scores of encoder 'a', task 'z'.* than the earlier file"):
        collected("changed/s", "both.parquet", tmp_path / "first.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(PapaError, match=r"other.parquet' has no studies in its metadata"):
        collected("s", "both.parquet", tmp_path / "other.parquet")
    (tmp_path / "text.parquet").write_text("a")
    for name in ("text.parquet", "none.parquet"):
        with pytest.raises(PapaError, match=f"{name}' cannot be read"):
            collected("s", "both.parquet", tmp_path / name)


def compared(half=0.02, task=0.1, rho=0.99) -> pd.DataFrame:
    """Comparisons of averages of an encoder on two tasks, in two random orders."""
    found = []
    for name, seed in product("xy", (0, 1)):
        sizes = {"1": 0.4, "16": 0.1, "64": 0.06, "256": 0.03 + 0.03 * (name == "y") * seed}
        distances = {("half", ""): half + 0.002 * seed} | {("sequences", size): one for size, one in sizes.items()}
        names = {"encoder": "a", "task": name, "rows": 1200, "seed": seed}
        for (kind, size), one in distances.items():
            ranked = {"rank_correlation": rho - 0.01 * seed, "lowest_half_overlap": 0.95}
            found.append({**names, "kind": kind, "with": size, "distance_mean": one, "distance_max": 2 * one, **ranked})
    return pd.DataFrame([*found, {**found[0], "kind": "task", "with": "y", "distance_mean": task, "seed": math.nan}])


def test_what_is_said_of_reliability_follows_from_the_distances():
    one = made({("a", "x", 0.5): (0.0, 0.0, 0.0)})

    def of(**distances):
        return page.block("reliability", data.Results(one.rows, one.studies, compared(**distances)))

    text = of()
    assert "Yes. The averages of two halves of the rows are at most 0.022 apart, those of two tasks at least" in text
    assert "On the half of a task's rows hardly, on the task hardly. Lowest rank correlation" in text
    assert "of two halves of the rows, 0.980 and 95 %; of two tasks, 0.990 and 95 %." in text
    assert "from (of 1, 16, 64 and 256 measured) 256 rows: a on x; more than 256 rows: a on y." in text
    assert "| a, x: 1,200 rows, 2 orders | 0.021 (0.044) | 0.100 (0.200) | 0.030 (0.060) | y 0.100 (0.040) |" in text
    assert "| a, y: 1,200 rows, 2 orders | 0.021 (0.044) | 0.100 (0.200) | 0.045 (0.120) | x 0.100 (0.040) |" in text
    assert "Not for a on x and a on y. The averages" in of(task=0.021)
    assert "On the half of a task's rows yes, on the task yes. Lowest" in of(rho=0.9)
    assert page.block("reliability", one) == ""


def test_reliability_is_kept_in_the_file(tmp_path):
    finished_study(tmp_path / "s")
    compared().to_csv(tmp_path / "r.csv", index=False)
    plans = [{"encoders": {}, "tasks": {}}]
    collecting.collect([tmp_path / "s"], tmp_path / "e.parquet", plans, tmp_path / "r.csv")
    found = data.Results.read(tmp_path / "e.parquet").reliability
    pd.testing.assert_frame_equal(found[compared().columns], compared(), check_dtype=False)
    (tmp_path / "other.csv").write_text("encoder,task\na,x\n")
    with pytest.raises(PapaError, match=r"other.csv' has no column 'kind'"):
        collecting.collect([tmp_path / "s"], tmp_path / "e.parquet", plans, tmp_path / "other.csv")
