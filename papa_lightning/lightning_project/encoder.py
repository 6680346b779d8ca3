"""The encoder of a LightningModule, and the origin of its constants."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from papa_lightning.calibration import AttentionConstants, ConstantsMismatchWarning, without_path
from papa_lightning.either_lightning import L, is_a, is_overridden
from papa_lightning.encoders import find_encoder, swapped_layers
from papa_lightning.errors import UnsupportedEncoderError


def discover_encoder(module: nn.Module, name: str | None = None) -> PreTrainedModel:
    """The one supported encoder that a module holds, bare.

    Args:
        module: Usually a LightningModule.
        name: Attribute of the encoder, with dots for nesting, needed when there are several; may hold a wrapper of it.

    Raises:
        UnsupportedEncoderError: When there is none, several and no name, or another object of that name.
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
    """Call a module's ``configure_model``, which may make the encoder; Lightning does so again after ``setup``."""
    if is_overridden("configure_model", module):
        strategy, precision = trainer.strategy, trainer.precision_plugin
        with strategy.tensor_init_context(), strategy.model_sharded_context(), precision.module_init_context():
            module.configure_model()


def averaged_copies(trainer: L.Trainer, module: L.LightningModule) -> Iterator[L.LightningModule]:
    """Copies of a module that callbacks average; none before their ``setup``, which copies a swapped module then."""
    names = ("WeightAveraging", "StochasticWeightAveraging")
    averaging = (one for one in trainer.callbacks if is_a(one, *names))  # type: ignore[attr-defined]
    for callback in averaging:
        for held in vars(callback).values():
            parts = held.modules() if isinstance(held, nn.Module) else ()
            yield from (part for part in parts if type(part) is type(module) and part is not module)


_NOTE = "papa_origin"


@dataclass(frozen=True)
class Origin:
    """Origin of constants: identifier that a callback and its copies share, and description for a sentence."""

    callback: str
    text: str


def note_origin(encoder: nn.Module, origin: Origin) -> None:
    """Note the origin of the constants of a swapped encoder, until the next swap."""
    vars(swapped_layers(encoder)[0])[_NOTE] = origin


def origin_of(encoder: nn.Module) -> Origin | None:
    """Origin from :func:`note_origin`; None for constants that came with the module or its state."""
    layers = swapped_layers(encoder)
    return vars(layers[0]).get(_NOTE) if layers else None


def origin_text(encoder: nn.Module) -> str:
    """Origin of the constants of an encoder, for a sentence."""
    origin = origin_of(encoder)
    return "those that the module brought along" if origin is None else origin.text


def described(constants: AttentionConstants, trainer: L.Trainer) -> str:
    """Data from which a fit made constants, for a sentence in a later one."""
    datamodule = getattr(trainer, "datamodule", None)
    data = constants.metadata.get("data") or (type(datamodule).__name__ if datamodule else "the train data")
    return f"averages over {constants.metadata['sequences']} sequences of {data} in an earlier fit"


def warn_of_other_data(constants: AttentionConstants, data: Mapping[str, Any]) -> None:
    """Warn of constants that were made with another tokenizer or layout than the data of `describe_data` have."""
    keys = ("tokenizer", "layout", "preset")
    known = [key for key in keys if key in constants.metadata and key in data]
    differing = [key for key in known if constants.metadata[key] != data[key]]
    if differing:
        parts = "; ".join(f"{key} {constants.metadata[key]!r}, but the data have {data[key]!r}" for key in differing)
        warnings.warn(
            f"the constants were made with {parts}: the average is of other rows than these. Calibrate on these data, "
            "or make the data the same way.",
            ConstantsMismatchWarning,
            stacklevel=2,
        )


def describe_data(trainer: L.Trainer) -> dict[str, Any]:
    """Tokenizer, layout and data of the Trainer's datamodule, as far as it has them."""
    datamodule = getattr(trainer, "datamodule", None)
    names = {"tokenizer": "tokenizer_name", "layout": "layout", "preset": "preset", "data": "description"}
    found = {key: getattr(datamodule, name, None) for key, name in names.items()}
    known = {key: value for key, value in found.items() if isinstance(value, str)}
    return known | ({"tokenizer": without_path(known["tokenizer"])} if "tokenizer" in known else {})
