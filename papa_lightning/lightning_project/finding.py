"""The encoder of a LightningModule."""

from __future__ import annotations

from operator import attrgetter

from torch import nn
from transformers import PreTrainedModel

from papa_lightning.either_lightning import L, is_overridden
from papa_lightning.encoders import find_encoder
from papa_lightning.errors import UnsupportedEncoderError


def discover_encoder(module: nn.Module, name: str | None = None) -> PreTrainedModel:
    """The one supported encoder that a module holds.

    Args:
        module: Usually a LightningModule.
        name: Attribute of the encoder, with dots for nesting; needed when there are several. What it holds may wrap
            the transformers model: compiled, with adapters, as a sentence-transformers model.

    Returns:
        The bare encoder.

    Raises:
        UnsupportedEncoderError: When there is none, when there are several and no name, or when the one named is
            not a supported encoder.
    """
    if name is None:
        return find_encoder(module)
    try:
        named = attrgetter(name)(module)
    except AttributeError as error:
        raise UnsupportedEncoderError(
            f"encoder is {name!r}, but {type(module).__name__} has no such attribute: pass the attribute that "
            "holds the transformers model."
        ) from error
    return find_encoder(named)


def make_late_encoder(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Call ``configure_model`` of a module that has one, because its encoder may be made there.

    Lightning calls it only after ``setup`` of the callbacks, and asks that it can be called twice.
    """
    if is_overridden("configure_model", module):
        strategy, precision = trainer.strategy, trainer.precision_plugin
        with strategy.tensor_init_context(), strategy.model_sharded_context(), precision.module_init_context():
            module.configure_model()
