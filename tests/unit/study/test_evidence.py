"""What a study settles: paired differences from stored predictions, chance, verdicts, and what is missing."""

import math
import time

import numpy as np
import pytest
import torch

from papa_lightning.errors import PapaError
from papa_lightning.study.intervals import Estimate
from papa_lightning.study.predictions import Predictions, save_predictions
from papa_lightning.study.results import CellResult, results_table
from papa_lightning.study.statistics import Evidence, summarize
from papa_lightning.study.store import StudyFolder
from papa_lightning.study.summary import format_summary
from papa_lightning.study.verdicts import examples_needed, verdict_of, verdict_words
from papa_lightning.tasks.metrics import classification_metrics

TOTAL = 400
LABELS = torch.arange(TOTAL) % 2


def predictions(right, seed, flips=6):
    """The first labels are right, but for a few of the seed's own."""
    generator = torch.Generator().manual_seed(seed)
    correct = torch.arange(TOTAL) < right
    correct[torch.randperm(TOTAL, generator=generator)[:flips]] ^= True
    chosen = torch.where(correct, LABELS, 1 - LABELS)
    return Predictions(torch.nn.functional.one_hot(chosen, 2).float(), LABELS, torch.arange(TOTAL), TOTAL, ["a", "b"])


def study(rights, seeds=(0, 1, 2), metric="accuracy"):
    """Cells and predictions of a study: `rights` has the number of right labels by criterion and share."""
    cells, kept = [], {}
    for (criterion, share), right in rights.items():
        for seed in seeds:
            key = f"{criterion}-{share}-{seed}"
            one = predictions(right, seed + int(100 * share))
            kept[key] = {"": one}
            scores = {
                name: float(classification_metrics([name], 2)(one.predicted, LABELS)[name])
                for name in ("accuracy", "f1", "matthews_corrcoef")
            }
            scores["loss"] = float(one.losses.mean())
            names = {"encoder": "e", "task": "t", "criterion": criterion, "constants": "average", "metric": metric}
            facts = {"constant_heads": round(8 * share), "total_heads": 8, "seconds": 1.0, "versions": {}}
            cells.append(CellResult(**names, **facts, share=share, seed=seed, scores=scores, hash=key))
    return results_table(cells), kept


RIGHTS = {("gate", 0.0): 340, ("gate", 0.5): 339, ("gate", 1.0): 280, ("random:0", 0.0): 340, ("random:0", 0.5): 300}


def row_of(summary, share, metric="accuracy", criterion="gate"):
    found = summary[(summary["share"] == share) & (summary["metric"] == metric) & (summary["criterion"] == criterion)]
    assert len(found) == 1
    return found.iloc[0]


@pytest.fixture(scope="module")
def evidence():
    table, kept = study(RIGHTS)
    return Evidence(table, kept.get)


def test_every_metric_has_intervals_over_examples_and_seeds(evidence):
    assert set(evidence.summary["basis"]) == {"examples and seeds"}
    assert set(evidence.summary["examples"]) == {TOTAL}
    assert not evidence.notes
    for share in (0.0, 0.5, 1.0):
        for metric in ("accuracy", "f1", "matthews_corrcoef", "loss"):
            row = row_of(evidence.summary, share, metric)
            assert row["low"] <= row["mean"] <= row["high"]
            assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert row_of(evidence.summary, 0.0)["difference_high"] == 0


def test_differences_are_narrower_than_the_scores_that_they_are_of(evidence):
    row = row_of(evidence.summary, 0.5)
    assert row["difference_high"] - row["difference_low"] < 0.7 * (row["high"] - row["low"])


def test_the_verdict_is_on_the_whole_interval(evidence):
    near, far = (row_of(evidence.summary, share) for share in (0.5, 1.0))
    assert (near["verdict"], far["verdict"]) == ("within", "beyond")
    assert near["relative_low"] >= -0.03
    assert far["relative_high"] < -0.03
    assert row_of(evidence.summary, 0.0)["verdict"] == row_of(evidence.summary, 1.0, "loss")["verdict"] == ""
    open_row = row_of(Evidence(evidence.table, evidence.predictions, margin=0.002).summary, 0.5)
    assert open_row["verdict"] == "open"
    largest = evidence.largest_within("e", "t", "gate")
    assert largest["share"] == 0.5
    assert evidence.next_after(largest, "e", "t", "gate")["share"] == 1.0
    assert evidence.largest_within("e", "t", "random") is None
    assert evidence.next_after(None, "e", "t", "random")["share"] == 0.5


def test_orders_are_compared_over_the_same_examples(evidence):
    row = row_of(evidence.summary, 0.5)
    assert 0 < row["against_random_low"] < row["against_random"] < row["against_random_high"]
    same = evidence.compare("e", "t", ("gate", 0.5, "average"), ("random", 0.5, "average"))
    assert (same.value, same.low, same.high) == (
        row["against_random"],
        row["against_random_low"],
        row["against_random_high"],
    )
    with pytest.raises(PapaError, match=r"^second is .* results of e on t"):
        evidence.compare("e", "t", ("gate", 0.5, "average"), ("taylor", 0.5, "average"))


def test_areas_are_mean_differences_over_all_shares():
    ends = {("gate", 0.0): 340, ("gate", 1.0): 280, ("random:0", 0.0): 340, ("random:1", 0.0): 340}
    inner = {("gate", 0.25): 338, ("gate", 0.5): 330, ("random:0", 0.5): 300, ("random:1", 0.5): 320}
    further = {("random:0", 0.25): 330, ("random:1", 0.25): 322, ("random:2", 0.5): 200}
    found = Evidence(*(lambda table, kept: (table, kept.get))(*study(ends | inner | further)))
    area = found.area("e", "t", "gate", "random")
    # An order that lacks a share is left out; flips are as many on both sides.
    assert area.value == pytest.approx((0.25 * (338 - 326) + 0.375 * (330 - 310)) / TOTAL, abs=0.01)
    assert 0 < area.low < area.value < area.high
    assert found.area("e", "t", "random", "gate").value == pytest.approx(-area.value)
    assert (area.seeds, area.examples, area.basis) == (3, TOTAL, "examples and seeds")
    # One share alone is half of its difference.
    one = Evidence(*(lambda table, kept: (table, kept.get))(*study(RIGHTS)))
    half = one.compare("e", "t", ("gate", 0.5, "average"), ("random", 0.5, "average"))
    assert one.area("e", "t", "gate", "random").low == pytest.approx(half.low / 2)
    assert math.isnan(Evidence(one.table).area("e", "t", "gate", "random").examples_error)
    with pytest.raises(PapaError, match=r"^second is 'taylor'.* between share 0 and 1"):
        found.area("e", "t", "gate", "taylor")


def test_a_baseline_at_chance_has_no_relative_changes():
    table, kept = study({("gate", 0.0): 205, ("gate", 1.0): 190})
    found = Evidence(table, kept.get)
    row = row_of(found.summary, 1.0)
    assert (row["chance"], row["verdict"]) == (0.5, "no baseline")
    assert math.isnan(row["relative"])
    assert not row_of(found.summary, 0.0)["beats_chance"]
    assert row["difference_low"] < row["difference"] < 0
    text = str(format_summary(found.summary))
    assert "no better than chance, so changes are not relative" in " ".join(text.split())
    assert "%" not in text.splitlines()[-1].split("-0.")[1]
    good = row_of(Evidence(*(lambda table, kept: (table, kept.get))(*study(RIGHTS))).summary, 0.0)
    assert good["beats_chance"]
    assert good["above_chance"] == pytest.approx(good["mean"] - 0.5)


def test_two_seeds_cover_the_examples_only():
    table, kept = study({("gate", 0.0): 340, ("gate", 1.0): 320}, seeds=(0, 1))
    found = Evidence(table, kept.get)
    assert set(found.summary["basis"]) == {"examples"}
    assert "add seeds" in found.notes[0]
    row = row_of(found.summary, 1.0)
    assert 0 < row["low"] < row["high"] < 1
    assert row["high"] - row["low"] < 0.12  # Student's t of two seeds could be wider than all scores


def test_without_predictions_intervals_cover_seeds_only_and_it_is_said():
    table, kept = study(RIGHTS)
    found = Evidence(table, lambda key: None if key == "gate-1.0-2" else kept[key])
    assert row_of(found.summary, 1.0)["basis"] == "seeds"
    assert row_of(found.summary, 0.5)["basis"] == "examples and seeds"
    assert found.notes[0].startswith("1 probe of 15 have no predictions")
    bare = summarize(table)
    assert set(bare["basis"]) == {"seeds"}
    assert bare["above_chance"].isna().all()


def test_predictions_of_other_examples_or_for_another_score_are_not_used():
    table, kept = study({("gate", 0.0): 340, ("gate", 1.0): 320})
    other = kept["gate-1.0-0"][""]
    moved = Predictions(other.logits, other.labels.flip(0), other.examples, TOTAL, ["a", "b"])
    found = Evidence(table, {**kept, "gate-1.0-0": {"": moved}}.get)
    assert row_of(found.summary, 1.0)["basis"] == "seeds"
    wrong = Evidence(table, {**kept, "gate-1.0-0": {"": predictions(100, 5)}}.get)
    assert row_of(wrong.summary, 1.0)["basis"] == "seeds"


def test_the_folder_of_a_study_has_it_all(tmp_path):
    table, kept = study({("gate", 0.0): 340, ("gate", 1.0): 339})
    folder = StudyFolder(tmp_path)
    for key, sets in kept.items():
        save_predictions(folder.predictions(key), sets)
    assert summarize(table, tmp_path, margin=0.05).equals(Evidence(table, kept.get, 0.05).summary)


def test_a_study_of_usual_size_takes_seconds():
    rights = {(name, share): 340 for name in ("gate", "random:0") for share in (0.0, 0.5, 0.75, 0.9, 1.0)}
    table, kept = study(rights)
    start = time.process_time()
    assert len(Evidence(table, kept.get).summary) == 40
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.02, 0.01, "within"), (-0.03, 0.5, "within"), (-0.2, -0.04, "beyond"), (-0.04, 0.0, "open"),
     (-0.2, -0.02, "open"), (math.nan, math.nan, "")],
)  # fmt: skip
def test_verdicts(low, high, verdict):
    assert verdict_of(Estimate((low + high) / 2, low, high), 0.03) == verdict


def test_as_many_examples_as_are_needed_settle_it():
    # half of the interval is 1.96 x 0.01; it must shrink to 0.01, with (1.96)^2 times the examples
    found = Estimate(-0.02, -0.04, 0.0, 500, 3, "examples and seeds", 0.01, 0.0)
    assert examples_needed(found, 0.03) == 2000
    assert verdict_words("open", 0.03, 2000) == "not settled: needs about 2,000 examples"
    seeds = Estimate(-0.02, -0.07, 0.03, 500, 3, "examples and seeds", 0.01, 0.01)
    assert math.isinf(examples_needed(seeds, 0.03))
    assert verdict_words("open", 0.03, math.inf) == "not settled: needs more seeds"
    near = Estimate(-0.0299, -0.05, -0.01, 500, 3, "examples and seeds", 0.01, 0.0)
    assert math.isnan(examples_needed(near, 0.03))
    assert math.isnan(examples_needed(Estimate(-0.02, -0.04, 0.0, 0, 3, "seeds"), 0.03))
    assert [verdict_words(one, 0.03) for one in ("within", "beyond", "")] == [
        "costs at most 3 %",
        "costs more than 3 %",
        "",
    ]


def test_it_is_the_same_whatever_the_number_of_threads(evidence):
    table, kept = study(RIGHTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert np.array_equal(Evidence(table, kept.get).summary["low"], evidence.summary["low"])
    finally:
        torch.set_num_threads(threads)
