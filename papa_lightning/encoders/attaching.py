"""Opening the self-attention of an encoder for observers and mixers, and closing it again."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from papa_lightning.attention import RowMixing
from papa_lightning.attention.functional import apply_attention
from papa_lightning.encoders.albert import count_turns, stop_turns
from papa_lightning.encoders.batch import ReadBatch
from papa_lightning.encoders.finding import attention_modules, family_of, find_encoder
from papa_lightning.encoders.interface import check_implementation, papa_config
from papa_lightning.encoders.layer import (
    Mixing,
    Observer,
    TouchedLayer,
    cache_error,
    is_touched,
    layer_of,
    mixers_of,
    remove_hooks,
    touch,
    untouch,
)
from papa_lightning.exceptions import UnsupportedEncoderError


def attach(encoder: PreTrainedModel) -> list[nn.Module]:
    """Open the self-attention of an encoder; idempotent.

    Args:
        encoder: The bare encoder.

    Returns:
        The modules that stand in it from now on, one a layer in the order in which the layers run.

    Raises:
        UnsupportedEncoderError: When a module cannot be opened; the encoder is unchanged then.
    """
    modules = attention_modules(encoder)
    if is_touched(modules[0]):
        return modules
    family = family_of(encoder)
    for module in modules:
        if family.inline is not None:
            family.inline.check(module)
        else:
            check_implementation(_config_of(module))
    paths = {module: path for path, module in encoder.named_modules()}
    for module in dict.fromkeys(modules):
        layer = TouchedLayer(family.reach(module), family.slot_rule(encoder.config))
        if family.inline is None:
            _dispatch(module, layer)
        else:
            layer.module = module
            module = family.inline.adopt(module)
            encoder.set_submodule(paths[layer.module], module)
        touch(module, layer)
    encoder.register_forward_pre_hook(refuse_cache, with_kwargs=True)
    encoder.register_forward_pre_hook(ReadBatch.of(encoder), with_kwargs=True)
    modules = attention_modules(encoder)
    shared = [module for module, layers in Counter(modules).items() if layers > 1]
    if shared:
        count_turns(encoder, {module: layer_of(module).turn for module in shared})
    return modules


def refuse_cache(encoder: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook of an attached encoder: refuse keys of earlier tokens before they meet keys of fewer heads.

    Raises:
        PapaError: When the cache is not empty and a layer differs from the original.
    """
    cache = kwargs.get("past_key_values")
    if cache is None or not hasattr(cache, "get_seq_length") or not cache.get_seq_length():
        return
    if any(isinstance(hook, ReadBatch) and hook.differs for hook in encoder._forward_pre_hooks.values()):
        raise cache_error(f"past_key_values holds {cache.get_seq_length()} tokens")


def _dispatch(module: nn.Module, layer: TouchedLayer) -> None:
    layer.config = _config_of(module)
    # GPT-2 keeps the request for attention matrices to itself; under eager attention the original grants it always.
    hidden = "output_attentions" in inspect.signature(type(module).forward).parameters
    layer.always_weights = hidden and layer.config._attn_implementation == "eager"
    module.config = papa_config(layer.config)  # type: ignore[assignment]


def _config_of(module: nn.Module) -> PretrainedConfig:
    config = getattr(module, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UnsupportedEncoderError(
            f"{type(module).__name__} has no configuration to find its attention function by, so it does not dispatch "
            "through transformers' attention interface: its family wants a subclass of InlineAttention (inline=...)."
        )
    return config


def detach(encoder: PreTrainedModel) -> None:
    """Undo :func:`attach`."""
    family, paths = family_of(encoder), {module: path for path, module in encoder.named_modules()}
    stop_turns(encoder)
    remove_hooks(encoder, lambda hook: hook is refuse_cache or isinstance(hook, ReadBatch))
    for module in dict.fromkeys(attention_modules(encoder)):
        if not is_touched(module):
            continue
        layer = untouch(module)
        if family.inline is not None and layer.module is not None:
            family.inline.release(module, layer.module)
            encoder.set_submodule(paths[module], layer.module)
        else:
            module.config = layer.config  # type: ignore[assignment]


@contextmanager
def observe_attention(encoder: nn.Module, observers: Sequence[Observer]) -> Iterator[None]:
    """Let observers see the dynamic attention of an encoder, swapped or not, as it was pretrained.

    Args:
        encoder: The encoder, with or without a task head.
        observers: One a layer; each gets the attention matrices (B, H, T, T) and the mask (B, T) of its layer.
    """
    with replace_mixing(encoder, [_observed(observer) for observer in observers]):
        yield


def _observed(observer: Observer) -> Mixing:
    def mix(attention: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        mixed = apply_attention(attention, value)
        observer(attention, mask)  # last, because it may overwrite the matrices
        return mixed

    return mix


@contextmanager
def replace_mixing(encoder: nn.Module, mixings: Sequence[Mixing | RowMixing]) -> Iterator[None]:
    """Mix the values of an encoder, swapped or not, by functions of its dynamic attention as it was pretrained.

    Args:
        encoder: The encoder, with or without a task head.
        mixings: One a layer; each gets the attention matrices (B, H, T, T), the values (B, H, T, h) and the mask
            (B, T) or None of its layer, and returns the mixed values (B, T, H, h). A
            :class:`~papa_lightning.attention.RowMixing` gets the matrices in pieces of some rows.
    """
    base = find_encoder(encoder)
    modules = attach(base)
    swapped = bool(mixers_of(modules[0]))
    try:
        for module, mixing in zip(modules, mixings, strict=True):
            layer_of(module).mixings.append(mixing)
            _suspend(module, True)
        yield
    finally:
        for module in modules:
            layer_of(module).mixings.clear()
            _suspend(module, False)
        if not swapped:
            detach(base)


def _suspend(module: nn.Module, suspended: bool) -> None:
    for mixer in mixers_of(module):
        mixer.heads.suspended = suspended
