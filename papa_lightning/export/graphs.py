"""Encoders as graphs of torch.export, and what graphs of all formats are made of."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

from papa_lightning.encoders import ReadBatch, SupportedEncoder, accepted_inputs, takes_images
from papa_lightning.errors import ExportError

#: Inputs of a graph, in this order.
_TEXT = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class HiddenStates(nn.Module):
    """An encoder that returns its last hidden states alone."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        # A graph has no use for cached keys, and swapped attention refuses them.
        self.options = {"use_cache": False} if getattr(encoder.config, "use_cache", False) else {}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states (B, T, d) of tokens, each input (B, T), or of images (B, channels, height, width)."""
        text = dict(zip(_TEXT, (input_ids, attention_mask, token_type_ids, position_ids), strict=True))
        given = {name: held for name, held in {**text, "pixel_values": pixel_values}.items() if held is not None}
        result: Tensor = self.encoder(**given, **self.options, return_dict=True).last_hidden_state
        return result


def export_program(encoder: nn.Module, position_ids: bool = False) -> torch.export.ExportedProgram:
    """A swapped encoder as a graph of ``torch.export``, for any batch size and any length up to that of its constants.

    Its inputs are input_ids, attention_mask and, where the encoder has segments, token_type_ids, each (B, T), or
    pixel_values; its output is the last hidden states. The attention mask is required, and must be one of padding: a
    graph cannot refuse others. The stock attention of transformers needs at least two tokens, and so do graphs of
    partly constant encoders. ``program.module()`` runs the program, ``torch.export.save`` writes it.

    With position_ids, the slot of a real token is its position id minus the first that the encoder has (RoBERTa:
    ``padding_idx + 1``, most: 0), wherever it stands, so that the real tokens of each row can be moved together, in
    their order. A graph cannot refuse ids that are no slots: those of a row must differ, lie within the constants, rise
    from token to token in causal layers, and by one a token in layers with a window. Those of padding are free, but
    must be positions that the encoder has.

    Args:
        encoder: A swapped and calibrated encoder, or one of :func:`load_exported_encoder`, in evaluation mode.
        position_ids: Whether the graph has the input position_ids (B, T) too; it is then required.

    Raises:
        ExportError: When the encoder has no constants, is in training mode, cannot be a graph, or its layers do not
            hear of position ids.
    """
    module, inputs, sizes = parts(encoder, position_ids)
    # A graph for sizes of 1 too, as the ONNX export of torch makes it.
    with quiet(), shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        try:
            return torch.export.export(module, (), kwargs=inputs, dynamic_shapes=sizes, strict=False)
        except Exception as error:  # torch raises anything
            raise no_graph(error) from error


def first_position_id(found: SupportedEncoder) -> int:
    """The position id of the first slot; ExportError for an encoder whose layers do not hear of position ids."""
    reader = ReadBatch.of(found)
    if not reader.takes_position_ids:
        raise ExportError(
            f"position_ids is True, but the layers of {type(found.model).__name__} do not hear of position ids: leave "
            "position_ids out, for a graph that takes batches as the tokenizer pads them."
        )
    return reader.first


def parts(encoder: nn.Module, position_ids: bool) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    """The module, an example of its inputs, and the dynamic ones of their sizes."""
    found = SupportedEncoder.find(encoder)
    first = first_position_id(found) if position_ids else None
    base, mixers = found.model, found.mixers
    if base.training or not mixers or not all(mixer.calibrated for mixer in mixers):
        state = "in training mode" if base.training else "not swapped, or has no constants"
        raise ExportError(
            f"the encoder is {state}, but a graph is made of one with constants and in evaluation mode: call "
            "swap_attention(...) and encoder.eval()."
        )
    batch = torch.export.Dim.DYNAMIC(min=1)
    if takes_images(base):
        config: Any = base.config
        sides = config.image_size if isinstance(config.image_size, (tuple, list)) else [config.image_size] * 2
        pixels = torch.zeros(2, config.num_channels, *sides, dtype=base.dtype, device=base.device)
        return HiddenStates(base), {"pixel_values": pixels}, {"pixel_values": {0: batch}}
    longest = mixers[0].max_length
    # Neither 1 nor the longest: a graph must not be made for either alone.
    example = torch.ones(2, longest - 1 if longest > 2 else longest, dtype=torch.int64, device=base.device)
    length = {1: torch.export.Dim.DYNAMIC(min=1, max=longest)} if longest > 2 else {}
    # GPT-2 takes token_type_ids too, but for embeddings of words: zeros would change what it computes.
    names = set(accepted_inputs(base)) - (set() if getattr(base.config, "type_vocab_size", 0) else {"token_type_ids"})
    inputs = {name: example * (name != "token_type_ids") for name in _TEXT if name in names - {"position_ids"}}
    if first is not None:
        inputs["position_ids"] = example.cumsum(dim=1) - 1 + first
    return HiddenStates(base), inputs, {name: {0: batch, **length} for name in inputs}


def no_graph(error: Exception) -> ExportError:
    """The error for an encoder that torch makes no graph of."""
    line = " ".join(str(error).split())[:400]
    return ExportError(f"the encoder cannot be made a graph by this version of torch ({type(error).__name__}: {line}).")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence torch's messages for its developers while it makes graphs."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
