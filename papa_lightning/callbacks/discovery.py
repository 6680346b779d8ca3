"""Finding the encoder in somebody's LightningModule."""

from __future__ import annotations

from operator import attrgetter

from torch import nn
from transformers import PreTrainedModel

from papa_lightning.encoders import find_encoder, is_supported
from papa_lightning.exceptions import UnsupportedEncoderError


def discover_encoder(module: nn.Module, name: str | None = None) -> PreTrainedModel:
    """The one supported encoder that a module holds.

    Args:
        module: Usually a LightningModule.
        name: Attribute of the encoder, with dots for nesting; needed when there are several.

    Returns:
        The bare encoder.

    Raises:
        UnsupportedEncoderError: When there is none, when there are several and no name, or when the one named is
            not a supported encoder.
    """
    if name is not None:
        try:
            named = attrgetter(name)(module)
        except AttributeError as error:
            raise UnsupportedEncoderError(
                f"encoder is {name!r}, but {type(module).__name__} has no such attribute: pass the attribute that "
                "holds the transformers model."
            ) from error
        return find_encoder(named)
    models = _outermost_models(module)
    supported = {path: model for path, model in models.items() if is_supported(model)}
    if len(supported) > 1:
        raise UnsupportedEncoderError(
            f"{type(module).__name__} holds several encoders ({', '.join(supported)}): name one with encoder=..."
        )
    if supported:
        return find_encoder(next(iter(supported.values())))
    for model in models.values():
        find_encoder(model)  # raises, with the reason for this model
    raise UnsupportedEncoderError(
        f"{type(module).__name__} holds no transformers PreTrainedModel: make the encoder in __init__ or in "
        "configure_model, as an attribute of the module."
    )


def _outermost_models(module: nn.Module) -> dict[str, PreTrainedModel]:
    found: dict[str, PreTrainedModel] = {}
    for path, part in module.named_modules():
        nested = any(path.startswith(f"{outer}.") or outer == "" for outer in found)
        if isinstance(part, PreTrainedModel) and not nested:
            found[path] = part
    return found
