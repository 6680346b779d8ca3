"""Running an encoder over the batches of a calibration pass, and checking them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from papa_lightning.encoders import ReadBatch, accepted_inputs, check_vocabulary, takes_images
from papa_lightning.exceptions import CalibrationError


def run_encoder(encoder: PreTrainedModel, batches: Iterable[Mapping[str, Any]], max_length: int) -> Iterator[Tensor]:
    """Run an encoder over batches, for what its layers show to observers; its own output is thrown away.

    Args:
        encoder: The bare encoder.
        batches: What the user gave; batches without a token are left out.
        max_length: T.

    Yields:
        The mask of each batch by the slots of its tokens, (B, slots), on the device of the encoder, after the encoder
        has run.

    Raises:
        CalibrationError: For a bad batch.
    """
    # A decoder would keep keys and values of earlier tokens, for nothing.
    options = {"use_cache": False} if "use_cache" in inspect.signature(encoder.forward).parameters else {}
    reading = ReadBatch.of(encoder)
    for number, batch in enumerate(batches):
        inputs, mask = checked_inputs(encoder, batch, number, max_length)
        if mask.numel() > 0:
            on_device = {name: tensor.to(encoder.device) for name, tensor in inputs.items()}
            positions = reading.read(encoder, on_device, max_length)
            encoder(**on_device, **options)
            yield reading.mask_by_slot(mask.to(encoder.device), positions)


def checked_inputs(
    encoder: PreTrainedModel, batch: Mapping[str, Any], number: int, max_length: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a batch that an encoder takes.

    Args:
        encoder: The bare encoder.
        batch: What the user gave.
        number: Of the batch, for messages.
        max_length: T.

    Returns:
        The inputs by name, and the mask (B, t), true for a real token.

    Raises:
        CalibrationError: When something is missing or of a wrong shape.
        PapaError: For a token that is not in the vocabulary.
    """
    if not isinstance(batch, Mapping):
        raise CalibrationError(
            f"batch {number} is a {type(batch).__name__}, but must be a mapping with input_ids and attention_mask."
        )
    inputs = {name: batch[name] for name in accepted_inputs(encoder) if batch.get(name) is not None}
    if takes_images(encoder):
        images = _checked_images(inputs.get("pixel_values"), batch, number, encoder.config.image_size)
        return {"pixel_values": images}, torch.ones(images.shape[0], max_length, dtype=torch.bool)
    mask = _checked_mask(inputs, batch, number, max_length)
    tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if not isinstance(tokens, Tensor) or tokens.shape[:2] != mask.shape:
        found = None if not isinstance(tokens, Tensor) else tuple(tokens.shape)
        raise CalibrationError(
            f"batch {number} has input_ids of shape {found}, but an attention_mask of shape {tuple(mask.shape)}: "
            "both are (batch, length)."
        )
    for name, tensor in inputs.items():
        if not isinstance(tensor, Tensor):
            raise CalibrationError(
                f"batch {number} has {name} of type {type(tensor).__name__}, but must have a tensor: let the tokenizer "
                'return tensors (return_tensors="pt").'
            )
    if "input_ids" in inputs and inputs["input_ids"].device.type == "cpu":  # elsewhere a look costs a sync
        check_vocabulary(inputs["input_ids"], encoder.config.vocab_size)
    return inputs, mask


def _checked_mask(inputs: Mapping[str, Any], batch: Mapping[str, Any], number: int, max_length: int) -> Tensor:
    mask = inputs.get("attention_mask")
    if not isinstance(mask, Tensor):
        raise CalibrationError(
            f"batch {number} has no attention_mask (keys: {', '.join(map(str, batch))}), so padding would count as "
            "text: let the tokenizer return it."
        )
    if mask.dim() != 2:
        raise CalibrationError(
            f"batch {number} has an attention_mask of shape {tuple(mask.shape)}: pass one of shape (batch, length)."
        )
    if mask.shape[1] > max_length:
        raise CalibrationError(
            f"batch {number} has sequences of {mask.shape[1]} tokens, but max_length is {max_length}: "
            "truncate them in the tokenizer, or pass a larger max_length."
        )
    return mask


def _checked_images(images: Any, batch: Mapping[str, Any], number: int, size: int | Sequence[int]) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise CalibrationError(
            f"batch {number} has pixel_values of shape or type {found} (keys: {', '.join(map(str, batch))}), but the "
            "encoder takes images: pass a tensor of shape (batch, channels, height, width)."
        )
    expected = (size, size) if isinstance(size, int) else tuple(size)
    if images.shape[2:] != expected:
        raise CalibrationError(
            f"batch {number} has pixel_values of {tuple(images.shape[2:])} pixels, but the encoder takes {expected}: "
            "let its image processor resize them."
        )
    return images
