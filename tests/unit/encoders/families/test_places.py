"""Arguments by the places of moved tokens, for encoders in whatever model they come."""

import pytest
import torch
from torch.testing import assert_close
from transformers import T5Config, T5EncoderModel, T5Model
from unit.encoders.tiny_encoders import LENGTH, make_constants, make_inputs, randomize

from papa_lightning import calibrate, restore_attention, swap_attention
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.packing import Packer

SIZES = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 3, "num_heads": 4}


def build(model_class=T5EncoderModel):
    config = T5Config(**SIZES, dropout_rate=0.0)
    return randomize(model_class(config)).double()


@torch.no_grad()
def packed(model, inputs):
    """The hidden states (B, T, d) of a batch whose tokens are moved together; 0 at padding."""
    packer = Packer.of(model)
    sequences = packer.pack(inputs)
    states = torch.zeros(*inputs["input_ids"].shape, 32, dtype=torch.float64)
    for group in sequences.groups(10_000):
        batch = sequences.batch(group)
        with batch.prepared(torch.device("cpu")) as given:
            batch.put(packer.encoder.model(**given).last_hidden_state, states)
    return states


@pytest.mark.parametrize("swapped", [False, True])
def test_an_encoder_without_decoder_is_packed(swapped):
    model, inputs = build(), make_inputs()  # with padding on the left and between tokens
    if swapped:
        swap_attention(model, "constant", constants=make_constants(), heads=[(0, 1), (1, 0), (2, 3)])
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state * inputs["attention_mask"][..., None]
    assert_close(packed(model, inputs), expected)


def test_an_encoder_without_decoder_is_calibrated_as_one_with():
    model, whole, inputs = build(), build(T5Model), make_inputs()
    whole.encoder.load_state_dict(model.encoder.state_dict())
    assert_close(calibrate(model, [inputs], LENGTH).values, calibrate(whole, [inputs], LENGTH).values)


def test_the_table_of_positions_is_idle_where_no_head_reads_it():
    model = build()
    swap_attention(model, "constant", constants=make_constants())
    model(**make_inputs()).last_hidden_state.sum().backward()
    without = [name for name, own in model.named_parameters() if own.requires_grad and own.grad is None]
    assert without == []
    restore_attention(model)
    assert all(parameter.requires_grad for parameter in SupportedEncoder.find(model).model.parameters())
