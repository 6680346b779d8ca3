"""Finding the encoder in a module, its family, and its self-attention modules."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from papa_lightning.attention import Reach, TokenMixer
from papa_lightning.encoders.families.table import FAMILIES, EncoderFamily
from papa_lightning.encoders.seam.layer import mixers_of
from papa_lightning.encoders.seam.slots import SlotRule
from papa_lightning.errors import UnsupportedEncoderError


@dataclass(frozen=True, eq=False)
class SupportedEncoder:
    """A bare encoder with its family and modules, looked up once; not kept beyond a call, because an encoder changes.

    Args:
        model: The bare encoder, without task head or decoder.
        family: The family of the encoder.
    """

    model: PreTrainedModel
    family: EncoderFamily

    @classmethod
    def find(cls, model: nn.Module | SupportedEncoder) -> SupportedEncoder:
        """The encoder in a model, see :func:`find_encoder`; one that was found before is returned as it is."""
        if isinstance(model, SupportedEncoder):
            return model
        if not isinstance(model, PreTrainedModel):
            return _only_encoder(model)
        try:
            return cls.of(model)
        except UnsupportedEncoderError:
            if (inner := _inner_encoder(model)) is None:
                raise
            return inner

    @classmethod
    def of(cls, model: PreTrainedModel) -> SupportedEncoder:
        """The encoder of a model whose own type is supported; UnsupportedEncoderError for another."""
        family, base = family_of(model), cast(PreTrainedModel, model.base_model)
        # The configuration that T5EncoderModel saves has no is_encoder_decoder, but AutoModel adds a decoder.
        has_decoder = isinstance(base._modules.get("decoder"), PreTrainedModel)
        if has_decoder or getattr(base.config, "is_encoder_decoder", False):
            base = cast(PreTrainedModel, base.get_encoder())
        return cls(base, family if base.config is model.config else family_of(base))

    @cached_property
    def modules(self) -> list[nn.Module]:
        """The self-attention modules, one a layer in running order; UnsupportedEncoderError when there is none."""
        found = self.family.attention_modules(self.model)
        if not found:
            raise UnsupportedEncoderError(
                f"encoder ({type(self.model).__name__}) is of type {self.model.config.model_type!r}, but has no "
                f"{self.family.attention} module: was its attention replaced by another library? "
                "Pass the encoder as transformers builds it."
            )
        return found

    @property
    def distinct_modules(self) -> list[nn.Module]:
        """The self-attention modules without repetition, where a module serves several layers."""
        return list(dict.fromkeys(self.modules))

    @property
    def num_layers(self) -> int:
        """The number of layers L, as they are and not as configured."""
        return len(self.modules)

    @property
    def num_heads(self) -> int:
        """The number of heads H; UnsupportedEncoderError when the configuration does not name it."""
        heads = getattr(self.model.config, "num_attention_heads", None)
        if not isinstance(heads, int):
            raise UnsupportedEncoderError(
                f"the configuration of {type(self.model).__name__} has no num_attention_heads: give it one, or map the "
                "name that it has in its attribute_map."
            )
        return heads

    @property
    def head_size(self) -> int:
        """The size h of a head's values."""
        config = self.model.config
        return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

    @property
    def reaches(self) -> list[Reach]:
        """The keys that the queries of each layer can see."""
        return [self.family.reach(module) for module in self.modules]

    @property
    def slot_rule(self) -> SlotRule:
        """The place from which the slots of the constants are counted."""
        return self.family.slot_rule(self.model.config)

    @property
    def mixers(self) -> list[TokenMixer]:
        """The mixers that a swap installed, one a layer in layer order; empty when the encoder is not swapped."""
        held = {module: iter(mixers_of(module)) for module in self.modules}
        return [mixer for module in self.modules for mixer in [next(held[module], None)] if mixer is not None]


def find_encoder(model: nn.Module) -> PreTrainedModel:
    """The encoder in a model, without its task head; of an encoder-decoder, the encoder.

    Args:
        model: A PreTrainedModel, or any module that holds exactly one that is supported: compiled, with adapters, a
            sentence-transformers model, a LightningModule.

    Raises:
        UnsupportedEncoderError: When there is no supported encoder, or several; the message has the reason.
    """
    return SupportedEncoder.find(model).model


def is_supported(model: nn.Module) -> bool:
    """Whether :func:`find_encoder` accepts a module."""
    try:
        SupportedEncoder.find(model)
    except UnsupportedEncoderError:
        return False
    return True


def encoder_shape(encoder: nn.Module) -> tuple[int, int]:
    """The number of layers L and of heads H of an encoder, see :class:`SupportedEncoder`; the layers as they are."""
    found = SupportedEncoder.find(encoder)
    return found.num_layers, found.num_heads


def attention_reaches(encoder: nn.Module) -> list[Reach]:
    """The keys that the queries of each layer of an encoder can see."""
    return SupportedEncoder.find(encoder).reaches


def swapped_layers(encoder: nn.Module) -> list[TokenMixer]:
    """The mixers of a swapped encoder, one a layer in layer order; empty when it is not swapped."""
    return SupportedEncoder.find(encoder).mixers


def is_calibrated(encoder: nn.Module) -> bool:
    """Whether an encoder is swapped and has its constants."""
    mixers = swapped_layers(encoder)
    return bool(mixers) and all(mixer.calibrated for mixer in mixers)


def family_of(encoder: PreTrainedModel) -> EncoderFamily:
    """The family of an encoder; UnsupportedEncoderError for unknown types, and decoders of known ones."""
    model_type = encoder.config.model_type
    if model_type not in FAMILIES:
        model_type = _type_by_class(encoder) or model_type
    supported = f"Supported are: {', '.join(sorted(FAMILIES))}."
    if model_type not in FAMILIES:
        raise UnsupportedEncoderError(
            f"encoder is of unknown type {model_type!r}. {supported} Another type can be added with register_family."
        )
    if getattr(encoder.config, "is_decoder", False):
        raise UnsupportedEncoderError(
            f"encoder is a {model_type} made to be a decoder (is_decoder), but must be an encoder. {supported}"
        )
    return FAMILIES[model_type]


def _type_by_class(encoder: PreTrainedModel) -> str | None:
    """The supported model type that a custom class with a configuration of its own has its attention from, or None."""
    for base in type(encoder).__mro__[1:]:
        model_type: str = getattr(vars(base).get("config_class"), "model_type", "")
        if model_type in FAMILIES and any(FAMILIES[model_type].is_attention(module) for module in encoder.modules()):
            return model_type
    return None


def _only_encoder(module: nn.Module) -> SupportedEncoder:
    """The only supported encoder in a module that is no transformers model itself."""
    if not isinstance(module, nn.Module):
        raise UnsupportedEncoderError(
            f"encoder is a {type(module).__name__}, but must be a transformers PreTrainedModel or a module that holds "
            "one."
        )
    if any(isinstance(part, DistributedDataParallel) for part in module.modules()):
        raise UnsupportedEncoderError(
            "encoder is in a DistributedDataParallel, which counted its parameters already: pass the encoder itself, "
            "and swap it before it is wrapped."
        )
    if (found := _inner_encoder(module)) is not None:
        return found
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            family_of(part)  # raises, with the reason for this model
    raise UnsupportedEncoderError(
        f"{type(module).__name__} holds no transformers PreTrainedModel: pass one, or a module that has it as an "
        "attribute (a LightningModule makes it in __init__ or configure_model)."
    )


def _inner_encoder(module: nn.Module) -> SupportedEncoder | None:
    """The encoder of the only model in a module that is supported, apart from parts of that model; None without one."""
    found: dict[str, SupportedEncoder] = {}
    for path, part in module.named_modules():
        if isinstance(part, PreTrainedModel) and not any(path.startswith(f"{outer}.") for outer in found):
            with suppress(UnsupportedEncoderError):
                found[path] = SupportedEncoder.of(part)
    if len(found) > 1:
        raise UnsupportedEncoderError(
            f"{type(module).__name__} holds several encoders ({', '.join(found)}): name one with encoder=..., or "
            "pass it."
        )
    return next(iter(found.values()), None)
