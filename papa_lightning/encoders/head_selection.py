"""Selections of heads, resolved to head numbers a layer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import index
from typing import Any, Literal, SupportsIndex, TypeAlias

from papa_lightning.errors import HeadSelectionError, PapaError
from papa_lightning.ranking import HeadRanking

#: "all", [(layer, head), ...], {layer: [head, ...]}, a number of heads (int) or a share of them (float).
HeadSelection: TypeAlias = Literal["all"] | int | float | Sequence[Sequence[int]] | Mapping[int, Sequence[int]]


def select_heads(
    heads: HeadSelection, num_layers: int, num_heads: int, ranking: HeadRanking | None = None
) -> list[tuple[int, ...]]:
    """Resolve a selection of heads to the head numbers of each layer, ascending.

    Args:
        heads: "all"; a list of (layer, head) pairs; a map from layer to heads; a number (int) or a share from 0 to 1
            (float), which take the first heads of ``ranking``. The numbers that leave no choice (0, 0.0, 1.0) need no
            ranking. An empty list selects no head.
        num_layers: Number of layers L of the encoder.
        num_heads: Number of heads H of the encoder.
        ranking: The order in which heads become constant.

    Raises:
        HeadSelectionError: When a head does not exist, is listed twice, or is not determined by the arguments.

    Example:
        >>> select_heads([(0, 1), (1, 0)], num_layers=2, num_heads=2)
        [(1,), (0,)]
        >>> select_heads(0.5, 2, 2, HeadRanking([(1, 1), (1, 0), (0, 0), (0, 1)]))
        [(), (0, 1)]
    """
    pairs = _pairs(heads, num_layers, num_heads, ranking)
    for layer, head in pairs:
        if not (0 <= layer < num_layers and 0 <= head < num_heads):
            raise HeadSelectionError(
                f"heads has (layer {layer}, head {head}), but the encoder has layers 0 to {num_layers - 1} "
                f"with heads 0 to {num_heads - 1}."
            )
    chosen = set(pairs)
    if len(chosen) < len(pairs):
        twice = next(pair for pair, count in Counter(pairs).items() if count > 1)
        raise HeadSelectionError(f"heads has (layer, head) {twice} more than once: list every head once.")
    return [tuple(head for head in range(num_heads) if (layer, head) in chosen) for layer in range(num_layers)]


def _pairs(
    heads: HeadSelection, num_layers: int, num_heads: int, ranking: HeadRanking | None
) -> Sequence[tuple[int, int]]:
    everything = [(layer, head) for layer in range(num_layers) for head in range(num_heads)]
    given: Any = heads
    heads = given.tolist() if hasattr(given, "tolist") else given  # arrays and tensors
    if heads == "all":
        return everything
    if isinstance(heads, (int, float)) and not isinstance(heads, bool):
        return _ranked(heads, everything, ranking)
    try:
        if isinstance(heads, Mapping):
            keyed: Mapping[Any, Sequence[int]] = heads  # JSON and YAML turn keys into strings
            pairs = [(int(key) if isinstance(key, str) else key, head) for key, own in keyed.items() for head in own]
            return [(_whole(layer), _whole(head)) for layer, head in pairs]
        if isinstance(heads, Sequence) and not isinstance(heads, str):
            return [(_whole(layer), _whole(head)) for layer, head in heads]
    except (TypeError, ValueError) as error:
        raise HeadSelectionError(f"heads is {heads!r}: {error}. {_FORMS}") from error
    raise HeadSelectionError(f"heads is {heads!r}. {_FORMS}")


_FORMS = 'Pass "all", (layer, head) pairs, a map from layer to heads, or a number or share of heads with a ranking.'


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise ValueError(f"{value!r} is not a whole number")
    return index(value)


def _ranked(
    amount: int | float, everything: list[tuple[int, int]], ranking: HeadRanking | None
) -> Sequence[tuple[int, int]]:
    if ranking is None:
        if amount == 0:
            return []
        if isinstance(amount, float) and amount == 1.0:
            return everything
        raise HeadSelectionError(
            f"heads is {amount!r}, a number or share of heads, but no ranking says which come first: "
            'pass ranking=HeadRanking(...), or heads="all" or a list of (layer, head) pairs.'
        )
    if not isinstance(ranking, HeadRanking):
        raise HeadSelectionError(
            f"ranking is a {type(ranking).__name__}, but must be a HeadRanking: make one, or load it with "
            "HeadRanking.load(path)."
        )
    if sorted(ranking.heads) != everything:
        layers, heads = everything[-1]
        raise HeadSelectionError(
            f"ranking has {len(ranking.heads)} heads, but the encoder has {layers + 1} layers of {heads + 1} heads, "
            "and each must be ranked once: pass a ranking that was made for this encoder."
        )
    try:
        return ranking.first(amount)
    except PapaError as error:
        raise HeadSelectionError(str(error)) from error
