"""Layer sizes of an encoder, which bound its speed as :class:`papa_lightning.attention.Block` says."""

from transformers import PretrainedConfig

from papa_lightning.attention import Block

#: Types whose layers are BERT's: four square projections, and two layers between d and i.
_LIKE_BERT = (
    *("albert", "bert", "bert-generation", "camembert", "electra", "ernie", "esm", "mpnet", "roberta", "roformer"),
    *("deberta", "deberta-v2", "distilbert", "xlm-roberta"),
)


def block_of(config: PretrainedConfig, length: int) -> Block | None:
    """The layer sizes of an encoder; None for a layer of another form, whose bound is not known.

    Args:
        config: Configuration of the encoder.
        length: T, tokens.

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
    """Relative positions of DeBERTa: each query, and each key, is multiplied with twice the span of distances."""
    if not getattr(config, "relative_attention", False):
        return 0
    span = int(getattr(config, "position_buckets", -1))
    if span < 1:
        longest = config.max_relative_positions
        span = min(length, longest if longest > 0 else config.max_position_embeddings)
    return 2 * span * len(config.pos_att_type)
