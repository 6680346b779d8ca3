"""Checking the batches of a calibration pass, and running an encoder over them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.encoders import (
    PackedBatch,
    PackedSequences,
    Packer,
    Packing,
    ReadBatch,
    SupportedEncoder,
    accepted_inputs,
    check_embeddings,
    check_mask,
    check_token_types,
    check_vocabulary,
    compute_device,
    takes_images,
)
from papa_lightning.encoders.seam.masks import can_look, is_true_everywhere
from papa_lightning.errors import CalibrationError, PapaError

#: Bytes of tokens that are packed together, from as many batches as they take.
_POOL = 2**24


def run_encoder(
    encoder: nn.Module | SupportedEncoder,
    batches: Iterable[Mapping[str, Any]],
    max_length: int,
    packing: Packing | None = None,
) -> Iterator[Tensor]:
    """Run an encoder over batches for its layers' observers; yields masks (B, slots) of real tokens afterwards.

    Packed, it runs over batches of its own, made of the same sequences; the first batch is run by itself, so that a
    broken encoder shows at once.
    """
    found = SupportedEncoder.find(encoder)
    packer, settings, device = Packer.of(found), packing or Packing(), compute_device(found.model)
    # A decoder would cache keys and values that are never used.
    options = {"use_cache": False} if "use_cache" in packer.reading.names else {}
    pool = _Pool()

    def run_pool() -> Iterator[Tensor]:
        for batch, masks in pool.empty(settings.tokens(device), device):
            with batch.prepared(device) as arguments:
                found.model(**arguments, **options)
            yield masks

    read = _read(packer, batches, max_length, None if settings.enabled else device)
    for number, (inputs, by_slot) in enumerate(read):
        packed = packer.pack(inputs) if settings.enabled else None
        if packed is None:
            found.model(**{name: held.to(device) for name, held in inputs.items()}, **options)
            yield by_slot
            continue
        if not pool.takes(packed):
            yield from run_pool()
        pool.add(packed, by_slot)
        if number == 0 or pool.nbytes >= _POOL:
            yield from run_pool()
    yield from run_pool()


class _Pool:
    """Packed sequences of several batches, with their masks (B, slots)."""

    def __init__(self) -> None:
        self._parts: list[tuple[PackedSequences, Tensor]] = []
        self.nbytes = 0

    def takes(self, packed: PackedSequences) -> bool:
        """Whether sequences have the same inputs as those in the pool."""
        return not self._parts or self._parts[0][0].tokens.keys() == packed.tokens.keys()

    def add(self, packed: PackedSequences, by_slot: Tensor) -> None:
        """Add the sequences of a batch."""
        self._parts.append((packed, by_slot))
        self.nbytes += packed.nbytes

    def empty(self, tokens: int, device: torch.device) -> Iterator[tuple[PackedBatch, Tensor]]:
        """Take everything out, as batches of sequences of similar length on a device, and their masks."""
        parts, self._parts, self.nbytes = self._parts, [], 0
        if not parts:
            return
        packed, length = PackedSequences.join([part for part, _ in parts]), max(mask.shape[1] for _, mask in parts)
        masks = torch.cat([F.pad(mask, (0, length - mask.shape[1])) for _, mask in parts])
        moved = packed.to(device)
        for group in packed.groups(tokens):
            yield moved.batch(group), masks[group]


def _read(
    packer: Packer, batches: Iterable[Mapping[str, Any]], max_length: int, device: torch.device | None
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """The arguments of an encoder in each batch with tokens, and the mask (B, slots) of real tokens.

    They are on a device, or for None on the CPU, where packing reads their values without a wait for each.
    """
    unread = UnreadMasks()
    for number, batch in enumerate(batches):
        inputs, mask = checked_inputs(packer.encoder.model, batch, number, max_length)
        if mask.numel() > 0:
            moved = {name: tensor.to(device or "cpu") for name, tensor in inputs.items()}
            by_slot = mask_by_slot(packer.reading, moved, number, max_length)
            unread.add(mask)
            yield moved, by_slot
    unread.check()


class UnreadMasks:
    """Masks that are checked after the first and after the last only, because reading them makes a device wait."""

    def __init__(self) -> None:
        self._wrong: Tensor | None = None

    def add(self, mask: Tensor) -> None:
        """Add a mask (B, t); one that can be read without waiting was checked with its batch."""
        if can_look(mask):
            return
        wrong = ((mask != 0) & (mask != 1)).sum()
        self._wrong, first = wrong if self._wrong is None else self._wrong + wrong, self._wrong is None
        if first:
            self.check()

    def check(self) -> None:
        """Refuse masks with other values than 0 and 1 among those that were added."""
        if self._wrong is not None and bool(self._wrong):
            raise CalibrationError(
                "a batch has an attention_mask with other values than 1 for a real token and 0 for padding: pass that "
                "of the tokenizer."
            )


def mask_by_slot(reading: ReadBatch, inputs: Mapping[str, Tensor], number: int, max_length: int) -> Tensor:
    """The mask (B, S) of a batch, true for a real token, in the order of the slots that its attention is added to."""
    try:
        positions = reading.read(inputs, max_length)
    except PapaError as error:
        raise CalibrationError(f"batch {number}: {error}") from None
    return reading.mask_by_slot(_mask_of(inputs, max_length), positions)


def _mask_of(inputs: Mapping[str, Tensor], max_length: int) -> Tensor:
    if "pixel_values" in inputs:
        images = inputs["pixel_values"]
        return torch.ones(images.shape[0], max_length, dtype=torch.bool, device=images.device)
    return inputs["attention_mask"]


def checked_inputs(
    encoder: PreTrainedModel, batch: Mapping[str, Any], number: int, max_length: int
) -> tuple[dict[str, Tensor], Tensor]:
    """The inputs of an encoder in a batch by name, and the mask (B, t); ``number`` is that of the batch in messages."""
    if not isinstance(batch, Mapping):
        raise CalibrationError(
            f"batch {number} is a {type(batch).__name__}, but must be a mapping with input_ids and attention_mask."
        )
    inputs = {name: batch[name] for name in accepted_inputs(encoder) if batch.get(name) is not None}
    if takes_images(encoder):
        inputs = {"pixel_values": _checked_images(encoder, inputs.get("pixel_values"), batch, number)}
        return inputs, _mask_of(inputs, max_length)
    mask = _checked_mask(inputs, batch, number, max_length)
    _check_shapes(inputs, mask, number)
    for name, tensor in inputs.items():
        _check_kind(name, tensor, number)
    tokens, types, embeddings = (inputs.get(name) for name in ("input_ids", "token_type_ids", "inputs_embeds"))
    try:  # values are checked where they can be read without waiting
        check_mask(mask, None, allow_empty=True)
        if tokens is not None and can_look(tokens):
            check_vocabulary(tokens, encoder.config.vocab_size)
        if types is not None and can_look(types):
            check_token_types(types, encoder)
        if embeddings is not None:
            check_embeddings(embeddings, encoder)
    except PapaError as error:
        raise CalibrationError(f"batch {number}: {error}") from None
    if embeddings is not None:
        inputs["inputs_embeds"] = embeddings.to(encoder.dtype)
    return inputs, mask


def _checked_mask(inputs: Mapping[str, Any], batch: Mapping[str, Any], number: int, max_length: int) -> Tensor:
    mask = inputs.get("attention_mask")
    if mask is None:
        raise CalibrationError(
            f"batch {number} has no attention_mask (keys: {', '.join(map(str, batch))}), so padding would count as "
            "text: let the tokenizer return it."
        )
    if not isinstance(mask, Tensor):
        raise _no_tensor("attention_mask", mask, number)
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


def _check_shapes(inputs: Mapping[str, Any], mask: Tensor, number: int) -> None:
    if "input_ids" in inputs and "inputs_embeds" in inputs:
        raise CalibrationError(f"batch {number} has input_ids and inputs_embeds: an encoder takes one of the two.")
    main = "inputs_embeds" if "inputs_embeds" in inputs else "input_ids"
    for name in (main, *(other for other in inputs if other not in ("attention_mask", main))):
        entry = inputs.get(name)
        if entry is not None and not isinstance(entry, Tensor):
            raise _no_tensor(name, entry, number)
        shape = None if entry is None else tuple(entry.shape)
        expected = (*mask.shape, -1) if name == "inputs_embeds" else tuple(mask.shape)
        shared = name in ("token_type_ids", "position_ids") and shape == (1, mask.shape[1])
        if not shared and (shape is None or len(shape) != len(expected) or shape[:2] != expected[:2]):
            raise CalibrationError(
                f"batch {number} has {name} of shape {shape}, but an attention_mask of shape {tuple(mask.shape)}: "
                f"both are (batch, length){', inputs_embeds with a vector a token' if name == 'inputs_embeds' else ''}."
            )


def _no_tensor(name: str, entry: object, number: int) -> CalibrationError:
    return CalibrationError(
        f"batch {number} has {name} of type {type(entry).__name__}, but must have a tensor: let the tokenizer "
        'return tensors (return_tensors="pt").'
    )


def _check_kind(name: str, tensor: Tensor, number: int) -> None:
    """Refuse a tensor by its dtype, layout or device."""
    numbers = name in ("inputs_embeds", "pixel_values")
    right = tensor.is_floating_point() if numbers else tensor.dtype in (torch.int32, torch.int64)
    if not right and name != "attention_mask":
        wanted = "floating point" if numbers else "whole numbers (torch.int64)"
        raise CalibrationError(f"batch {number} has {name} of dtype {tensor.dtype}, but must have {wanted}.")
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        found = "no values (it is on the meta device)" if tensor.is_meta else f"the layout {tensor.layout}"
        raise CalibrationError(f"batch {number} has {name} with {found}: pass a plain tensor.")


def _checked_images(encoder: PreTrainedModel, images: Any, batch: Mapping[str, Any], number: int) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise CalibrationError(
            f"batch {number} has pixel_values of shape or type {found} (keys: {', '.join(map(str, batch))}), but the "
            "encoder takes images: pass a tensor of shape (batch, channels, height, width)."
        )
    _check_kind("pixel_values", images, number)
    size: int | Sequence[int] = encoder.config.image_size
    expected = (size, size) if isinstance(size, int) else tuple(size)
    if images.shape[2:] != expected:
        raise CalibrationError(
            f"batch {number} has pixel_values of {tuple(images.shape[2:])} pixels, but the encoder takes {expected}: "
            "let its image processor resize them."
        )
    channels = encoder.config.num_channels
    if images.shape[1] != channels:
        raise CalibrationError(
            f"batch {number} has pixel_values of {images.shape[1]} channels, but the encoder takes {channels}: let its "
            "image processor convert them."
        )
    if can_look(images) and not is_true_everywhere(images.isfinite()):
        raise CalibrationError(f"batch {number} has pixel_values that are NaN or infinite: look at the image data.")
    return images.to(encoder.dtype)
