"""Reading a batch before the layers of an encoder run: checking its mask, finding the positions of its tokens."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import Reach, TokenMixer
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.inputs import first_position
from papa_lightning.encoders.seam.layer import is_touched, layer_of, mixers_of
from papa_lightning.encoders.seam.masks import can_look, check_mask, is_true_everywhere, key_mask
from papa_lightning.encoders.seam.slots import POSITIONS, NumberedTokens, PositionRule, Positions, SlotRule, slots_of
from papa_lightning.errors import PapaError
from papa_lightning.runtime import is_exporting


class UnmaskedPaddingWarning(UserWarning):
    """A batch of a swapped encoder has padding tokens, but no attention_mask."""


@dataclass(frozen=True)
class ReadBatch:
    """Forward pre-hook of an attached encoder: checks the mask, and passes the positions of the tokens to the layers.

    Args:
        names: The arguments of the encoder's forward, in order.
        passes_on: Whether its forward hands further arguments to its attention.
        rule: Place from which its slots are counted.
        first: The id of its first position.
        reaches: The keys that the queries of each layer can see.
        padding: The padding token; None without one.
        modules: Its self-attention modules.
    """

    names: tuple[str, ...]
    passes_on: bool
    rule: SlotRule
    first: int
    reaches: tuple[Reach, ...]
    padding: int | None
    modules: tuple[nn.Module, ...]

    @classmethod
    def of(cls, found: SupportedEncoder) -> ReadBatch:
        """The hook for an encoder, attached or not."""
        parameters, inline = inspect.signature(found.model.forward).parameters, found.family.inline
        further = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return cls(
            names=tuple(parameters),
            passes_on=further and (inline is None or inline.hears_positions),
            rule=found.slot_rule,
            first=first_position(found.model),
            reaches=tuple(found.reaches),
            padding=getattr(found.model.config, "pad_token_id", None),
            modules=tuple(found.distinct_modules),
        )

    def __call__(self, encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        """Check a batch, and add the positions of its tokens to the arguments; PapaError for a bad mask or bad ids."""
        if kwargs is None:  # another thread attaches or detaches, see refuse_cache in attaching.py
            return None
        inputs = {**dict(zip(self.names, args, strict=False)), **kwargs} if args else kwargs
        if not torch.compiler.is_compiling():
            self._check(encoder, inputs)
            mask = inputs.get("attention_mask")
            if is_touched(self.modules[0]):  # else another thread has detached
                layer_of(self.modules[0]).batch.begin(foreign=isinstance(mask, Tensor) and mask.dim() != 2)
        elif is_exporting():
            mask = inputs.get("attention_mask")
            layer_of(self.modules[0]).batch.exported = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        positions: Positions | None = None
        if POSITIONS in kwargs:  # of a packed batch, whose layers hear of them from the encoder or otherwise
            return args, {name: held for name, held in kwargs.items() if self.passes_on or name != POSITIONS}
        if inputs.get("position_ids") is None:
            positions = self._numbered(inputs)
            kwargs = self.count_positions(inputs, kwargs)
        elif self.differs:
            positions = self.read(inputs, self._length)
        return args, kwargs if positions is None else {**kwargs, POSITIONS: positions}

    @property
    def differs(self) -> bool:
        """Whether a layer of the encoder differs from the original, or is observed."""
        return self._is_observed or any(mixer.replaces_attention for mixer in self._mixers())

    @property
    def takes_position_ids(self) -> bool:
        """Whether the encoder has the argument position_ids, and its layers hear of them."""
        return self.passes_on and "position_ids" in self.names

    def read(self, inputs: Mapping[str, Any], length: int | None) -> Positions | None:
        """The positions of the tokens of a batch on one device; None where they are the places in the tensor.

        PapaError for position ids that are no slots (T of ``length``, None: any), or not passed on by this encoder.
        """
        position_ids, tokens = inputs.get("position_ids"), _tokens(inputs)
        if position_ids is None or tokens is None:
            return self._numbered(inputs)
        mask = key_mask(inputs.get("attention_mask"))
        real = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        given = PositionRule(self.first, length, self.reaches).read(position_ids, real)
        if self.passes_on:
            return given
        # The layers number the tokens themselves, which must come to the same.
        own, order = slots_of(real, self.rule), torch.arange(real.shape[1], device=real.device)
        places = [order if slots is None else slots.places for slots in (given.slots, own)]
        if torch.compiler.is_compiling() or bool(((places[0] != places[1]) & real).any()):
            raise PapaError(
                "position_ids are given, but the layers of this encoder do not hear of them, and count from "
                f"{'the beginning of the tensor' if self.rule == 'tensor' else 'the first real token'}: leave "
                "position_ids out, or call restore_attention(encoder) first."
            )
        return None

    def mask_by_slot(self, mask: Tensor, positions: Positions | None) -> Tensor:
        """The mask (B, T) of a batch, true for a real token, in the order of slots (B, S), for sums over attention."""
        slots = slots_of(mask, self.rule, positions)
        return mask if slots is None else slots.mask

    def _numbered(self, inputs: Mapping[str, Any]) -> NumberedTokens | None:
        tokens = inputs.get("input_ids")
        if self.rule != "input_ids" or not self.passes_on or tokens is None or inputs.get("attention_mask") is None:
            return None
        return NumberedTokens(tokens != self.padding)

    def count_positions(self, inputs: Mapping[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments with position ids: kinds without scores depend on rotary positions, not on differences."""
        mask = inputs.get("attention_mask")
        if self.rule != "mask" or not self.takes_position_ids or mask is None:
            return kwargs
        if not any(mixer.replaces_attention and not mixer.uses_scores for mixer in self._mixers()):
            return kwargs
        slots = slots_of(key_mask(mask), self.rule)
        return kwargs if slots is None else {**kwargs, "position_ids": slots.places}

    def _check(self, encoder: PreTrainedModel, inputs: Mapping[str, Any]) -> None:
        tokens, mask = _tokens(inputs), inputs.get("attention_mask")
        if mask is None:
            if self._has_padding(encoder, tokens) and self.differs:
                warnings.warn(
                    f"input_ids begin or end with the padding token {self.padding}, but attention_mask is None, so "
                    "padding counts as text: pass the attention_mask of the tokenizer.",
                    UnmaskedPaddingWarning,
                    stacklevel=2,
                )
            return
        try:
            check_mask(mask, None if tokens is None else tokens.shape[:2], allow_empty=self._is_observed)
        except PapaError:
            if self.differs:
                raise

    def _has_padding(self, encoder: PreTrainedModel, tokens: Tensor | None) -> bool:
        if tokens is None or self.padding is None or tokens.dim() != 2 or not can_look(tokens):
            return False
        config = encoder.config
        if self.padding in [getattr(config, f"{name}_token_id", None) for name in ("bos", "eos", "sep")]:
            return False
        causal = layer_of(self.modules[0]).reach.after == 0  # no query sees the padding at the end
        ends = [tokens[:, :1]] if causal else [tokens[:, :1], tokens[:, -1:]]
        return not all(is_true_everywhere(end != self.padding) for end in ends)

    @property
    def _is_observed(self) -> bool:
        return layer_of(self.modules[0]).watched

    @property
    def _length(self) -> int | None:
        """T of the constants in use; None while the encoder is observed, because the observer checks it."""
        return None if self._is_observed else next((mixer.max_length for mixer in self._mixers()), None)

    def _mixers(self) -> Iterator[TokenMixer]:
        return (mixer for module in self.modules for mixer in mixers_of(module))


def _tokens(inputs: Mapping[str, Any]) -> Tensor | None:
    """input_ids (B, T) or inputs_embeds (B, T, d), whichever a batch has."""
    found = (inputs.get(name) for name in ("input_ids", "inputs_embeds"))
    return next((entry for entry in found if isinstance(entry, Tensor)), None)
