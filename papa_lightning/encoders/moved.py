"""Tokens that were moved together in the tensor: whether an encoder can take them, and what its layers must be told."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention import runs_in
from papa_lightning.encoders.families.places import PlacedArgument
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.seam.layer import is_touched
from papa_lightning.encoders.seam.masks import allowed_pairs
from papa_lightning.encoders.seam.slots import POSITIONS, Positions


def exact_when_packed(found: SupportedEncoder, holes: bool = True) -> bool:
    """Whether real tokens that are moved together keep their hidden states, given their position ids and places.

    They need their mask too, without which transformers takes position ids that jump for several texts in one row.
    Cutting padding at the end needs none of this: no token moves.

    Args:
        found: The encoder, as it is at this moment: DeBERTa is exact while it is swapped or observed.
        holes: Whether there is padding between the real tokens of a sequence.
    """
    packs = found.family.packs
    if not holes:
        return packs is not False
    # Flash attention takes position ids that jump for several texts in one row, and knows a window of tokens only.
    if found.model.config._attn_implementation not in ("eager", "sdpa"):
        return False
    return packs(found.model) if callable(packs) else packs


@contextmanager
def moved_tokens(
    found: SupportedEncoder, places: Tensor, mask: Tensor, positions: Positions | None = None
) -> Iterator[None]:
    """Let the layers of an encoder, in this thread, measure distances by the places from which tokens were moved.

    Encoders that know positions by their position ids alone need no more than those; nothing changes for them. A
    backward pass that runs layers again (gradient checkpointing) would not hear of the places.

    Args:
        found: The encoder, for which :func:`exact_when_packed` holds.
        places: Where each token stood (B, n), ascending in each sequence; any number below T for padding.
        mask: 1 for a real token (B, n), 0 for padding.
        positions: Positions for the layers of a swapped or observed encoder, for those that do not hear of them from
            the encoder.
    """
    family = found.family
    arguments = [] if family.by_place is None else [family.by_place(found.model, places)]
    arguments += _windows(found, places, mask)
    if positions is not None and family.inline is not None and not family.inline.hears_positions:
        touched = [module for module in found.distinct_modules if is_touched(module)]
        arguments.append(PlacedArgument(touched, POSITIONS, lambda module: positions))
    with ExitStack() as hooks:
        for argument in arguments:
            for module in argument.modules:
                hooks.enter_context(module.register_forward_pre_hook(_giving(argument), with_kwargs=True))
        yield


def _giving(argument: PlacedArgument) -> Any:
    """Forward pre-hook that gives a module an argument, in the present thread."""
    thread = threading.get_ident()

    def give(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or not runs_in(thread):  # None while another thread adds or removes the hook
            return None
        return args, {**kwargs, argument.name: argument.value(module)}

    return give


def _windows(found: SupportedEncoder, places: Tensor, mask: Tensor) -> list[PlacedArgument]:
    """The masks of layers with a window, which transformers counts in the tensor; one mask for all of one window."""
    modules = dict(zip(found.modules, found.reaches, strict=True))
    reaches = dict.fromkeys(reach for reach in modules.values() if reach.before is not None)
    real = mask.bool()[:, None, None, :]
    return [
        _window(
            found.model,
            [module for module, own in modules.items() if own == reach],
            real & allowed_pairs(reach, places)[:, None],
        )
        for reach in reaches
    ]


def _window(encoder: PreTrainedModel, modules: list[nn.Module], allowed: Tensor) -> PlacedArgument:
    """The mask (B, 1, n, n) of some modules, as transformers makes it for the encoder's attention implementation."""
    mask = allowed
    if encoder.config._attn_implementation == "eager":  # which adds it
        lowest = torch.finfo(encoder.dtype).min
        mask = torch.zeros_like(allowed, dtype=encoder.dtype).masked_fill(~allowed, lowest)
    return PlacedArgument(modules, "attention_mask", lambda module: mask)
