"""The mixer with compact constants: beside dynamic heads, saved and loaded, and what it refuses."""

import io
import re
from dataclasses import replace

import pytest
import torch
from unit.attention.mixing import mix

from papa_lightning import PapaError
from papa_lightning.attention import (
    CompactHeads,
    CompactLayer,
    ConstantHeads,
    Place,
    Reach,
    ZeroMassWarning,
)
from papa_lightning.attention.functional import apply_attention, normalized_constants

HEADS, LENGTH, SIZE, WIDTH, RANK = 5, 7, 4, 2, 3
FORMS = ("profile", "low_rank", "dense", "profile", "low_rank")
EXACT = {"atol": 1e-12, "rtol": 1e-12}


def make_layer(forms=FORMS, length=LENGTH, reach=None):
    generator = torch.Generator().manual_seed(0)

    def rand(form, *shape):
        return torch.rand(forms.count(form), *shape, generator=generator, dtype=torch.float64) + 0.1

    return CompactLayer(
        forms=forms,
        profile=rand("profile", 2 * WIDTH + 1),
        columns=rand("profile", length),
        beyond=rand("profile"),
        left=rand("low_rank", length, RANK),
        right=rand("low_rank", length, RANK),
        matrices=rand("dense", length, length),
        reach=reach or Reach(),
    )


def make(heads=range(HEADS), layer=None, reach=None):
    layer = layer or make_layer()
    mixer = CompactHeads(Place(3, HEADS, LENGTH, SIZE, torch.float64, reach=reach or Reach()), heads)
    mixer.load_constants(layer)
    same = ConstantHeads(Place(3, HEADS, LENGTH, SIZE, torch.float64, reach=reach or Reach()), heads)
    same.load_constants(layer.expand())
    return mixer, same


def batch(dynamic, length=LENGTH):
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, HEADS, length, SIZE, generator=generator, dtype=torch.float64)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, 2] = mask[0, 5:] = False
    return query[:, dynamic], key[:, dynamic], value, mask


@pytest.mark.parametrize("reach", [Reach(), Reach(after=0)], ids=str)
@pytest.mark.parametrize("length", [LENGTH, 4])
@pytest.mark.parametrize("heads", [range(HEADS), [0, 1], [2], [1, 3, 4]], ids=str)
def test_the_same_as_the_matrices(heads, length, reach):
    mixer, same = make(heads, reach=reach)
    dynamic = list(same.heads.dynamic)
    assert mixer.heads.dynamic == tuple(dynamic)
    query, key, value, mask = batch(dynamic, length)
    for real in (None, mask):
        bias = None if reach.unlimited else reach.allowed(length)
        found, none = mix(mixer, query, key, value, real, 0.5, bias=bias)
        assert none is None
        torch.testing.assert_close(found, mix(same, query, key, value, real, 0.5, bias=bias)[0], **EXACT)
        found, weights = mix(mixer, query, key, value, real, 0.5, need_weights=True, bias=bias)
        expected, matrices = mix(same, query, key, value, real, 0.5, need_weights=True, bias=bias)
        torch.testing.assert_close(weights, matrices, **EXACT)
        torch.testing.assert_close(found, expected, **EXACT)


def test_attention_dropout():
    layer = make_layer(("profile",) * HEADS)
    mixer, _ = make(layer=layer)
    query, key, value, mask = batch([])
    torch.manual_seed(0)
    found, _ = mix(mixer, query, key, value, mask, 0.5, dropout=0.4)
    torch.manual_seed(0)
    expected = apply_attention(normalized_constants(layer.expand(), mask), value, 0.4)
    torch.testing.assert_close(found, expected, **EXACT)
    assert not torch.allclose(found, mix(mixer, query, key, value, mask, 0.5)[0])


def test_waiting_until_constants_come():
    mixer = CompactHeads(Place(0, HEADS, LENGTH, SIZE), [1, 2])
    assert not mixer.calibrated
    assert not mixer.replaces_attention
    assert mixer.heads.dynamic == tuple(range(HEADS))
    mixer.load_constants(make_layer())
    assert mixer.heads.dynamic == (0, 3, 4)
    assert mixer.options() == {"forms": ["low_rank", "dense"]}
    assert {name: (part.requires_grad, part.dtype) for name, part in mixer.named_buffers()} == dict.fromkeys(
        ("profile", "columns", "left", "right", "matrices"), (False, torch.float32)
    )
    assert not list(mixer.parameters())


@pytest.mark.parametrize("forms", [None, ["profile", "dense", "low_rank"]])
def test_saved_and_loaded_into_a_mixer_that_waits(forms):
    mixer, _ = make([0, 2, 4])
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    other = CompactHeads(Place(3, HEADS, LENGTH, SIZE, torch.float64), [0, 2, 4], forms)
    held = dict(other.named_parameters())
    other.load_state_dict(torch.load(file, weights_only=True))
    assert other.calibrated
    assert other.forms == ("profile", "dense", "low_rank")
    assert all(parameter is held[name] for name, parameter in other.named_parameters())
    given = batch([1, 3])
    torch.testing.assert_close(mix(other, *given, 0.5)[0], mix(mixer, *given, 0.5)[0], rtol=0, atol=0)


def test_a_waiting_state_makes_it_wait_again():
    mixer, _ = make()
    mixer.load_state_dict(CompactHeads(Place(3, HEADS, LENGTH), range(HEADS)).state_dict())
    assert not mixer.calibrated
    assert mixer.heads.all_dynamic


def test_states_that_do_not_fit():
    mixer, _ = make([0, 2])
    with pytest.raises(PapaError, match=re.escape("constant heads [0, 2] in layer 3")):
        CompactHeads(Place(3, HEADS, LENGTH), [0, 1]).load_state_dict(mixer.state_dict())
    with pytest.raises(PapaError, match=r"max_length 7 in layer 3.*max_length 8"):
        CompactHeads(Place(3, HEADS, LENGTH + 1), [0, 2]).load_state_dict(mixer.state_dict())
    damaged = mixer.state_dict() | {"matrices": torch.zeros(3, LENGTH, LENGTH)}
    with pytest.raises(PapaError, match=r"'dense': 3.*names .*'dense': 1.*damaged"):
        CompactHeads(Place(3, HEADS, LENGTH), [0, 2]).load_state_dict(damaged)


def test_constants_that_do_not_fit():
    mixer = CompactHeads(Place(3, HEADS, LENGTH), [0])
    with pytest.raises(PapaError, match=r"layer 3 are a Tensor, but kind 'compact' takes compact constants"):
        mixer.load_constants(torch.ones(HEADS, LENGTH, LENGTH))
    with pytest.raises(PapaError, match=r"5 heads and max_length 6, but the layer has 5 and 7"):
        mixer.load_constants(make_layer(length=6))
    with pytest.raises(PapaError, match=r"a CompactLayer, but kind 'constant' takes matrices"):
        ConstantHeads(Place(3, HEADS, LENGTH), [0]).load_constants(make_layer())
    with pytest.raises(PapaError, match=r"left has shape \(2, 7, 3\).*must have \(1, 7, 3\)"):
        replace(make_layer(), forms=("profile", "low_rank", "dense", "profile", "dense"))
    with pytest.raises(PapaError, match=r"forms has \['sparse'\]"):
        replace(make_layer(), forms=("sparse",) * HEADS)


def test_longer_sequences_than_the_constants():
    mixer, _ = make()
    with pytest.raises(PapaError, match=r"8 tokens long.*max_length 7.*extend\(8\)"):
        mix(mixer, *batch([], LENGTH + 1), 0.5)


@pytest.mark.parametrize("form", ["profile", "low_rank", "dense"])
def test_watch_over_rows_without_mass(form):
    layer = make_layer((form,) * HEADS)
    parts = {"profile": ("profile", "columns"), "low_rank": ("right",), "dense": ("matrices",)}[form]
    for part in parts:
        getattr(layer, part)[0] = 0.0  # head 0 attends to nothing: pruned
        getattr(layer, part)[1] = 0.0
    if form == "profile":
        layer.columns[1, 5] = 1.0
    elif form == "low_rank":
        layer.right[1, 5] = 1.0
    else:
        layer.matrices[1, :, 5] = 1.0
    mixer, _ = make(layer=layer)
    assert mixer.certain_length == 0
    mixer.watch.check_mass(0, [], torch.zeros(1, 0, 3), None, torch.zeros(0, dtype=torch.bool))
    mix(mixer, *batch([])[:3], None, 0.5)
    assert not mixer.watch.warned
    with pytest.warns(ZeroMassWarning, match=r"layer 3, heads \[1\]: real tokens at positions \[0, 1, 3, 4\]"):
        mix(mixer, *batch([]), 0.5)


def test_sure_rows_are_not_looked_at(monkeypatch):
    mixer, _ = make()
    assert mixer.certain_length == LENGTH
    monkeypatch.setattr(mixer.watch, "check_mass", None)
    mix(mixer, *batch([]), 0.5)


def test_unfrozen_constants_learn():
    mixer, _ = make()
    mixer.learn_constants()
    mix(mixer, *batch([]), 0.5)[0].square().sum().backward()
    assert all(parameter.grad.abs().max() > 1e-4 for parameter in mixer.parameters())


def test_extended_columns():
    layer = make_layer(("profile",) * HEADS)
    longer = layer.extend(10)
    assert torch.equal(longer.columns[:, :LENGTH], layer.columns)
    assert torch.equal(longer.columns[:, LENGTH:], layer.beyond[:, None].expand(-1, 3))
    assert torch.equal(longer.profile, layer.profile)
    with pytest.raises(PapaError, match=r"max_length is 6, with 7 positions"):
        layer.extend(6)
    with pytest.raises(PapaError, match=r'only heads of form "profile"'):
        make_layer().extend(10)
