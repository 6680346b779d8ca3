"""Judgements of embeddings: scores of vectors by what is known of their texts, which need no training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.retrieval import (
    retrieval_normalized_dcg,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from papa_lightning.embeddings.ranks import correlations, mid_ranks, random_order, search
from papa_lightning.errors import DataError, PapaError

Unit = Literal["pairs", "queries"]
"""What a score is over, and what a bootstrap draws again."""

#: Lowest and highest value of each metric of embeddings.
EMBEDDING_METRICS: Mapping[str, tuple[float, float]] = {
    "spearman": (-1.0, 1.0),
    "pearson": (-1.0, 1.0),
    "ndcg@10": (0.0, 1.0),
    "mrr@10": (0.0, 1.0),
    "recall@100": (0.0, 1.0),
}
#: Similarities are rounded to steps of 1 / this, so that rounding of the encoder decides on no rank.
_STEPS = 2.0**20
#: Passages that are found for a query.
_FOUND = 100
#: Before the name of a metric: its expected value for a random order of the passages.
_CHANCE = "chance of "


@dataclass(frozen=True, eq=False)
class Answers:
    """What is known of every unit of a judgement: all that its scores need, also in resamples of the units.

    Args:
        kind: ``"pairs"`` of texts, or ``"queries"``.
        columns: (n,) by name, float64: ``similarity`` and ``gold`` of pairs; of queries every metric, and after
            "chance of " its expected value for a random order of the passages.
    """

    kind: Unit
    columns: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics; the first one is the score."""
        return SimilarPairs.metrics if self.kind == "pairs" else RelevantPassages.metrics

    def scores(self) -> dict[str, float]:
        """Every metric by name; correlations with similarities that are all the same are 0."""
        if self.kind == "queries":
            return {metric: float(self.columns[metric].mean()) for metric in self.metrics}
        similarity, gold = self.columns["similarity"], self.columns["gold"]
        if bool((similarity == similarity[0]).all()):
            return dict.fromkeys(self.metrics, 0.0)
        return {
            "spearman": float(spearman_corrcoef(similarity, gold)),
            "pearson": float(pearson_corrcoef(similarity, gold)),
        }

    def resampled(self, metric: str, times: NDArray[np.number]) -> NDArray[np.float64]:
        """A metric in resamples of the units.

        Args:
            metric: Name of the metric.
            times: (B, n), how often each unit is in each resample.

        Returns:
            (B,).

        Raises:
            PapaError: For an unknown metric, or other units.
        """
        if metric not in self.metrics:
            raise PapaError(f"metric is {metric!r}: choose from {', '.join(self.metrics)}.")
        if times.ndim != 2 or times.shape[1] != len(self):
            raise PapaError(
                f"times has shape {times.shape}, but there are {len(self)} {self.kind}: pass (B, {len(self)})."
            )
        if self.kind == "queries":
            found: NDArray[np.float64] = times @ self.columns[metric].numpy() / times.sum(axis=1)
            return found
        similarity, gold = (self.columns[name].numpy() for name in ("similarity", "gold"))
        if metric == "spearman":
            similarity, gold = mid_ranks(similarity, times), mid_ranks(gold, times)
        return correlations(similarity, gold, times)

    def chance(self, metric: str) -> float:
        """Expected value of a metric for random embeddings: 0 for correlations, else for a random order of passages."""
        return 0.0 if self.kind == "pairs" else float(self.columns[_CHANCE + metric].mean())


class Judgements(ABC):
    """What is known of texts, by their numbers; the base of `SimilarPairs` and `RelevantPassages`."""

    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics; the first one is the score."""
    kind: ClassVar[Unit]
    """What a score is over."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs or queries."""

    @property
    @abstractmethod
    def num_texts(self) -> int:
        """N, the number of texts."""

    def answers(self, embeddings: Tensor) -> Answers:
        """What embeddings say of every pair or query.

        Args:
            embeddings: (N, d), those of the texts by their numbers; of any length, on any device.

        Raises:
            PapaError: When there are fewer.
        """
        if embeddings.dim() != 2 or len(embeddings) < self.num_texts:
            raise PapaError(
                f"embeddings has shape {tuple(embeddings.shape)}, but there are {self.num_texts} texts: pass one "
                "vector for each, in the order of their numbers."
            )
        # In double precision, so that only the encoder rounds.
        return self.judge(F.normalize(embeddings.detach().cpu().double(), dim=-1))

    @abstractmethod
    def judge(self, unit: Tensor) -> Answers:
        """What embeddings (N, d) of length 1, float64, say of every pair or query."""


class SimilarPairs(Judgements):
    """Pairs of texts with a similarity by people: correlation of cosines with it.

    Args:
        first: (n,), numbers of the first texts.
        second: (n,), numbers of the second texts.
        gold: (n,), their similarities, in any unit.
        source: Source of the pairs, for messages.

    Raises:
        DataError: For fewer than two pairs, or similarities that are not finite or all the same.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]])
        >>> pairs = SimilarPairs(torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3]), torch.tensor([5.0, 1.0, 2.0]))
        >>> round(pairs.answers(vectors).scores()["spearman"], 3)
        0.5
    """

    metrics = ("spearman", "pearson")
    kind = "pairs"

    def __init__(self, first: Tensor, second: Tensor, gold: Tensor, source: str = "gold") -> None:
        self.first, self.second, self.gold = first, second, gold.double()
        if not bool(self.gold.isfinite().all()):
            raise DataError(f"{source}: a similarity is not finite: give every pair a number.")
        if len(gold) < 2:
            raise DataError(f"{source}: there are {len(gold)} pairs, of which nothing correlates: pass at least two.")
        if bool((self.gold == self.gold[0]).all()):
            raise DataError(
                f"{source}: all {len(gold)} similarities are {float(self.gold[0]):g}, with which nothing correlates: "
                "pass pairs that differ in it."
            )

    def __len__(self) -> int:
        return len(self.gold)

    @property
    def num_texts(self) -> int:
        """The number of texts of the pairs."""
        return 1 + int(torch.cat([self.first, self.second]).max())

    def judge(self, unit: Tensor) -> Answers:
        """Cosines and similarities of all pairs; see `Judgements.judge`."""
        cosines = (unit[self.first] * unit[self.second]).sum(dim=-1)
        return Answers("pairs", {"similarity": (cosines * _STEPS).round() / _STEPS, "gold": self.gold})


class RelevantPassages(Judgements):
    """Queries with their relevant passages: how early an exact search by the cosine finds these.

    The metrics are the mean over the queries of: nDCG of the first 10 passages, whose gain is the grade and whose ideal
    are all relevant passages; the reciprocal rank of the first relevant passage, 0 beyond 10; the share of the relevant
    passages among the first 100. Queries without any relevant passage are left out.

    Args:
        queries: (Q,), numbers of the texts of the queries.
        passages: (P,), numbers of the texts of the passages.
        relevance: (M, 3), whole numbers: the place of a query among the queries, that of a passage among the passages,
            and its grade; a grade of 0 or less, or no entry, means not relevant.
        source: Source of the judgements, for messages.
        left_out: (Q,), for each query the place of a passage that is not searched, not a relevant one, or -1. None:
            all are searched.

    Raises:
        DataError: When no query has a relevant passage.

    Example:
        >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [1.0, 0.5]])
        >>> relevance = torch.tensor([[0, 2, 1]])
        >>> found = RelevantPassages(torch.tensor([0]), torch.tensor([1, 2, 3]), relevance).answers(vectors).scores()
        >>> found["mrr@10"], found["recall@100"]
        (0.5, 1.0)
    """

    metrics = ("ndcg@10", "mrr@10", "recall@100")
    kind = "queries"

    def __init__(
        self,
        queries: Tensor,
        passages: Tensor,
        relevance: Tensor,
        source: str = "relevance",
        left_out: Tensor | None = None,
    ) -> None:
        relevance = relevance[relevance[:, 2] > 0]
        if not len(relevance):
            raise DataError(f"{source}: no query has a relevant passage: pass at least one with a grade above 0.")
        self.judged, place = torch.unique(relevance[:, 0], return_inverse=True)
        """(U,), the places of the queries with relevant passages."""
        self.queries, self.passages = queries[self.judged], passages
        self._left_out = torch.full_like(self.judged, -1) if left_out is None else left_out[self.judged]
        order = place.argsort(stable=True)
        counts = torch.bincount(place, minlength=len(self.judged)).tolist()
        self._relevant = torch.split(relevance[order, 1], counts)
        self._grades = torch.split(relevance[order, 2], counts)
        self._expected: dict[str, Tensor] | None = None

    def __len__(self) -> int:
        return len(self.judged)

    @property
    def num_texts(self) -> int:
        """The number of texts of queries and passages."""
        return 1 + int(torch.cat([self.queries, self.passages]).max())

    def judge(self, unit: Tensor) -> Answers:
        """Metrics of all queries; see `Judgements.judge`."""
        searched = search(unit[self.queries], unit[self.passages], _FOUND + 1, _STEPS)
        found = [one[one != some][:_FOUND] for one, some in zip(searched, self._left_out, strict=True)]
        rows = [self._metrics(*one) for one in zip(found, self._relevant, self._grades, strict=True)]
        columns = dict(zip(self.metrics, torch.tensor(rows, dtype=torch.float64).T, strict=True))
        return Answers("queries", columns | self._chances())

    def _metrics(self, found: Tensor, relevant: Tensor, grades: Tensor) -> tuple[float, ...]:
        """The metrics of a query from the passages found, the first first, and those that are relevant."""
        by_passage = dict(zip(relevant.tolist(), grades.tolist(), strict=True))
        # Relevant passages that were not found stand behind all that were: the ideal gain counts them.
        gains = torch.tensor([by_passage.pop(one, 0) for one in found.tolist()] + list(by_passage.values()))
        # The order alone, without ties and above 0, below which torchmetrics takes nothing for found.
        falling = torch.arange(len(gains), 0, -1, dtype=torch.float32)
        first = slice(len(found))
        return (
            float(retrieval_normalized_dcg(falling, gains, top_k=10)),
            float(retrieval_reciprocal_rank(falling[first], gains[first] > 0, top_k=10)),
            float(retrieval_recall(falling, gains > 0, top_k=_FOUND)),
        )

    def _chances(self) -> dict[str, Tensor]:
        if self._expected is None:
            searched = (len(self.passages) - (self._left_out >= 0).long()).tolist()
            rows = [random_order(grades.double(), some) for grades, some in zip(self._grades, searched, strict=True)]
            columns = torch.tensor(rows, dtype=torch.float64).T
            self._expected = {_CHANCE + name: one for name, one in zip(self.metrics, columns, strict=True)}
        return self._expected
