"""Modules that are replaced by subclasses: no class of a module changes, and the originals come back."""

import pytest
import torch
from conformance.tiny_models import build, make_constants, make_inputs, swapped
from unit.encoders.tiny_encoders import snapshot

from papa_lightning import restore_attention, swap_attention
from papa_lightning.errors import UnsupportedEncoderError


@pytest.mark.parametrize("name", ["albert", "albert-groups", "deberta", "mpnet", "roformer"])
def test_originals_are_put_back(name):
    model = build(name)
    before, types = snapshot(model), {module: type(module) for module in model.modules()}
    swap_attention(model, "constant", constants=make_constants(name))
    assert {id(module) for module in model.modules()} != set(before["identity"])
    assert all(type(module) is own for module, own in types.items())
    assert snapshot(restore_attention(model)) == before


@pytest.mark.parametrize("name", ["albert-groups", "deberta"])
def test_a_forward_of_another_library_leaves_the_encoder_as_it_was(name):
    model, inputs = build(name), make_inputs(name)
    last = [module for module in model.modules() if hasattr(module, "in_proj") or hasattr(module, "attention_dropout")][
        -1
    ]
    last.forward = last.forward
    before = snapshot(model)
    with pytest.raises(UnsupportedEncoderError, match="has a forward that another library gave it"):
        swap_attention(model, "constant", constants=make_constants(name))
    assert snapshot(model) == before
    del last.forward
    with torch.no_grad():
        assert not torch.equal(model(**inputs)[0], swapped(name, "all")(**inputs)[0])
