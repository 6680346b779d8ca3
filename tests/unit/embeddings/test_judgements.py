"""Scores of embeddings: agreement with scipy and with values computed by hand, ties, resamples and chance."""

import math
import warnings
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy import stats

from papa_lightning.embeddings import EMBEDDING_METRICS, RelevantPassages, SimilarPairs
from papa_lightning.embeddings.ranks import random_order, search
from papa_lightning.errors import DataError, PapaError


def pairs(n: int = 40, seed: int = 0) -> tuple[SimilarPairs, torch.Tensor]:
    """Random pairs with ties in the similarities of people and in those of the embeddings."""
    draws = torch.Generator().manual_seed(seed)
    vectors = torch.randint(-2, 3, (12, 3), generator=draws).float() + 0.1
    first, second = (torch.randint(0, 12, (n,), generator=draws) for _ in range(2))
    return SimilarPairs(first, second, torch.randint(0, 6, (n,), generator=draws)), vectors


def circle(*degrees: float) -> torch.Tensor:
    """Unit vectors by their angle, the first of which is the query."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1).float()


def passages(degrees: list[float], relevance: list[list[int]]) -> dict[str, float]:
    """Scores of queries at 0 degrees for passages at some angles."""
    judged = RelevantPassages(torch.zeros(3).long(), torch.arange(1, 1 + len(degrees)), torch.tensor(relevance))
    return judged.answers(circle(0.0, *degrees)).scores()


@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_those_of_scipy_with_ties(seed) -> None:
    judged, vectors = pairs(seed=seed)
    answers = judged.answers(vectors * 7)
    similarity, gold = answers.columns["similarity"].numpy(), judged.gold.numpy()
    assert len(set(similarity)) < len(similarity)
    wanted = {"spearman": stats.spearmanr(similarity, gold)[0], "pearson": stats.pearsonr(similarity, gold)[0]}
    assert answers.scores() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("metric", ["spearman", "pearson"])
def test_resampled_correlations_are_those_of_the_drawn_pairs(metric) -> None:
    judged, vectors = pairs()
    answers = judged.answers(vectors)
    similarity, gold = answers.columns["similarity"].numpy(), judged.gold.numpy()
    times = np.random.default_rng(0).multinomial(40, np.full(40, 1 / 40), size=20)
    function = stats.spearmanr if metric == "spearman" else stats.pearsonr
    wanted = [function(similarity.repeat(one), gold.repeat(one))[0] for one in times]
    np.testing.assert_allclose(answers.resampled(metric, times), wanted, atol=1e-12)
    whole = answers.resampled(metric, np.ones((1, 40), int))
    np.testing.assert_allclose(whole, answers.scores()[metric], atol=1e-6)


def test_similarities_that_rounding_alone_tells_apart_are_equal() -> None:
    judged, vectors = pairs()
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1)) * 1e-7
    assert judged.answers(vectors + noise).scores()["spearman"] == judged.answers(vectors).scores()["spearman"]


def test_embeddings_that_are_all_the_same_correlate_with_nothing() -> None:
    judged, vectors = pairs()
    answers = judged.answers(torch.ones_like(vectors))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers.scores() == {"spearman": 0.0, "pearson": 0.0}
        assert answers.resampled("pearson", np.ones((1, 40), int)).tolist() == [0.0]
        assert answers.resampled("spearman", np.ones((1, 40), int)).tolist() == [0.0]
    assert answers.chance("spearman") == 0


def test_graded_relevance_by_hand() -> None:
    # In the order of their angles: grades 0, 1, 0, 3; the third relevant passage, grade 2, is the last.
    found = passages([10, 20, 30, 40, 170], [[0, 1, 1], [0, 3, 3], [0, 4, 2], [0, 0, 0]])
    gain = 1 / math.log2(3) + 3 / math.log2(5) + 2 / math.log2(6)
    ideal = 3 + 2 / math.log2(3) + 1 / math.log2(4)
    assert found == pytest.approx({"ndcg@10": gain / ideal, "mrr@10": 1 / 2, "recall@100": 1.0}, abs=1e-6)


def test_the_ideal_counts_relevant_passages_that_were_not_found() -> None:
    # 120 passages; relevant are the first and the last three, which stand beyond 100.
    found = passages([one / 2 for one in range(120)], [[0, 0, 1], [0, 117, 1], [0, 118, 1], [0, 119, 1]])
    ideal = sum(1 / math.log2(rank + 1) for rank in range(1, 5))
    assert found == pytest.approx({"ndcg@10": 1 / ideal, "mrr@10": 1.0, "recall@100": 1 / 4}, abs=1e-6)


def test_passages_behind_the_tenth_and_below_0_count_by_their_rank() -> None:
    # Angles beyond 90 degrees have negative cosines.
    found = passages([100 + one for one in range(12)], [[0, 0, 1], [1, 11, 1]])
    assert found == pytest.approx({"ndcg@10": 0.5, "mrr@10": 0.5, "recall@100": 1.0}, abs=1e-6)


def test_queries_without_relevant_passages_are_left_out() -> None:
    judged = RelevantPassages(torch.zeros(3).long(), torch.arange(1, 4), torch.tensor([[0, 0, 0], [2, 1, 1]]))
    assert len(judged) == 1
    assert judged.judged.tolist() == [2]
    assert judged.answers(circle(0, 5, 10, 15)).scores()["mrr@10"] == 0.5


def test_equal_passages_are_in_the_order_of_their_numbers() -> None:
    found = search(torch.eye(3, dtype=torch.float64)[:1], torch.ones(400, 3, dtype=torch.float64), 100, 2.0**20)
    assert found.tolist() == [list(range(100))]


def test_search_in_blocks_finds_what_one_block_finds(monkeypatch) -> None:
    draws = torch.Generator().manual_seed(0)
    queries, others = (torch.randn(n, 4, generator=draws, dtype=torch.float64) for n in (7, 50))
    whole = search(queries, others, 10, 2.0**20)
    monkeypatch.setattr("papa_lightning.embeddings.ranks._QUERIES", 3)
    monkeypatch.setattr("papa_lightning.embeddings.ranks._PASSAGES", 8)
    assert torch.equal(search(queries, others, 10, 2.0**20), whole)
    assert torch.equal(whole, (queries @ others.T).topk(10, dim=1).indices)


def test_chance_is_the_mean_over_all_orders() -> None:
    grades, orders = [3, 1, 0, 0, 0], list(permutations(range(5)))
    means = dict.fromkeys(RelevantPassages.metrics, 0.0)
    for order in orders:
        angles = [0.0] * 5
        for place, passage in enumerate(order):
            angles[passage] = 10.0 * (1 + place)
        for metric, score in passages(angles, [[0, one, grade] for one, grade in enumerate(grades)]).items():
            means[metric] += score / len(orders)
    assert random_order(torch.tensor([3.0, 1.0]), 5) == pytest.approx(tuple(means.values()), abs=1e-5)
    judged = RelevantPassages(torch.zeros(1).long(), torch.arange(1, 6), torch.tensor([[0, 0, 3], [0, 1, 1]]))
    answers = judged.answers(circle(0, 10, 20, 30, 40, 50))
    assert answers.chance("mrr@10") == pytest.approx(means["mrr@10"], abs=1e-5)


def test_resampled_queries() -> None:
    judged = RelevantPassages(torch.zeros(2).long(), torch.arange(1, 4), torch.tensor([[0, 0, 1], [1, 2, 1]]))
    answers = judged.answers(circle(0, 5, 10, 15))
    times = np.array([[1, 1], [2, 0], [0, 2]])
    np.testing.assert_allclose(answers.resampled("mrr@10", times), [2 / 3, 1, 1 / 3])
    assert answers.kind == "queries"
    assert len(answers) == 2


def test_every_metric_has_bounds() -> None:
    assert [*SimilarPairs.metrics, *RelevantPassages.metrics] == list(EMBEDDING_METRICS)


def test_what_cannot_be_judged_is_refused() -> None:
    one = torch.tensor([0, 1])
    with pytest.raises(DataError, match="here: all 2 similarities are 3"):
        SimilarPairs(one, one, torch.tensor([3.0, 3.0]), "here")
    with pytest.raises(DataError, match="here: there are 1 pairs"):
        SimilarPairs(one[:1], one[:1], torch.tensor([3.0]), "here")
    with pytest.raises(DataError, match="here: a similarity is not finite"):
        SimilarPairs(one, one, torch.tensor([3.0, math.inf]), "here")
    with pytest.raises(DataError, match="here: no query has a relevant passage"):
        RelevantPassages(one, one, torch.tensor([[0, 1, 0]]), "here")
    judged, vectors = pairs()
    with pytest.raises(PapaError, match=r"metric is 'ndcg@10': choose from spearman, pearson"):
        judged.answers(vectors).resampled("ndcg@10", np.ones((1, 40)))
    with pytest.raises(PapaError, match=r"times has shape \(1, 3\), but there are 40 pairs"):
        judged.answers(vectors).resampled("pearson", np.ones((1, 3)))
