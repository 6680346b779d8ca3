"""Models that are trained from scratch; transformers' Auto classes know them."""

from transformers import AutoConfig, AutoModel

from papa_lightning.from_scratch.configuration import TransformerConfig, check_heads
from papa_lightning.from_scratch.resplit import resplit_heads
from papa_lightning.from_scratch.transformer import TransformerAttention, TransformerLayer, TransformerModel

AutoConfig.register(TransformerConfig.model_type, TransformerConfig, exist_ok=True)
AutoModel.register(TransformerConfig, TransformerModel, exist_ok=True)

__all__ = [
    "TransformerAttention",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerModel",
    "check_heads",
    "resplit_heads",
]
