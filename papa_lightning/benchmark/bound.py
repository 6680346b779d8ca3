"""How much faster the arithmetic allows an encoder to be.

Multiply-accumulates per token, layer and channel. A block of BERT's form costs 4 d for queries, keys, values and the
output, 2 i for the two layers between (i = 4 d), T for the scores and T for the product with the values: 12 d + 2 T.
What a kind of attention leaves out or adds is in :mod:`papa_lightning.benchmark.cases`. Embeddings, normalisations,
softmax and everything that is not arithmetic do not count.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

#: Types whose layers are BERT's: four square projections, and two layers between d and i.
_LIKE_BERT = (
    *("albert", "bert", "bert-generation", "camembert", "electra", "ernie", "esm", "mpnet", "roberta", "roformer"),
    *("deberta", "deberta-v2", "distilbert", "xlm-roberta"),
)


@dataclass(frozen=True)
class Block:
    """What the cost of a layer depends on.

    Args:
        hidden: d.
        inner: i, the size between the two layers behind the attention.
        length: T.
        positions: P, the relative positions that each query and each key is multiplied with (DeBERTa), both together.

    Example:
        >>> round(Block(768, 3072, 128).speed(saved=2 * 768 + 128), 2)
        1.21
    """

    hidden: int
    inner: int
    length: int
    positions: int = 0

    @property
    def dense(self) -> int:
        """Multiply-accumulates per token and channel with all heads dynamic."""
        return 4 * self.hidden + 2 * self.inner + 2 * self.length + self.positions

    @property
    def queries(self) -> int:
        """Those for queries, keys and scores."""
        return 2 * self.hidden + self.length + self.positions

    def speed(self, saved: float) -> float:
        """How many times as fast a layer can be that saves so many of them."""
        return self.dense / (self.dense - saved)


def block_of(config: PretrainedConfig, length: int) -> Block | None:
    """The layer of an encoder; None for one of another form, whose bound is not known here.

    Args:
        config: Of the encoder.
        length: T.

    Example:
        >>> from transformers import BertConfig
        >>> block_of(BertConfig(hidden_size=384, num_attention_heads=12, intermediate_size=1536), 64).dense
        4736
    """
    if config.model_type not in _LIKE_BERT:
        return None
    inner = getattr(config, "intermediate_size", None) or config.hidden_dim
    return Block(int(config.hidden_size), int(inner), length, _relative_positions(config, length))


def _relative_positions(config: PretrainedConfig, length: int) -> int:
    """DeBERTa multiplies each query, and each key, with twice the span of relative positions that it tells apart."""
    if not getattr(config, "relative_attention", False):
        return 0
    span = int(getattr(config, "position_buckets", -1))
    if span < 1:
        longest = config.max_relative_positions
        span = min(length, longest if longest > 0 else config.max_position_embeddings)
    return 2 * span * len(config.pos_att_type)
