"""The weights of plain and swapped encoders: state dicts of one for the other, and a fingerprint."""

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from papa_lightning.attention import TokenMixer

Value = TypeVar("Value")

_ADDED = ".papa."


class PlainStateWarning(UserWarning):
    """A swapped encoder loaded the weights of a plain one, without constants."""


def plain_state(state: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict without what a swap added; to keep that see :func:`~papa_lightning.encoders.swap_as_saved`.

    Example:
        >>> plain_state({"bert.attention.self.query.bias": 1, "bert.attention.self.papa.constants": 2})
        {'bert.attention.self.query.bias': 1}
    """
    return {key: value for key, value in state.items() if _ADDED not in key}


def accept_plain_states(encoder: nn.Module) -> None:
    """Let a swapped encoder load the state dict of a plain one strictly, and keep its constants."""
    encoder.register_load_state_dict_pre_hook(_complete)  # type: ignore[no-untyped-call]


def refuse_plain_states(encoder: nn.Module) -> None:
    """Undo :func:`accept_plain_states`."""
    hooks: dict[int, Any] = encoder._load_state_dict_pre_hooks
    for key in [key for key, hook in hooks.items() if hook.hook is _complete]:  # handles do not survive copies
        del hooks[key]


def _complete(encoder: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = encoder.state_dict(prefix=prefix)
    if any(key.startswith(prefix) and _ADDED in key for key in state) or not plain_state(own).keys() <= state.keys():
        return
    state.update({key: value for key, value in own.items() if _ADDED in key})
    calibrated = all(part.calibrated for part in encoder.modules() if isinstance(part, TokenMixer))
    outcome = "keeps the constants that it has" if calibrated else "waits for constants, with all heads dynamic"
    warnings.warn(
        f"the state dict has no constants, so it was saved with a plain encoder: the swapped encoder {outcome}.",
        PlainStateWarning,
        stacklevel=2,
    )


def weights_fingerprint(encoder: PreTrainedModel) -> str | None:
    """SHA-256 over the parameters but the pooler and what a swap added; None when this process has no weights."""
    if any(isinstance(parameter, DTensor) or parameter.is_meta for parameter in encoder.parameters()):
        return None
    digest = hashlib.sha256()
    for name, parameter in sorted(encoder.named_parameters()):
        if name.startswith("pooler.") or ".papa." in name:
            continue
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
