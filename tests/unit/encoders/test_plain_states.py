"""State dicts of plain encoders in swapped ones, and the other way round."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from unit.encoders.tiny_encoders import build, make_constants, make_inputs

from papa_lightning import restore_attention, swap_attention
from papa_lightning.encoders import (
    PlainStateWarning,
    gate_logits,
    is_calibrated,
    plain_state,
    swap_as_saved,
    swapped_layers,
)

PARTIAL = [(0, 1), (1, 0)]


def outputs(model):
    with torch.no_grad():
        return model(**make_inputs())[0]


class Module(nn.Module):
    """An encoder under a name, beside something else."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.bert, self.head = build(seed=seed), nn.Linear(3, 3)


def assert_constants(encoder):
    for layer, values in zip(swapped_layers(encoder), make_constants().values, strict=True):
        assert torch.equal(layer.constants.detach(), values[list(layer.constant_heads)])


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_a_swapped_encoder_keeps_its_constants(kind, assign):
    """As if the weights had been loaded before the swap."""
    heads = {"heads": PARTIAL} if kind == "constant" else {}
    module, other = Module(), Module(seed=1)
    swap_attention(module.bert, kind, constants=make_constants(), **heads)
    state = other.state_dict()
    keys = list(state)
    with pytest.warns(PlainStateWarning, match="saved with a plain encoder.*keeps the constants that it has"):
        module.load_state_dict(state, strict=True, assign=assign)
    assert list(state) == keys
    assert_constants(module.bert)
    swap_attention(other.bert, kind, constants=make_constants(), **heads)
    assert torch.equal(outputs(module.bert), outputs(other.bert))


def test_a_waiting_encoder_goes_on_waiting():
    module, other = Module(), Module(seed=1)
    swap_attention(module.bert, "constant", max_length=10)
    with pytest.warns(PlainStateWarning, match="waits for constants"):
        module.load_state_dict(other.state_dict(), strict=True)
    assert not is_calibrated(module.bert)
    assert torch.equal(outputs(module.bert), outputs(other.bert))


def test_gates_stay_as_they_are():
    encoder = swap_attention(build(), "gated", constants=make_constants())
    with torch.no_grad():
        gate_logits(encoder)[0].fill_(3.0)
    with pytest.warns(PlainStateWarning):
        encoder.load_state_dict(build(seed=1).state_dict(), strict=True)
    assert (gate_logits(encoder)[0] == 3.0).all()


@pytest.mark.parametrize("lost", ["papa.constants", "papa._extra_state", "layer.0.attention.self.papa"])
def test_a_state_that_lost_a_part_of_what_was_added_is_refused(lost):
    state = swap_attention(build(), "constant", constants=make_constants()).state_dict()
    damaged = {key: value for key, value in state.items() if lost not in key}
    assert len(damaged) < len(state)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*papa"):
        swap_attention(build(), "constant", max_length=10).load_state_dict(damaged, strict=True)


def test_a_state_without_the_encoder_is_none_of_a_plain_encoder():
    """As an adapter's or a probe's: nothing is said about the encoder, so all of it is reported as missing."""
    module = Module()
    swap_attention(module.bert, "constant", constants=make_constants())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = module.load_state_dict({"head.weight": torch.zeros(3, 3)}, strict=False)
    assert any(key.endswith("papa.constants") for key in found.missing_keys)


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_their_own(copied_by):
    encoder = swap_attention(build(), "constant", constants=make_constants())
    other = copied_by(encoder)
    with torch.no_grad():
        for layer in swapped_layers(encoder):
            layer.constants.zero_()
    with pytest.warns(PlainStateWarning):
        other.load_state_dict(build(seed=1).state_dict(), strict=True)
    assert_constants(other)


def test_a_restored_encoder_has_no_hook_left():
    encoder = swap_attention(build(), "constant", constants=make_constants())
    swap_attention(encoder, "constant", constants=make_constants(), heads=PARTIAL)
    assert sum(len(module._load_state_dict_pre_hooks) for module in encoder.modules()) == 1
    restore_attention(encoder)
    assert not any(module._load_state_dict_pre_hooks for module in encoder.modules())


@pytest.mark.parametrize("kind", ["constant", "gated"])
def test_the_state_of_a_swapped_encoder_in_a_plain_module(kind):
    """Either with all heads dynamic, or swapped as it was saved: both load strictly."""
    saved, plain, same = Module(), Module(seed=1), Module(seed=1)
    swap_attention(saved.bert, kind, constants=make_constants())
    state = saved.state_dict()
    plain.load_state_dict(plain_state(state), strict=True)
    assert swap_as_saved(same, state)
    same.load_state_dict(state, strict=True)
    assert torch.equal(outputs(same.bert), outputs(saved.bert))
    assert torch.equal(outputs(plain.bert), outputs(restore_attention(saved.bert)))
