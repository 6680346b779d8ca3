"""Layers that are not run again, on every family: the same hidden states as without, and nothing left behind."""

import copy

import pytest
import torch
from conformance.tiny_models import CASES, cases, encode, encoder_of, make_inputs, plain, snapshot

from papa_lightning.attention import RowMixing
from papa_lightning.encoders import SupportedEncoder, replace_mixing
from papa_lightning.encoders.replay import LayerReplay

#: Families whose layers share their weights, so that every run is a whole one.
SHARED = {"albert", "albert-groups"}


def mixing(scale):
    return RowMixing(lambda attention, value: attention.mix(value) * scale[0])


@cases()
def test_a_run_from_a_layer_on_gives_what_a_whole_run_gives(name):
    model, inputs, layers = copy.deepcopy(plain(name)), make_inputs(name), CASES[name].layers
    before = snapshot(model)
    scales = [[1.0] for _ in range(layers)]
    with torch.no_grad(), replace_mixing(model, [mixing(scale) for scale in scales]) as found:
        expected = []
        for scale in scales:
            scale[0] = 0.5
            expected.append(encode(model, inputs))
            scale[0] = 1.0
        replay = LayerReplay(found)
        with replay.watching():
            replay.keep()
            encode(model, inputs)
            for layer, scale in enumerate(scales):
                scale[0] = 0.5
                replay.reuse(layer)
                assert torch.equal(encode(model, inputs), expected[layer])
                scale[0] = 1.0
        assert replay.reused == (0 if name in SHARED else sum(range(layers)))
    assert snapshot(model) == before
    assert not any("forward" in vars(part) for part in encoder_of(model).modules())


def test_other_inputs_are_computed_as_a_whole():
    model = copy.deepcopy(plain("bert"))
    one, other = make_inputs("bert"), make_inputs("bert", seed=1)
    masked = {**one, "attention_mask": torch.ones_like(one["attention_mask"])}
    expected = [encode(model, inputs) for inputs in (other, masked, one, one)]
    replay = LayerReplay(SupportedEncoder.find(model))
    with replay.watching():
        replay.keep()
        encode(model, one)
        replay.reuse(2)
        for inputs, states in zip((other, masked, one), expected, strict=False):
            assert torch.equal(encode(model, inputs), states)
        assert replay.reused == 0  # the third call of one that was kept
        replay.reuse(2)
        assert torch.equal(encode(model, one), expected[3])
        assert replay.reused == 2


def test_a_layer_with_a_forward_of_another_library_is_run():
    model = copy.deepcopy(plain("bert"))
    block = encoder_of(model).encoder.layer[1]
    block.forward = own = block.forward
    replay = LayerReplay(SupportedEncoder.find(model))
    with replay.watching():
        replay.keep()
        states = encode(model, make_inputs("bert"))
        replay.reuse(2)
        assert torch.equal(encode(model, make_inputs("bert")), states)
    assert replay.reused == 0
    assert vars(block)["forward"] is own


def test_an_error_leaves_nothing_behind():
    model = copy.deepcopy(plain("bert"))
    before = snapshot(model)
    with pytest.raises(IndexError), LayerReplay(SupportedEncoder.find(model)).watching():
        encode(model, {"input_ids": torch.full((1, 3), 999)})
    assert snapshot(model) == before
    assert not any("forward" in vars(part) for part in model.modules())
