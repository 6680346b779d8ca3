"""The inputs of an encoder: names, lengths, vocabulary and device."""

import inspect
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.encoders.seam.masks import can_look, is_true_everywhere
from papa_lightning.errors import PapaError


def position_limit(encoder: PreTrainedModel) -> int | None:
    """The longest sequence that an encoder has positions for, or None; also if its attention cannot be swapped.

    Families like RoBERTa number real tokens from ``padding_idx + 1``: 514 rows with padding index 1 serve 512 tokens.

    Example:
        >>> from transformers import RobertaConfig, RobertaModel
        >>> sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> position_limit(RobertaModel(RobertaConfig(max_position_embeddings=40, pad_token_id=1, **sizes)))
        38
    """
    if takes_images(encoder):
        return image_length(encoder)
    rows = getattr(encoder.config, "max_position_embeddings", None)
    if rows is None or rows < 1:
        return None
    return int(rows) - first_position(encoder)


def first_position(encoder: PreTrainedModel) -> int:
    """The id of the first position of a sequence: 0, or ``padding_idx + 1`` in families like RoBERTa."""
    for path, module in encoder.named_modules():
        if path.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(cast(int, module.padding_idx)) + 1
    return 0


def takes_images(encoder: PreTrainedModel) -> bool:
    """Whether an encoder takes images, which have no padding and one length."""
    return bool(encoder.main_input_name == "pixel_values")


def image_length(encoder: PreTrainedModel) -> int | None:
    """The number of tokens that an encoder makes of an image, patches and others; None without a table of positions."""
    for path, parameter in encoder.named_parameters():
        if path.endswith("position_embeddings") and parameter.dim() == 3:
            return parameter.shape[1]
    return None


def fits_positions(encoder: PreTrainedModel, max_length: object) -> bool:
    """Whether a length is a whole number from 1 to :func:`position_limit`; for images, just that length."""
    if not isinstance(max_length, int) or isinstance(max_length, bool):
        return False
    limit = position_limit(encoder)
    if takes_images(encoder) and limit is not None:
        return max_length == limit
    return max_length >= 1 and (limit is None or max_length <= limit)


def describe_lengths(encoder: PreTrainedModel) -> str:
    """The lengths for which :func:`fits_positions` holds, for messages."""
    limit = position_limit(encoder)
    if takes_images(encoder) and limit is not None:
        return f"{limit}, the number of tokens that the encoder makes of an image"
    return f"a whole number from 1 to {limit or 'any length'}, the positions of the encoder"


def compute_device(module: nn.Module, otherwise: torch.device | None = None) -> torch.device:
    """Where a module computes, also if accelerate loads its weights; ``otherwise`` without any, PapaError on meta."""
    for part in module.modules():
        hook = part.__dict__.get("_hf_hook")
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    device = next((own.device for own in module.parameters()), otherwise)
    if device is None or device.type == "meta":
        raise PapaError(
            f"{type(module).__name__} has no weights yet (device {device}): load them before it is calibrated or gets "
            "constants."
        )
    return device


def accepted_inputs(encoder: PreTrainedModel) -> tuple[str, ...]:
    """Names of the inputs that an encoder's forward takes; token_type_ids only if it has embeddings of segments."""
    known = inspect.signature(encoder.forward).parameters
    segments = ("token_type_ids",) if _tells_segments(encoder) else ()
    names = ("pixel_values", "input_ids", "inputs_embeds", "attention_mask", "position_ids", *segments)
    return tuple(name for name in names if name in known)


def _tells_segments(encoder: PreTrainedModel) -> bool:
    """Whether an encoder has embeddings of a second segment (not RoBERTa, GPT-2, XLM), in a table or relative."""
    size = getattr(encoder.config, "type_vocab_size", None)
    if size is not None:
        return bool(size > 1)
    return any(path.rpartition(".")[2] == "seg_embed" for path, _ in encoder.named_parameters())


def check_vocabulary(input_ids: Tensor, size: int) -> None:
    """Refuse input_ids (B, T) below 0 or beyond a vocabulary of ``size`` tokens, with a PapaError."""
    wrong = input_ids[(input_ids < 0) | (input_ids >= size)]
    if wrong.numel():
        raise PapaError(
            f"input_ids has the value {int(wrong[0])}, but the encoder knows the tokens 0 to {size - 1}: tokenize the "
            "data with the tokenizer of this encoder."
        )


def check_token_types(token_type_ids: Tensor, encoder: PreTrainedModel) -> None:
    """Refuse token_type_ids (B, T) beyond the encoder's segments (GPT-2 has none: its tokens), with a PapaError."""
    tables = (part for path, part in encoder.named_modules() if path.endswith("token_type_embeddings"))
    size = int(getattr(next(tables, None), "num_embeddings", encoder.config.vocab_size))
    wrong = token_type_ids[(token_type_ids < 0) | (token_type_ids >= size)]
    if wrong.numel():
        raise PapaError(
            f"token_type_ids has the value {int(wrong[0])}, but the encoder knows the segments 0 to {size - 1}: let "
            "its own tokenizer make them, or leave them out."
        )


def check_embeddings(inputs_embeds: Tensor, encoder: PreTrainedModel) -> None:
    """Refuse inputs_embeds (B, T, d) that are not finite, or of another d than the encoder's, with a PapaError."""
    size = getattr(encoder.get_input_embeddings(), "embedding_dim", inputs_embeds.shape[-1])
    if inputs_embeds.shape[-1] != size:
        raise PapaError(
            f"inputs_embeds has vectors of {inputs_embeds.shape[-1]} numbers, but the encoder takes {size}: pass what "
            "encoder.get_input_embeddings() gives."
        )
    if can_look(inputs_embeds) and not is_true_everywhere(inputs_embeds.isfinite()):
        raise PapaError("inputs_embeds has values that are NaN or infinite: look at what makes them.")
