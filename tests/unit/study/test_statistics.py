"""Means, intervals and rank correlations against numbers worked out by hand, and against brute force."""

import itertools
import math
import random
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from papa_lightning.errors import PapaError
from papa_lightning.study.correlation import RankCorrelation, rank_correlation
from papa_lightning.study.intervals import mean_interval
from papa_lightning.study.results import CellResult, load_table, results_table, save_table
from papa_lightning.study.statistics import summarize
from papa_lightning.study.summary import format_summary

#: Student's t at 0.975 for 1, 2, 3 and 4 degrees of freedom, from a printed table.
T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


def cell(share, score, seed=0, criterion="variance", constants="average", encoder="bert", task="sst2", **metrics):
    names = {"encoder": encoder, "task": task, "criterion": criterion, "constants": constants, "hash": "1f"}
    facts = {"constant_heads": round(share * 8), "total_heads": 8, "metric": "f1", "seconds": 1.0, "versions": {}}
    return CellResult(**names, **facts, share=share, seed=seed, scores={"f1": score, **metrics})


def summary_of(cells):
    return summarize(results_table(cells))


def row_of(summary, **values):
    chosen = summary
    for name, value in values.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_interval_by_hand():
    # mean 0.82, deviations -0.02, 0, 0.02: s = 0.02, s / sqrt(3) = 0.011547
    mean, low, high = mean_interval([0.80, 0.82, 0.84])
    assert mean == pytest.approx(0.82)
    assert high - mean == pytest.approx(T[2] * 0.011547, abs=1e-5)
    assert mean - low == pytest.approx(high - mean)


@pytest.mark.parametrize("number", [3, 5, 20])
def test_interval_against_scipy(number):
    values = np.random.default_rng(number).normal(0.8, 0.1, number)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((values.mean(), expected.low, expected.high), abs=1e-12)


def test_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [mean_interval(generator.normal(1.0, 2.0, 4)) for _ in range(2000)]
    covered = np.mean([low <= 1.0 <= high for _, low, high in intervals])
    assert 0.935 < covered < 0.965


def test_interval_of_little():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean, low, high = mean_interval([0.5])
        assert (mean, math.isnan(low), math.isnan(high)) == (0.5, True, True)
        assert np.isnan(mean_interval([0.5, 0.6])[1:]).all()  # Student's t would say 0.55 +- 0.64
        assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)
        assert np.isnan(mean_interval([])).all()
        assert np.isnan(mean_interval([0.5, math.nan])).all()


def test_summary_by_hand():
    # differences -0.1, -0.2, -0.3; relative changes -0.125, -0.25, -0.3 (of 0.8, 0.8, 1.0)
    before, after = (0.8, 0.8, 1.0), (0.7, 0.6, 0.7)
    cells = [cell(0, score, seed) for seed, score in enumerate(before)]
    cells += [cell(0.5, score, seed) for seed, score in enumerate(after)]
    row = row_of(summary_of(cells), share=0.5)
    assert (row["n"], row["rankings"], row["is_score"], row["constant_heads"], row["total_heads"]) == (3, 1, True, 4, 8)
    assert row["mean"] == pytest.approx(2 / 3)
    assert row["high"] - row["low"] == pytest.approx(2 * T[2] * 0.057735 / math.sqrt(3), abs=1e-4)
    assert row["difference"] == pytest.approx(-0.2)
    assert row["difference_high"] - row["difference"] == pytest.approx(T[2] * 0.1 / math.sqrt(3), abs=1e-4)
    # the ratio of the means, -0.2 / 0.8667, and deviations of the seeds d / b - r b_s / b
    mean = 2.6 / 3
    deviations = [d / mean + 0.2 / mean * b / mean for d, b in zip((-0.1, -0.2, -0.3), before, strict=True)]
    assert row["relative"] == pytest.approx(-0.6 / 2.6)
    half = T[2] * np.std(deviations, ddof=1) / math.sqrt(3)
    assert row["relative"] - row["relative_low"] == pytest.approx(half, abs=1e-4)
    assert math.isnan(row["ranking_deviation"])
    first = row_of(summary_of(cells), share=0.0)
    assert first["mean"] == pytest.approx(2.6 / 3)
    changes = [f"{name}{end}" for name in ("difference", "relative") for end in ("", "_low", "_high")]
    assert first[changes].tolist() == [0.0] * 6


def test_pairing_cancels_what_a_seed_does_to_both_shares():
    luck = (0.0, 0.1, -0.2, 0.05)
    cells = [cell(0, 0.7 + one, seed) for seed, one in enumerate(luck)]
    cells += [cell(1, 0.6 + one, seed) for seed, one in enumerate(luck)]
    row = row_of(summary_of(cells), share=1.0)
    assert row["high"] - row["low"] > 0.3
    assert row["difference"] == pytest.approx(-0.1)
    assert row["difference_high"] - row["difference_low"] == pytest.approx(0, abs=1e-12)


def test_seeds_are_paired_by_name_and_not_by_order():
    cells = [cell(0, 0.9, 5), cell(0, 0.5, 3), cell(1, 0.4, 3), cell(1, 0.9, 5)]
    row = row_of(summary_of(cells), share=1.0)
    assert row["difference"] == pytest.approx(-0.05)
    assert row["relative"] == pytest.approx(-0.05 / 0.7)


def test_groups_and_their_order():
    cells = []
    for encoder, task, criterion, constants in itertools.product(
        ("b", "a"), ("t2", "t1"), ("taylor", "gate"), ("zero", "average")
    ):
        for share, seed in itertools.product((0.0, 1.0, 0.5), (0, 1)):
            cells.append(cell(share, random.Random(len(cells)).random(), seed, criterion, constants, encoder, task))
    summary = summary_of(cells)
    assert len(summary) == len(cells) / 2
    assert list(dict.fromkeys(summary["encoder"])) == ["b", "a"]
    assert list(summary["criterion"][:6]) == ["taylor"] * 6
    assert list(summary["constants"][:6]) == ["zero"] * 3 + ["average"] * 3
    assert list(summary["share"][:3]) == [0.0, 1.0, 0.5]
    for _, row in summary.iterrows():
        own = [
            one.scores["f1"]
            for one in cells
            if (one.encoder, one.task, one.criterion, one.constants, one.share)
            == (row["encoder"], row["task"], row["criterion"], row["constants"], row["share"])
        ]
        assert row["mean"] == pytest.approx(np.mean(own))
        assert row["n"] == len(own) == 2


def test_every_metric_has_its_own_row():
    summary = summary_of([cell(0, 0.8, loss=0.5), cell(1, 0.4, loss=1.5)])
    assert list(summary["metric"]) == ["f1", "loss"] * 2
    assert list(summary["is_score"]) == [True, False] * 2
    assert row_of(summary, metric="loss", share=1.0)["relative"] == pytest.approx(2.0)
    assert summary["n"].tolist() == [1] * 4
    assert summary[["low", "difference_low", "relative_high", "ranking_deviation"]].isna().all(axis=None)


def test_random_rankings_are_one_row_with_one_value_a_probe_seed():
    scores = {(0, 0): 0.70, (1, 0): 0.60, (0, 1): 0.74, (1, 1): 0.66}  # (ranking, seed)
    cells = [cell(0, score, seed, "random:0") for seed, score in enumerate((0.8, 1.0))]
    cells += [cell(0.5, score, seed, f"random:{ranking}") for (ranking, seed), score in scores.items()]
    row = row_of(summary_of(cells), share=0.5)
    assert (row["criterion"], row["n"], row["rankings"]) == ("random", 2, 2)
    # seeds: 0.65 and 0.70; differences -0.15 and -0.30; two seeds have no interval
    assert row["mean"] == pytest.approx(0.675)
    assert row["difference"] == pytest.approx(-0.225)
    assert row["relative"] == pytest.approx(-0.225 / 0.9)
    assert row[["low", "difference_low", "relative_high"]].isna().all()
    # rankings: 0.72 and 0.63
    assert row["ranking_deviation"] == pytest.approx(0.09 / math.sqrt(2))


def test_more_rankings_do_not_count_as_more_seeds():
    cells = [cell(0, 0.8, seed, "random:0") for seed in (0, 1, 2)]
    many = [cell(1 / 2, 0.5 + seed / 10, seed, f"random:{ranking}") for seed in (0, 1, 2) for ranking in range(10)]
    few = [one for one in many if one.criterion == "random:0"]
    rows = [row_of(summary_of(cells + half), share=0.5) for half in (many, few)]
    for name in ("n", "mean", "low", "high"):
        assert rows[0][name] == pytest.approx(rows[1][name])
    assert [row["rankings"] for row in rows] == [10, 1]


def test_what_is_missing_is_not_left_out_unseen():
    cells = [cell(0, 0.8, 0), cell(0, math.nan, 1), cell(1, 0.4, 0), cell(1, 0.5, 1), cell(0.5, 0.3, 0)]
    cells += [cell(0.5, 0.4, 2)]
    summary = summary_of(cells)
    assert np.isnan(row_of(summary, share=0.0)[["mean", "low"]].astype(float)).all()
    for share, mean in ((1.0, 0.45), (0.5, 0.35)):
        row = row_of(summary, share=share)
        assert row["mean"] == pytest.approx(mean)
        assert np.isnan(row[["difference", "relative", "relative_low"]].astype(float)).all()


def test_a_baseline_of_zero_has_a_difference_but_no_relative_change():
    row = row_of(summary_of([cell(0, -0.1, 0), cell(0, 0.1, 1), cell(1, 0.3, 0), cell(1, 0.2, 1)]), share=1.0)
    assert row["difference"] == pytest.approx(0.25)
    assert math.isnan(row["relative"])


def test_summary_of_nothing():
    summary = summarize(results_table([]))
    assert len(summary) == 0
    assert {"mean", "low", "high", "difference", "relative", "relative_low", "n"} < set(summary.columns)
    assert str(format_summary(summary)) == "no scores"


def brute_rho(baseline, drop):
    """Pearson's correlation of ranks, centred within each task, from scratch."""
    ranked = [
        [[sum(b < a for b in row) + (sum(b == a for b in row) - 1) / 2 for a in row] for row in values]
        for values in (baseline, drop)
    ]
    x, y = ([[rank - sum(row) / len(row) for rank in row] for row in values] for values in ranked)
    total = sum(a * b for one, other in zip(x, y, strict=True) for a, b in zip(one, other, strict=True))
    squares = [sum(a * a for row in values for a in row) for values in (x, y)]
    return total / math.sqrt(squares[0] * squares[1])


@pytest.mark.parametrize("seed", range(5))
def test_rho_of_one_task_is_spearmans(seed):
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 6, (2, 9))  # with ties
    found = rank_correlation(x, y, resamples=10)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.rho == pytest.approx(brute_rho([x], [y]))
    assert (found.encoders, found.tasks) == (9, 1)


def test_rho_over_tasks_ranks_within_each():
    # Every task falls by rank; between tasks the easy one loses least.
    baseline = [[0.90, 0.92, 0.94], [0.50, 0.60, 0.70]]
    drop = [[0.01, 0.02, 0.03], [0.3, 0.4, 0.5]]
    assert rank_correlation(baseline, drop).rho == 1.0
    assert stats.spearmanr(np.ravel(baseline), np.ravel(drop)).statistic < 0
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 9, (2, 4, 6))
    assert rank_correlation(x, y, resamples=10).rho == pytest.approx(brute_rho(x.tolist(), y.tolist()))


def test_bootstrap_against_brute_force():
    """With three encoders all resamples can be listed."""
    x = np.array([[0.1, 0.2, 0.3], [0.5, 0.3, 0.4]])
    y = np.array([[0.3, 0.1, 0.2], [0.1, 0.2, 0.4]])
    rhos = []
    for drawn in itertools.product(range(3), repeat=3):
        if len(set(drawn)) > 1:
            rhos.append(brute_rho(x[:, drawn].tolist(), y[:, drawn].tolist()))
    found = rank_correlation(x, y, resamples=20_000)
    assert found.low == pytest.approx(np.percentile(rhos, 2.5), abs=0.02)
    assert found.high == pytest.approx(np.percentile(rhos, 97.5), abs=0.02)
    assert found.low < found.rho < found.high


def test_bootstrap_against_scipy():
    generator = np.random.default_rng(3)
    x = generator.normal(size=30)
    y = x + generator.normal(size=30)
    found = rank_correlation(x, y, resamples=4000)
    other = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((other.low, other.high), abs=0.04)


def test_bootstrap_is_seeded():
    x, y = np.random.default_rng(0).normal(size=(2, 8))
    first = rank_correlation(x, y, resamples=200)
    assert rank_correlation(x, y, resamples=200) == first
    other = rank_correlation(x, y, resamples=200, seed=1)
    assert other.rho == first.rho
    assert (other.low, other.high) != (first.low, first.high)


def test_encoders_without_a_task_are_left_out_there():
    nan = math.nan
    found = rank_correlation([[1, 2, 3, nan], [4, 1, 2, 3]], [[1, 3, 2, 9], [1, 2, nan, 3]], resamples=50)
    x, y = [[1, 2, 3], [4, 1, 3]], [[1, 3, 2], [1, 2, 3]]
    assert found.rho == pytest.approx(brute_rho(x, y))
    assert (found.encoders, found.tasks) == (4, 2)
    assert rank_correlation([[1, 2, 3], [nan] * 3], [[1, 2, 3], [1, 2, 3]]).tasks == 1


@pytest.mark.parametrize(
    ("baseline", "drop"),
    [([], []), ([1], [1]), ([1, 2], [2, 1]), ([1, 1, 1], [1, 2, 3]), ([1, 2, math.nan], [1, 2, 3])],
)
def test_rho_that_is_not_defined(baseline, drop):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rank_correlation(baseline, drop, resamples=20)
    assert math.isnan(found.rho)
    assert "not defined" in str(found)


@pytest.mark.parametrize(
    ("baseline", "drop", "options", "message"),
    [
        ([1, 2, 3], [1, 2], {}, r"^baseline has shape \(3,\) and drop \(2,\)"),
        ([[[1]]], [[[1]]], {}, r"^baseline has shape \(1, 1, 1\)"),
        ([1, 2, 3], [1, 2, 3], {"resamples": 0}, r"^resamples is 0"),
    ],
)
def test_bad_arguments_of_the_correlation(baseline, drop, options, message):
    with pytest.raises(PapaError, match=message):
        rank_correlation(baseline, drop, **options)


def test_correlation_as_text():
    assert str(RankCorrelation(0.5, -0.25, 0.75, 4, 1)) == "rho 0.50 (95 % interval -0.25 to 0.75; 4 encoders, 1 task)"
    assert str(RankCorrelation(0.5, math.nan, math.nan, 3, 2)) == "rho 0.50 (no interval; 3 encoders, 2 tasks)"


def text_of(*cells):
    return str(format_summary(summary_of(cells))).splitlines()


def test_text_by_hand():
    lines = text_of(
        cell(0, 0.80, 0, loss=1.0),
        cell(0, 0.82, 1),
        cell(0, 0.84, 2),
        cell(0.5, 0.81, 0),
        cell(0.5, 0.81, 1),
        cell(0.5, 0.84, 2),
        cell(0.5, 0.80, 0, "random:0"),
        cell(0.5, 0.79, 0, "random:1"),
        cell(1, 0.40, 0, "gate"),
        cell(1, 0.40, 0, "variance"),
    )
    assert lines == [
        "bert on sst2: f1; 1 to 3 probe seeds; constants: average; 95 % intervals over seeds",
        "",
        "share  heads   by                 score                 change              at most 3 % lost?",
        "0 %    -                          0.820 [0.770, 0.870]",
        "50 %   4 of 8  variance           0.820 [0.777, 0.863]  0.0 % [-3.0, +3.0]  not settled",
        "50 %   4 of 8  random (2 orders)  0.795                 -0.6 %",
        "100 %  8 of 8                     0.400                 -50.0 %",
    ]


def test_text_fits_into_100_columns():
    criteria = ["variance", "divergence", "output", "taylor", "gate", "layer:bottom_up", "layer:top_down", "random:1"]
    cells = [
        cell(share, 0.9 - share / 2 + seed / 50, seed, criterion, constants, "a-rather-long-name-of-an-encoder" * 4)
        for criterion in criteria
        for constants in ("average", "zero")
        for share in (0, 1 / 3, 0.9375, 1)
        for seed in (0, 1, 2)
    ]
    text = str(format_summary(summary_of(cells)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert not any(line != line.rstrip() for line in lines)
    titles, heads = (
        [line.split() for line in lines if line.startswith(start)] for start in ("a-rather-long", "share ")
    )
    assert len(titles) == len(heads) == 2
    assert sum(line[0].isdigit() for line in lines if line) == 2 * (1 + 2 * len(criteria) + 1)


def test_text_copes_with_what_is_not_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = text_of(cell(0, 0.0), cell(0.5, 0.25), cell(1, math.nan), cell(0.25, -0.5))
    ends = [" ".join(line.split()[-2:]) for line in lines[3:]]
    assert ends == ["- 0.000", "-0.500 -0.500", "0.250 +0.250", "a number"]
    assert "1 probe seed;" in lines[0]


def test_text_of_a_table_read_back(tmp_path):
    table = results_table([cell(0, 0.8), cell(1, 0.4, criterion="random:1"), cell(0, 0.8, criterion="random:0")])
    save_table(table, tmp_path)
    read = summarize(load_table(tmp_path))
    pd.testing.assert_frame_equal(read, summarize(table))
    assert format_summary(read) == format_summary(summarize(table))
