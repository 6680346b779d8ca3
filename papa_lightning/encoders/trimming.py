"""A swapped encoder without the query and key weights of heads that are constant for good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.encoders.finding import attention_modules, family_of, head_size
from papa_lightning.encoders.projections.cut import CutProjection
from papa_lightning.encoders.projections.trimmed import (
    TRIMMED,
    Slices,
    TrimmedProjection,
    left_out_error,
    slices_of,
    trim_projection,
    trimmed_parameter,
)
from papa_lightning.encoders.seam.layer import mixers_of


def trim(encoder: PreTrainedModel) -> None:
    """Let a swapped encoder lose the query and key weights of its constant heads, for good.

    Args:
        encoder: The bare encoder, swapped; its constants may still be to come.
    """
    family = family_of(encoder)
    for module, heads in _dynamic_heads(encoder).items():
        for name in family.projections:
            trim_projection(module, name, heads)
        for path, slices in _biases(encoder, module, heads):
            module._parameters[path] = trimmed_parameter(cast(nn.Parameter, module._parameters[path]), slices)
        for name in _idle_parts(encoder, module, heads):
            setattr(module, name, nn.Identity())


def trimmed_state(encoder: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict that an encoder would have after :func:`trim`, without what has no entries; nothing is changed.

    Args:
        encoder: The bare encoder, swapped, trimmed or not.
    """
    state: dict[str, Tensor] = dict(encoder.state_dict())
    paths = {module: path for path, module in encoder.named_modules()}
    for module, heads in _dynamic_heads(encoder).items():
        for name in family_of(encoder).projections:
            projection = cast(CutProjection, module._modules.get(name))
            if type(projection) not in TRIMMED:  # absent, an adapter's, or trimmed already
                continue
            slices, key = slices_of(projection, heads), f"{paths[module]}.{name}."
            for leaf, dim in (("weight", projection.rows_dim), ("bias", 0)):
                if key + leaf in state and not slices.complete:
                    state[key + leaf] = slices.cut(state[key + leaf], dim)
        for path, slices in _biases(encoder, module, heads):
            state[f"{paths[module]}.{path}"] = slices.cut(state[f"{paths[module]}.{path}"], 0)
        for name in _idle_parts(encoder, module, heads):
            state = {key: held for key, held in state.items() if not key.startswith(f"{paths[module]}.{name}.")}
    return {key: held for key, held in state.items() if held.numel()}


def is_trimmed(encoder: nn.Module) -> bool:
    """Whether some heads of an encoder have lost their query and key weights."""
    return any(isinstance(part, TrimmedProjection) for part in encoder.modules())


def refuse_trimmed(encoder: nn.Module) -> None:
    """Refuse to look for dynamic attention where it is gone.

    Raises:
        PapaError: Says what to do instead.
    """
    if is_trimmed(encoder):
        raise left_out_error()


def _dynamic_heads(encoder: PreTrainedModel) -> dict[nn.Module, tuple[int, ...]]:
    """The heads of each self-attention module that need a query and a key in one of its layers, ascending."""
    return {
        module: tuple(sorted({head for mixer in mixers_of(module) for head in mixer.dynamic_when_calibrated()}))
        for module in dict.fromkeys(attention_modules(encoder))
    }


def _biases(encoder: PreTrainedModel, module: nn.Module, heads: tuple[int, ...]) -> Iterator[tuple[str, Slices]]:
    """Parameters of the module itself that only queries and keys depend on (DeBERTa's q_bias): one slice a head."""
    count, width = mixers_of(module)[0].heads.num_heads, head_size(encoder)
    for path in family_of(encoder).query_parameters:
        held = module._parameters.get(path)
        if held is not None and held.shape[0] == count * width and len(heads) < count:
            yield path, Slices(count, heads)


def _idle_parts(encoder: PreTrainedModel, module: nn.Module, heads: tuple[int, ...]) -> list[str]:
    """Parts of the module that only queries and keys go through (Qwen3's norms), where there are none."""
    names = {path.partition(".")[0] for path in family_of(encoder).query_parameters if "." in path}
    return [name for name in sorted(names & module._modules.keys()) if not heads]
