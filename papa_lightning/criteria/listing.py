"""A ranking in a few lines."""

from __future__ import annotations

from papa_lightning.ranking import HeadRanking


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
