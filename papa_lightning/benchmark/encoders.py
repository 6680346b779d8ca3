"""Encoders, inputs and constants of a benchmark."""

import copy
import random
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from papa_lightning.benchmark.settings import BenchmarkSettings, Size
from papa_lightning.calibration import AttentionConstants
from papa_lightning.encoders import describe_lengths, encoder_shape, find_encoder, fits_positions, takes_images
from papa_lightning.encoders.loading import load_plain_encoder
from papa_lightning.errors import PapaError
from papa_lightning.from_scratch import TransformerConfig

#: Options that make an encoder of a type the published one, beside the common sizes.
_OPTIONS: dict[str, dict[str, object]] = {
    "deberta": {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 256,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
    TransformerConfig.model_type: {"causal": True},
}
_VOCABULARY = 1000


def make_stock(settings: BenchmarkSettings, size: Size, device: torch.device) -> PreTrainedModel:
    """The stock encoder, in evaluation mode; one with random weights has the sizes of `size`."""
    made = _with_random_weights(settings, size) if settings.encoder is None else load_plain_encoder(settings.encoder)
    encoder = find_encoder(made)
    if takes_images(encoder):
        raise PapaError(f"the encoder is a {encoder.config.model_type}, which reads images: pass an encoder of text.")
    if not fits_positions(encoder, longest := max(size.length, settings.max_length or 0)):
        given = f"inputs has {size.batch}x{size.length}" if longest == size.length else f"max_length is {longest}"
        raise PapaError(f"{given}, but the encoder's sequences must be {describe_lengths(encoder)}: pass shorter ones.")
    dtype = torch.float32 if settings.dtype == "bf16-mixed" else getattr(torch, settings.dtype)
    nn.Module.to(encoder, device=device, dtype=dtype)
    nn.Module.eval(encoder)
    return encoder


def _with_random_weights(settings: BenchmarkSettings, size: Size) -> PreTrainedModel:
    model_type = settings.shape.type
    try:
        config = AutoConfig.for_model(
            model_type,
            vocab_size=_VOCABULARY,
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=4 * size.hidden,
            max_position_embeddings=max(512, size.length, settings.max_length or 0)
            + 2,  # RoBERTa's start after that of the padding token
            pad_token_id=0,
            **_OPTIONS.get(model_type, {}),
        )
        torch.manual_seed(settings.seed)
        return cast(PreTrainedModel, cast(Any, AutoModel).from_config(config))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise PapaError(f"shape.type is {model_type!r}, of which no encoder can be made here: {reason}") from error


def copy_of(encoder: PreTrainedModel) -> PreTrainedModel:
    """A copy of an encoder whose parameters and buffers have the same memory; what one freezes, the other learns."""
    shared: dict[int, object] = {id(tensor): tensor for tensor in encoder.buffers()}
    for one in encoder.parameters():
        shared[id(one)] = nn.Parameter(one.detach(), one.requires_grad)
    return copy.deepcopy(encoder, shared)


def make_batches(
    settings: BenchmarkSettings, size: Size, device: torch.device, vocabulary: int
) -> list[dict[str, Tensor]]:
    """Batches of random tokens with padding at the end, in sequences whose lengths are spread evenly."""
    generator = torch.Generator().manual_seed(settings.seed)
    shortest = round(size.length * (1 - 2 * size.padding))
    lengths = torch.linspace(size.length, max(shortest, 1), size.batch).round()
    mask = (torch.arange(size.length) < lengths[:, None]).long()
    shape = (size.batch, size.length)
    tokens = [torch.randint(1, vocabulary, shape, generator=generator) for _ in range(settings.batches)]
    return [{"input_ids": (one * mask).to(device), "attention_mask": mask.to(device)} for one in tokens]


def choose_heads(encoder: PreTrainedModel, settings: BenchmarkSettings, share: float) -> list[tuple[int, int]]:
    """The constant heads of a share, by the placement of the settings."""
    layers, heads = encoder_shape(encoder)
    every = [(layer, head) for layer in range(layers) for head in range(heads)]
    if settings.placement == "random":
        random.Random(settings.seed).shuffle(every)
    elif settings.placement == "every_layer":
        every.sort(key=lambda one: one[1])
    return sorted(every[: round(share * len(every))])


def random_constants(encoder: PreTrainedModel, length: int, shared: bool, seed: int) -> AttentionConstants:
    """Matrices (L, H, T, T) of random scores, one for all heads if `shared`: times do not depend on values."""
    layers, heads = encoder_shape(encoder)
    # All layers share the matrices and copy them, on a GPU there: at T = 4096 those of twelve heads are 0.8 GB.
    device = encoder.device if encoder.device.type == "cuda" else torch.device("cpu")
    scores = torch.randn(1, 1 if shared else heads, length, length, generator=torch.Generator().manual_seed(seed))
    values = torch.softmax(scores.to(device), dim=-1).expand(layers, heads, length, length)
    return AttentionConstants(values, torch.ones(length, length, device=device))
