"""Criteria by name, and the ranking of heads by one of them."""

from __future__ import annotations

from papa_lightning.criteria.base import HeadCriterion, RankingInputs
from papa_lightning.criteria.divergence import AttentionDivergence
from papa_lightning.criteria.gate import LearnedGates
from papa_lightning.criteria.greedy import GreedySearch
from papa_lightning.criteria.orders import LayerOrder, RandomOrder
from papa_lightning.criteria.output import OutputChange
from papa_lightning.criteria.taylor import TaylorImportance
from papa_lightning.criteria.variance import AttentionVariance
from papa_lightning.errors import PapaError
from papa_lightning.ranking import HeadRanking

_KNOWN: tuple[type[HeadCriterion], ...] = (
    AttentionVariance,
    AttentionDivergence,
    OutputChange,
    TaylorImportance,
    LearnedGates,
    GreedySearch,
    RandomOrder,
    LayerOrder,
)

#: Name -> class. Add a class of your own under its name, and every command knows it.
CRITERIA: dict[str, type[HeadCriterion]] = {criterion.name: criterion for criterion in _KNOWN}


def criterion_from(spec: str) -> HeadCriterion:
    """Make a criterion out of its text.

    Args:
        spec: A name of :data:`CRITERIA`; ``random:3`` has seed 3, ``layer:bottom_up`` and ``layer:top_down`` a
            direction.

    Raises:
        PapaError: When there is no such criterion.

    Example:
        >>> criterion_from("random:3").seed
        3
        >>> criterion_from("median")
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: criterion is 'median': choose from variance, divergence, output, taylor, \
gate, greedy, random, random:SEED, layer:bottom_up, layer:top_down.
    """
    name, _, detail = str(spec).partition(":")
    if name not in CRITERIA:
        raise _unknown(spec)
    if name == "layer" and detail in ("bottom_up", "top_down"):
        return LayerOrder("bottom_up" if detail == "bottom_up" else "top_down")
    if name == "random" and detail.isascii() and detail.isdigit():
        return RandomOrder(int(detail))
    if name == "layer" or spec != name:
        raise _unknown(spec)
    return CRITERIA[name]()


def rank_heads(criterion: str | HeadCriterion, inputs: RankingInputs) -> HeadRanking:
    """Rank the heads of an encoder: the lowest score becomes constant first, ties by layer and head.

    Scores that differ by rounding only are ties, see :meth:`HeadCriterion.scores`.

    Args:
        criterion: A criterion, or its text as for :func:`criterion_from`.
        inputs: What it may look at.

    Returns:
        The ranking, with the scores, and the text of the criterion as its name.

    Raises:
        PapaError: When there is no such criterion, or something that it needs is missing or does not fit.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> ranking = rank_heads("layer:top_down", RankingInputs(BertModel(config)))
        >>> ranking.heads, ranking.criterion
        ([(1, 0), (1, 1), (0, 0), (0, 1)], 'layer:top_down')
    """
    chosen = criterion if isinstance(criterion, HeadCriterion) else criterion_from(criterion)
    spec = criterion if isinstance(criterion, str) else chosen.spec
    return HeadRanking.from_scores(chosen.scores(inputs).tolist(), criterion=spec, rounding=0.0)


def _unknown(spec: object) -> PapaError:
    texts = {"layer": ["layer:bottom_up", "layer:top_down"], "random": ["random", "random:SEED"]}
    known = [text for name in CRITERIA for text in texts.get(name, [name])]
    return PapaError(f"criterion is {spec!r}: choose from {', '.join(known)}.")


def list_ranking(ranking: HeadRanking, path: str, count: int = 5) -> str:
    """The heads at both ends of a ranking, as a table.

    Args:
        ranking: With scores.
        path: Of its file.
        count: How many heads of each end.

    Example:
        >>> print(list_ranking(HeadRanking([(0, 1), (1, 0)], [0.25, 3.0], "output"), "ranking.json", count=1))
        criterion  output, 2 heads
        ranking    ranking.json
        layer  head  score
            0     1  0.25    constant first
            1     0  3       constant last
    """
    scores = ranking.scores or [float("nan")] * len(ranking.heads)
    rows = list(zip(ranking.heads, scores, strict=True))
    count = min(count, len(rows) // 2)
    first, last = rows[:count], rows[len(rows) - count :]
    lines = [f"criterion  {ranking.criterion}, {len(rows)} heads", f"ranking    {path}", "layer  head  score"]
    for place, ((layer, head), score) in enumerate([*first, *last]):
        note = {0: "  constant first", 2 * count - 1: "  constant last"}.get(place, "")
        lines.append(f"{layer:>5}  {head:>4}  {score:<6.4g}{note}".rstrip())
    return "\n".join(lines)
