"""Encoders inside other models of transformers, and custom subclasses."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTModel,
)

from papa_lightning import restore_attention, swap_attention
from papa_lightning.encoders import encoder_shape, find_encoder, is_supported
from papa_lightning.errors import UnsupportedEncoderError

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
TEXT = {**SIZES, "vocab_size": 9, "max_position_embeddings": 16}


class OwnConfig(PreTrainedConfig):
    model_type = "my-classifier"


class TypedConfig(BertConfig):
    model_type = "my-bert"


class MyBert(BertModel):
    config_class = TypedConfig


def own(prefix="", **parts):
    """A custom model that holds others."""

    class Own(PreTrainedModel):
        config_class = OwnConfig
        base_model_prefix = prefix

        def __init__(self):
            super().__init__(OwnConfig())
            for name, part in parts.items():
                setattr(self, name, part)

    return Own()


def bert(**options):
    return BertModel(BertConfig(**TEXT, **options))


@pytest.mark.parametrize("prefix", ["", "encoder", "backbone", "model"])
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.nn.ModuleDict({"any": model})])
def test_in_a_model_of_somebodys_own(prefix, wrap):
    encoder = bert()
    model = wrap(own(prefix, encoder=encoder, head=torch.nn.Linear(8, 2)))
    assert find_encoder(model) is encoder
    before = encoder.state_dict().keys()
    swap_attention(model, "gated", max_length=8)
    restore_attention(model)
    assert encoder.state_dict().keys() == before


def test_beside_a_decoder_that_the_configuration_denies():
    """As AutoModel makes it of a folder in which a T5EncoderModel was saved."""
    sizes = {"vocab_size": 9, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2}
    whole = T5Model(T5Config(**sizes, is_encoder_decoder=False))
    assert find_encoder(whole) is whole.encoder
    assert encoder_shape(whole.encoder) == encoder_shape(T5EncoderModel(T5Config(**sizes))) == (2, 2)


def test_in_an_encoder_decoder():
    decoder = BertLMHeadModel(BertConfig(**TEXT, is_decoder=True, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=bert(), decoder=decoder)
    assert find_encoder(model) is model.encoder


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.nn.ModuleDict({"any": model})])
def test_two_inside_are_named(wrap):
    vision = ViTModel(ViTConfig(**SIZES, image_size=4, patch_size=2))
    dual = VisionTextDualEncoderModel(vision_model=vision, text_model=bert())
    towers = own(query=bert(), passage=RobertaModel(RobertaConfig(**TEXT)))
    for model, names in ((dual, ("vision_model", "text_model")), (towers, ("query", "passage"))):
        whole = wrap(model)
        prefix = "any." if whole is not model else ""
        expected = ", ".join(f"{prefix}{name}" for name in names)
        with pytest.raises(UnsupportedEncoderError, match=rf"several encoders \({expected}\): name one with encoder="):
            find_encoder(whole)
    assert find_encoder(dual.text_model) is dual.text_model


def test_a_subclass_with_a_type_of_its_own():
    config = TypedConfig(**TEXT)
    model, stock = MyBert(config), bert()
    assert find_encoder(model) is model
    assert encoder_shape(model) == (1, 2)
    assert find_encoder(own(inner=model)) is model
    stock.load_state_dict(model.state_dict())
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    swap_attention(model, "shared", max_length=8)
    swap_attention(stock, "shared", max_length=8)
    assert torch.equal(model.eval()(**inputs).last_hidden_state, stock.eval()(**inputs).last_hidden_state)


def test_nothing_inside_is_refused():
    model = own(head=torch.nn.Linear(8, 2))
    assert not is_supported(model)
    with pytest.raises(UnsupportedEncoderError, match=r"unknown type 'my-classifier'.*register_family"):
        find_encoder(model)
