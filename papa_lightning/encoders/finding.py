"""Finding the encoder in what a user passes, and its self-attention."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from papa_lightning.attention import Reach
from papa_lightning.encoders.families.table import FAMILIES, EncoderFamily, register_family
from papa_lightning.errors import UnsupportedEncoderError


def find_encoder(model: nn.Module) -> PreTrainedModel:
    """The encoder in a model, without its task head; of an encoder-decoder, the encoder.

    Args:
        model: A PreTrainedModel, or any module that holds exactly one that is supported: compiled, with adapters, a
            sentence-transformers model, a LightningModule.

    Returns:
        The bare encoder, a part of ``model``.

    Raises:
        UnsupportedEncoderError: When there is no supported encoder, or several; the message has the reason.
    """
    if isinstance(model, PreTrainedModel):
        return _bare_encoder(model)
    if not isinstance(model, nn.Module):
        raise UnsupportedEncoderError(
            f"encoder is a {type(model).__name__}, but must be a transformers PreTrainedModel or a module that holds "
            "one."
        )
    if any(isinstance(part, DistributedDataParallel) for part in model.modules()):
        raise UnsupportedEncoderError(
            "encoder is in a DistributedDataParallel, which counted its parameters already: pass the encoder itself, "
            "and swap it before it is wrapped."
        )
    return _bare_encoder(_only_supported(model))


def _bare_encoder(model: PreTrainedModel) -> PreTrainedModel:
    if not _is_known(model) and (inner := _inner_encoders(model)):
        return _the_only(inner, model)
    family_of(model)
    base = cast(PreTrainedModel, model.base_model)
    # T5EncoderModel saves a configuration that says it is none, from which AutoModel makes one with a decoder.
    if getattr(base.config, "is_encoder_decoder", False) or isinstance(base._modules.get("decoder"), PreTrainedModel):
        return cast(PreTrainedModel, base.get_encoder())
    return base


def _only_supported(module: nn.Module) -> PreTrainedModel:
    models = outermost_models(module)
    supported: dict[str, PreTrainedModel] = {}
    for path, model in models.items():
        if _is_known(model):
            supported[path] = model
        else:
            supported |= {f"{path}.{inside}": one for inside, one in _inner_encoders(model).items()}
    if supported:
        return _the_only(supported, module)
    for model in models.values():
        family_of(model)  # raises, with the reason for this model
    raise UnsupportedEncoderError(
        f"{type(module).__name__} holds no transformers PreTrainedModel: pass one, or a module that has it as an "
        "attribute (a LightningModule makes it in __init__ or configure_model)."
    )


def _the_only(encoders: dict[str, PreTrainedModel], module: nn.Module) -> PreTrainedModel:
    if len(encoders) > 1:
        raise UnsupportedEncoderError(
            f"{type(module).__name__} holds several encoders ({', '.join(encoders)}): name one with encoder=..., or "
            "pass it."
        )
    return next(iter(encoders.values()))


def _is_known(model: PreTrainedModel) -> bool:
    try:
        family_of(model)
    except UnsupportedEncoderError:
        return False
    return True


def _inner_encoders(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """The encoders inside a model of a type that is none itself: path -> encoder. Decoders do not count."""
    inner: dict[str, PreTrainedModel] = {}
    for path, part in model.named_modules():
        nested = any(path.startswith(f"{outer}.") for outer in inner)
        if path and not nested and isinstance(part, PreTrainedModel) and _is_known(part) and is_supported(part):
            inner[path] = find_encoder(part)
    return inner


def outermost_models(module: nn.Module) -> dict[str, PreTrainedModel]:
    """The transformers models in a module that are not part of another: path -> model."""
    found: dict[str, PreTrainedModel] = {}
    for path, part in module.named_modules():
        nested = any(path.startswith(f"{outer}.") or outer == "" for outer in found)
        if isinstance(part, PreTrainedModel) and not nested:
            found[path] = part
    return found


def family_of(encoder: PreTrainedModel) -> EncoderFamily:
    """The family of an encoder.

    Raises:
        UnsupportedEncoderError: When its type is unknown, or it is the decoder of a type that also makes encoders.
    """
    config = encoder.config
    model_type = config.model_type
    if model_type not in FAMILIES and not entry_points(group="papa_lightning.families", name=model_type):
        model_type = _type_by_class(encoder) or model_type
    if model_type not in FAMILIES:
        for found in entry_points(group="papa_lightning.families", name=model_type):
            register_family(model_type, found.load())
    supported = f"Supported are: {', '.join(sorted(FAMILIES))}."
    if model_type not in FAMILIES:
        raise UnsupportedEncoderError(
            f"encoder is of unknown type {model_type!r}. {supported} Another type can be added with register_family."
        )
    if getattr(config, "is_decoder", False):
        raise UnsupportedEncoderError(
            f"encoder is a {model_type} made to be a decoder (is_decoder), but must be an encoder. {supported}"
        )
    return FAMILIES[model_type]


def _type_by_class(encoder: PreTrainedModel) -> str | None:
    """The type of a model of somebody's own class, by the class of transformers that it stands on, if there is one.

    A subclass with a configuration of its own has another model_type, but the attention of the class above.
    """
    for base in type(encoder).__mro__[1:]:
        model_type = getattr(vars(base).get("config_class"), "model_type", None)
        family = FAMILIES.get(model_type or "")
        if family is not None and any(family.is_attention(module) for module in encoder.modules()):
            return model_type
    return None


def is_supported(model: nn.Module) -> bool:
    """Whether :func:`find_encoder` accepts a module."""
    try:
        find_encoder(model)
    except UnsupportedEncoderError:
        return False
    return True


def attention_modules(encoder: PreTrainedModel) -> list[nn.Module]:
    """The self-attention modules of a bare encoder, one a layer in the order in which the layers run.

    Raises:
        UnsupportedEncoderError: When there is none.
    """
    family = family_of(encoder)
    found = family.attention_modules(encoder)
    if not found:
        raise UnsupportedEncoderError(
            f"encoder ({type(encoder).__name__}) is of type {encoder.config.model_type!r}, but has no "
            f"{family.attention} module: was its attention replaced by another library? "
            "Pass the encoder as transformers builds it."
        )
    return found


def attention_reaches(encoder: PreTrainedModel) -> list[Reach]:
    """Which keys the queries of each layer of a bare encoder can see at all."""
    return [family_of(encoder).reach(module) for module in attention_modules(encoder)]


def encoder_shape(encoder: PreTrainedModel) -> tuple[int, int]:
    """Number of layers L and of heads H of a bare encoder; the layers as they are, not as configured.

    Raises:
        UnsupportedEncoderError: When the configuration does not name the number of heads.
    """
    heads = getattr(encoder.config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise UnsupportedEncoderError(
            f"the configuration of {type(encoder).__name__} has no num_attention_heads: give it one, or map the name "
            "that it has in its attribute_map."
        )
    return len(attention_modules(encoder)), heads


def head_size(encoder: PreTrainedModel) -> int:
    """The size h of a head's values."""
    config = encoder.config
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
