"""Heads whose constants are close share one matrix."""

import math

import pytest
import torch

from papa_lightning import AttentionConstants
from papa_lightning.calibration import cluster_heads, folded_kinds, head_distances, merge_constants
from papa_lightning.errors import PapaError


def make_constants(layers=2, heads=5, length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(layers, heads, length, length, generator=generator).softmax(-1)
    counts = torch.randint(1, 9, (length, length), generator=generator).float()
    return AttentionConstants(values, counts, {"data": "some"}, variance=torch.ones(layers, heads))


def test_distances_are_weighted_with_the_counts_and_relative():
    constants = make_constants()
    own, counts = constants.values[0].double(), constants.pair_counts.double()
    distances = head_distances(constants.values[0], constants.pair_counts)
    for one in range(5):
        for other in range(5):
            apart = (counts * (own[one] - own[other]) ** 2).sum().sqrt()
            sizes = [(counts * own[head] ** 2).sum().sqrt() for head in (one, other)]
            assert distances[one, other] == pytest.approx(float(apart / math.sqrt(sizes[0] * sizes[1])), abs=1e-12)
    assert torch.allclose(head_distances(own * 7, counts), distances)


def test_pairs_that_never_met_do_not_count():
    own = torch.rand(2, 3, 3)
    counts = torch.ones(3, 3)
    counts[0, 2] = 0
    other = own.clone()
    other[:, 0, 2] = torch.tensor([5.0, 9.0])
    assert torch.allclose(head_distances(own, counts), head_distances(other, counts))


def test_the_largest_clusters_within_the_tolerance():
    """No two heads of a cluster are further apart than the tolerance, and no two clusters could be joined."""
    constants = make_constants(heads=8)
    own, counts = constants.values[0], constants.pair_counts
    distances = head_distances(own, counts)
    for tolerance in distances.flatten().unique().tolist():
        clusters = cluster_heads(own, counts, tolerance)
        assert sorted(head for cluster in clusters for head in cluster) == list(range(8))
        assert all(distances[one, other] <= tolerance for cluster in clusters for one in cluster for other in cluster)
        joined = [one + other for place, one in enumerate(clusters) for other in clusters[place + 1 :]]
        assert all(distances[list(both)][:, list(both)].max() > tolerance for both in joined)
    assert cluster_heads(own, counts, 0.0) == [(head,) for head in range(8)]
    assert cluster_heads(own, counts, math.inf) == [tuple(range(8))]


def test_equal_heads_are_joined_at_no_cost():
    values = make_constants().values.clone()
    values[:, 3] = values[:, 1]
    merged = merge_constants(AttentionConstants(values, torch.ones(6, 6)), tolerance=0.0)
    assert merged.metadata["merged"]["clusters"] == [[[0], [1, 3], [2], [4]]] * 2
    assert merged.metadata["merged"]["error"] == [0.0, 0.0]
    assert torch.equal(merged.values, values)


def test_one_matrix_is_the_mean_and_the_error_is_stated():
    constants = make_constants()
    merged = merge_constants(constants)
    assert torch.allclose(merged.values, constants.values.mean(dim=1, keepdim=True).expand_as(constants.values))
    counts = constants.pair_counts
    for layer, error in enumerate(merged.metadata["merged"]["error"]):
        lost = (counts * (merged.values[layer] - constants.values[layer]) ** 2).sum()
        assert error == pytest.approx(float((lost / (counts * constants.values[layer] ** 2).sum()).sqrt()), rel=1e-5)
        assert error > 0.01
    assert merged.metadata["data"] == "some"
    assert torch.equal(merged.variance, constants.variance)
    assert torch.equal(merged.pair_counts, counts)
    assert folded_kinds(merged) == ["folded", "folded"]


def test_no_other_matrix_has_a_smaller_error():
    constants, merged = make_constants(layers=1), merge_constants(make_constants(layers=1))
    counts, own = constants.pair_counts, constants.values[0]

    def error(shared):
        return (counts * (own - shared) ** 2).sum()

    best = error(merged.values[0])
    for seed in range(5):
        noise = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed)) * 0.01
        assert error(merged.values[0] + noise) > best


def test_chosen_layers_only():
    constants = make_constants(layers=3)
    merged = merge_constants(constants, layers=[1])
    assert folded_kinds(merged) == ["constant", "folded", "constant"]
    assert torch.equal(merged.values[::2], constants.values[::2])
    assert merged.metadata["merged"]["error"][::2] == [0.0, 0.0]


def test_survives_a_file(tmp_path):
    merged = merge_constants(make_constants(), tolerance=0.3)
    loaded = AttentionConstants.load(merged.save(tmp_path / "merged.safetensors"))
    assert loaded.metadata == merged.metadata
    assert torch.equal(loaded.values, merged.values)


def test_heads_that_attend_to_nothing_are_kept_apart():
    values = make_constants().values.clone()
    values[0, [1, 4]] = 0.0
    merged = merge_constants(AttentionConstants(values, torch.ones(6, 6)), tolerance=10.0)
    assert merged.metadata["merged"]["clusters"][0] == [[0, 2, 3], [1, 4]]


@pytest.mark.parametrize("tolerance", [-0.1, math.nan])
def test_bad_tolerance(tolerance):
    with pytest.raises(PapaError, match=r"tolerance is .*must be at least 0"):
        merge_constants(make_constants(), tolerance=tolerance)


def test_bad_layer():
    with pytest.raises(PapaError, match=r"layers has 2, but the constants have layers 0 to 1"):
        merge_constants(make_constants(), layers=[0, 2])
