"""Reading what an encoder was swapped to out of a state dict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from papa_lightning.attention import read_extra_state
from papa_lightning.encoders.finding import attention_modules, find_encoder
from papa_lightning.encoders.swap import swap_attention


def swap_as_saved(encoder: nn.Module, state: Mapping[str, Tensor], prefix: str | None = None) -> bool:
    """Swap an encoder to what a state dict was saved with, kinds, heads and all, so that it loads strictly.

    The encoder waits for its constants afterwards: ``load_state_dict`` brings them.

    Args:
        encoder: A supported encoder, or a module that holds one: in ``on_load_checkpoint`` a LightningModule passes
            itself and ``checkpoint["state_dict"]``, and then loads what a run with a callback of ours saved.
        state: A state dict that holds the encoder's.
        prefix: What the keys of the bare encoder begin with in ``state``, e.g. "encoder."; None: those of ``encoder``.

    Returns:
        Whether the state dict was saved with a swapped encoder; if not, nothing is changed.

    Raises:
        UnsupportedEncoderError: For a model that is not a supported encoder.
        PapaError: When the encoder has other layers or heads than the one that was saved.
    """
    base = find_encoder(encoder)
    if prefix is None:
        place = next(path for path, module in encoder.named_modules() if module is base)
        prefix = f"{place}." if place else ""
    paths = {module: path for path, module in base.named_modules()}
    layers: list[Mapping[str, Any]] = []
    modules = attention_modules(base)
    for layer, module in enumerate(modules):
        added = f"{prefix}{paths[module]}.papa."
        if modules.count(module) > 1:  # it serves several layers
            added += f"{modules[:layer].count(module)}."
        if f"{added}_extra_state" not in state:
            return False
        layers.append(read_extra_state(state[f"{added}_extra_state"]))
    swap_attention(
        encoder,
        [saved["kind"] for saved in layers],
        heads={layer: saved["heads"] for layer, saved in enumerate(layers)},
        max_length=layers[0]["max_length"],
        options=[saved["options"] for saved in layers],
    )
    return True
