"""Which encoders are supported, and where their self-attention is.

An entry of :data:`FAMILIES` is all that a family needs whose attention dispatches through transformers'
attention interface with separate query and key projections.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from papa_lightning.exceptions import UnsupportedEncoderError


@dataclass(frozen=True)
class EncoderFamily:
    """Names of one family of encoders.

    Args:
        attention: Class name of the self-attention module.
        query: Attribute of its query projection, an nn.Linear from hidden size to heads x head size.
        key: Attribute of its key projection.
    """

    attention: str
    query: str = "query"
    key: str = "key"

    def attention_modules(self, encoder: nn.Module) -> Iterator[nn.Module]:
        """The self-attention modules in layer order."""
        return (module for module in encoder.modules() if type(module).__name__ == self.attention)


#: model_type of the configuration -> family.
FAMILIES: dict[str, EncoderFamily] = {
    "bert": EncoderFamily("BertSelfAttention"),
    "roberta": EncoderFamily("RobertaSelfAttention"),
    "xlm-roberta": EncoderFamily("XLMRobertaSelfAttention"),
    "camembert": EncoderFamily("CamembertSelfAttention"),
    "electra": EncoderFamily("ElectraSelfAttention"),
    "distilbert": EncoderFamily("DistilBertSelfAttention", query="q_lin", key="k_lin"),
}

#: Encoders that people ask for, and why they are refused.
REFUSED: dict[str, str] = {
    "mpnet": "its attention adds a relative position bias outside transformers' attention interface",
    "deberta": "it computes its attention inline, with relative position terms",
    "deberta-v2": "it computes its attention inline, with relative position terms",
    "albert": "one attention module serves all its layers",
    "modernbert": "it has one fused projection for query, key and value",
}


def find_encoder(model: nn.Module) -> PreTrainedModel:
    """The encoder of a transformers model, without its task head.

    Args:
        model: Any PreTrainedModel, with or without a task head.

    Returns:
        The bare encoder, a part of ``model``.

    Raises:
        UnsupportedEncoderError: When the model is not a supported encoder; the message has the reason.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedEncoderError(
            f"encoder is a {type(model).__name__}, but must be a transformers PreTrainedModel, not wrapped by "
            "DistributedDataParallel or the like: pass the encoder itself, and swap it before it is wrapped."
        )
    family_of(model)
    return cast(PreTrainedModel, model.base_model)


def family_of(encoder: PreTrainedModel) -> EncoderFamily:
    """The family of an encoder.

    Raises:
        UnsupportedEncoderError: When it is a decoder, or of an unknown type.
    """
    config = encoder.config
    model_type = config.model_type
    supported = f"Supported are: {', '.join(sorted(FAMILIES))}."
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedEncoderError(f"encoder is a {model_type} encoder-decoder, but must be an encoder. {supported}")
    if getattr(config, "is_decoder", False) or (
        model_type not in FAMILIES and model_type not in REFUSED and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    ):
        raise UnsupportedEncoderError(
            f"encoder is a {model_type} causal decoder, but must be a bidirectional encoder: its tokens see only what "
            f"stands before them. {supported}"
        )
    if model_type in REFUSED:
        raise UnsupportedEncoderError(f"encoder is of type {model_type!r}: {REFUSED[model_type]}. {supported}")
    if model_type not in FAMILIES:
        raise UnsupportedEncoderError(f"encoder is of unknown type {model_type!r}. {supported}")
    return FAMILIES[model_type]


def is_supported(model: nn.Module) -> bool:
    """Whether :func:`find_encoder` accepts a module."""
    try:
        find_encoder(model)
    except UnsupportedEncoderError:
        return False
    return True


def attention_modules(encoder: PreTrainedModel) -> list[nn.Module]:
    """The self-attention modules of an encoder, one a layer, in layer order.

    Raises:
        UnsupportedEncoderError: When there is none.
    """
    family = family_of(encoder)
    found = list(family.attention_modules(encoder.base_model))
    if not found:
        raise UnsupportedEncoderError(
            f"encoder ({type(encoder).__name__}) is of type {encoder.config.model_type!r}, but has no "
            f"{family.attention} module: was its attention replaced by another library? "
            "Pass the encoder as transformers builds it."
        )
    return found


def encoder_shape(encoder: PreTrainedModel) -> tuple[int, int]:
    """Number of layers L and of heads H of an encoder; the layers as they are, not as configured."""
    return len(attention_modules(encoder)), int(encoder.config.num_attention_heads)
