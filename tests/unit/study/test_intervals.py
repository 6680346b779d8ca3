"""Intervals against direct resampling, and how often they hold the truth."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from papa_lightning.study.intervals import Sample, estimate, relative_estimate, resampled_sums

SIMULATION = Path(__file__).parents[3] / "tools" / "simulate_intervals.py"


def sample_of(values):
    """Values (S, N) of 0 and 1: the mean of each seed, and its resamples."""
    values = np.asarray(values, dtype=np.float64)
    number = values.shape[1]
    return Sample(values.mean(axis=1), resampled_sums(values.T) / number, number)


def draws(seeds, number, seed=0):
    return (np.random.default_rng(seed).random((seeds, number)) < 0.7).astype(float)


def test_sums_are_those_of_scipys_resamples():
    counts = np.random.default_rng(0).integers(0, 9, (40, 3)).astype(float)
    expected = stats.bootstrap(
        (counts[:, 1],), np.sum, n_resamples=50, batch=100_000, method="percentile", rng=np.random.default_rng(3)
    )
    assert np.array_equal(resampled_sums(counts, 50, seed=3)[:, 1], expected.bootstrap_distribution)


def test_sums_do_not_depend_on_what_is_resampled_beside_them():
    counts = np.random.default_rng(0).integers(0, 2**30, (300, 5)).astype(float)
    assert np.array_equal(resampled_sums(counts, 60)[:, :1], resampled_sums(counts[:, :1], 60))


def test_a_single_seed_has_the_percentile_interval_of_its_examples():
    values = draws(1, 200)
    found = estimate(sample_of(values))
    options = {"n_resamples": 4000, "method": "percentile", "rng": np.random.default_rng(1)}
    expected = stats.bootstrap((values[0],), np.mean, **options)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), abs=0.01)
    assert (found.basis, found.examples, found.seeds, found.seeds_error) == ("examples", 200, 1, 0)
    assert found.examples_error == pytest.approx(math.sqrt(found.value * (1 - found.value) / 200), rel=0.05)


def test_two_seeds_do_not_widen_an_interval_and_three_do():
    alike, apart = draws(1, 400)[0], np.ones(400)
    two = estimate(sample_of([alike, apart]))
    assert (two.basis, two.seeds_error) == ("examples", 0)
    three = estimate(sample_of([alike, apart, apart]))
    assert three.basis == "examples and seeds"
    assert three.high - three.low > 2 * (two.high - two.low)


def test_seeds_that_differ_by_their_examples_alone_add_next_to_nothing():
    found = estimate(sample_of(draws(3, 2000)))
    assert found.seeds_error < found.examples_error
    values = np.tile(draws(1, 500), (3, 1))
    assert estimate(sample_of(values)).seeds_error == 0


def test_a_difference_is_paired_over_the_examples():
    hard = draws(1, 300)[0]
    before, after = sample_of([hard] * 3), sample_of([np.where(np.arange(300) < 6, 0, hard)] * 3)
    change = estimate(after.minus(before))
    assert change.low <= change.value < 0
    assert change.high - change.low < 0.3 * (estimate(before).high - estimate(before).low)
    relative = relative_estimate(after.minus(before), before)
    assert relative.value == pytest.approx(change.value / before.seeds.mean())
    assert relative.low < relative.value < relative.high <= 0


def test_intervals_end_where_scores_do():
    found = estimate(sample_of([[1.0] * 99 + [0.0]] + [[1.0] * 100] * 2), (0, 1))
    assert found.high == 1
    assert 0 < found.low < found.value
    seeds = estimate(Sample(np.array([0.5, 0.99, 1.0])), (0, 1))
    assert (seeds.basis, seeds.high) == ("seeds", 1)


def test_what_is_no_number_has_no_interval():
    found = estimate(Sample(np.array([0.5, math.nan, 0.4])))
    assert math.isnan(found.value)
    assert found.basis == "none"
    nothing = relative_estimate(Sample(np.array([0.1])), Sample(np.array([0.0])))
    assert math.isnan(nothing.value)


def test_random_orders_widen_a_difference_to_them():
    seeds, orders = sample_of(draws(3, 500)), sample_of([draws(1, 500, 1)[0], np.ones(500), np.zeros(500)])
    assert estimate(seeds, also=[orders]).seeds_error > estimate(seeds).seeds_error


def test_intervals_hold_the_truth_as_often_as_they_say():
    """The quick part of what tools/simulate_intervals.py does; the table is in docs/method.md."""
    simulation = runpy.run_path(str(SIMULATION))
    held = simulation["coverage"](simulation["WORLDS"]["one label in five"], examples=200, runs=200, resamples=300)
    for metric, found in held.items():
        assert 0.92 <= found["this"] <= 0.98, (metric, found)  # of 200 runs, so give or take 0.015
