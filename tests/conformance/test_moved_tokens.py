"""Tokens that are moved together in the tensor, so that nothing is computed for padding: the same hidden states."""

import copy
from contextlib import nullcontext

import pytest
import torch
from conformance.tiny_models import CASES, NAMES, VOCABULARY, build, implementations, make_config, plain, swap, swapped

from papa_lightning import swap_attention
from papa_lightning.attention import slots_at
from papa_lightning.encoders import (
    ReadBatch,
    accepted_inputs,
    exact_when_packed,
    moved_tokens,
    native_position_ids,
    observe_attention,
)
from papa_lightning.encoders.finding import SupportedEncoder
from papa_lightning.encoders.seam.slots import POSITIONS, GivenSlots, NumberedTokens, slots_of

T = 10
CLOSE = {"atol": 1e-12, "rtol": 0.0}
#: All but those with positions of their own by the place in the tensor.
MOVABLE = [name for name in NAMES if CASES[name].masked and name not in ("bart", "papa-causal")]


def _segments(first, second=0):
    """Places in the segment layout: the separator of a first segment at 4 if there is a second, the last one at 9."""
    return [*range(first - 1), *([4, *range(5, 4 + second)] if second else []), T - 1]


#: Layout -> places of the real tokens, a row for each sequence.
LAYOUTS = {
    "plain": [range(5), range(T), range(1)],
    "left": [range(5, T), range(T), range(3, T)],
    "middle": [range(2, 7), range(1, 4)],
    "one token": [[0], [4], [9]],
    "segment": [_segments(4), _segments(9), _segments(2)],
    "two segments": [_segments(3, 2), _segments(2, 4)],
    "one row": [_segments(5)],
}
HOLES = ("segment", "two segments", "one row")


def padded(name, layout):
    """A batch of a layout, as it is before tokens are moved."""
    rows = LAYOUTS[layout]
    mask = torch.zeros(len(rows), T, dtype=torch.int64)
    for row, places in enumerate(rows):
        mask[row, list(places)] = 1
    tokens = torch.randint(3, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(3))
    return {"input_ids": tokens.where(mask.bool(), make_config(name).pad_token_id or 0), "attention_mask": mask}


def positions_of(found, inputs, places, mask):
    """The slots of moved tokens, those that the family would have counted before."""
    numbered = found.slot_rule == "input_ids"
    tokens = NumberedTokens(inputs["input_ids"] != found.model.config.pad_token_id) if numbered else None
    slots = slots_of(inputs["attention_mask"].bool(), found.slot_rule, tokens)
    return GivenSlots(slots_at(places if slots is None else slots.places.gather(1, places), mask.bool(), T))


@torch.no_grad()
def run_packed(model, inputs, attached, told=True):
    """The hidden states (L + 1, B, n, d) of moved tokens, and the places (B, n) from which these were moved."""
    found, mask = SupportedEncoder.find(model), inputs["attention_mask"]
    places = mask.argsort(dim=1, descending=True, stable=True)[:, : int(mask.sum(dim=1).max())]
    packed = {key: tensor.gather(1, places) for key, tensor in inputs.items()}
    given = positions_of(found, inputs, places, packed["attention_mask"]) if attached else None
    if "position_ids" in accepted_inputs(found.model):
        packed["position_ids"] = native_position_ids(ReadBatch.of(found), inputs).gather(1, places)
    marked = {**packed, POSITIONS: given} if attached else packed
    with moved_tokens(found, places, packed["attention_mask"], given) if told else nullcontext():
        return torch.stack(found.model(**marked, output_hidden_states=True).hidden_states), places


def both_ways(model, inputs, attached=False, told=True):
    """The hidden states of all levels at real tokens, of moved tokens and as they should be."""
    moved, places = run_packed(model, inputs, attached, told)
    with torch.no_grad():
        levels = SupportedEncoder.find(model).model(**inputs, output_hidden_states=True).hidden_states
    rows = torch.arange(len(places))[:, None]
    real = inputs["attention_mask"].bool()[rows, places]
    return moved[:, real], torch.stack(levels)[:, rows, places][:, real]


def differ(model, inputs, **options):
    moved, expected = both_ways(model, inputs, **options)
    return not torch.allclose(moved, expected, atol=1e-3)


def check(model, name, attached=False):
    for layout in LAYOUTS:
        if exact_when_packed(SupportedEncoder.find(model), holes=layout in HOLES):
            moved, expected = both_ways(model, padded(name, layout), attached)
            known = expected.isfinite()  # eager ModernBERT takes the softmax of float64's lowest number in float32
            torch.testing.assert_close(
                moved[known], expected[known], **CLOSE, msg=lambda text, layout=layout: f"{layout}: {text}"
            )


@pytest.mark.parametrize(("name", "implementation"), [(name, one) for name in MOVABLE for one in implementations(name)])
def test_a_plain_encoder(name, implementation):
    found = SupportedEncoder.find(plain(name, implementation))
    assert exact_when_packed(found, holes=False)
    assert exact_when_packed(found) == (name != "deberta"), "its distances end at the number of tokens"
    check(found.model, name)


@pytest.mark.parametrize("mode", ["none", "partial", "all", "gated"])
@pytest.mark.parametrize("name", MOVABLE)
def test_a_swapped_encoder(name, mode):
    model = swapped(name, mode)
    assert exact_when_packed(SupportedEncoder.find(model))
    check(model, name, attached=True)


@pytest.mark.parametrize("name", ["bart", "papa-causal", "vit"])
def test_an_encoder_with_positions_of_its_own(name):
    """It is not packed: even tokens side by side would get other positions."""
    found = SupportedEncoder.find(plain(name))
    assert not exact_when_packed(found)
    assert not exact_when_packed(found, holes=False)
    if CASES[name].masked:
        assert differ(found.model, padded(name, "left"))


@pytest.mark.parametrize("name", ["deberta", "deberta-v2-own", "mpnet", "t5", "roformer", "modernbert", "mistral"])
def test_distances_are_those_in_the_tensor_until_places_are_told(name):
    assert differ(plain(name), padded(name, "segment"), told=False)


def test_distances_beyond_the_number_of_tokens():
    """DeBERTa's layers cut them, until they are opened."""
    model = build("deberta", max_relative_positions=-1)
    assert not exact_when_packed(SupportedEncoder.find(model))
    assert differ(model, padded("deberta", "segment"))
    check(model, "deberta")
    for mode in ("none", "partial"):
        check(swap("deberta", copy.deepcopy(model), mode), "deberta", attached=True)


def test_neighbours():
    """A convolution over neighbours, of which holes make others."""
    model = build("deberta-v2-own", conv_kernel_size=3, conv_act="gelu")
    assert not exact_when_packed(SupportedEncoder.find(model))
    assert differ(model, padded("deberta-v2-own", "segment"))
    assert exact_when_packed(SupportedEncoder.find(model), holes=False)
    check(model, "deberta-v2-own")


@pytest.mark.parametrize("kind", ["aft_full", "aft_simple", "additive", "shared"])
@pytest.mark.parametrize("name", ["llama", "esm", "roformer", "roformer-value", "modernbert", "t5", "deberta", "mpnet"])
def test_kinds_without_constants(name, kind):
    """Those without scores know of positions, rotary ones too, by slots alone."""
    options = {"matrix": "dynamic"} if kind == "shared" else None
    check(swap_attention(build(name), kind, max_length=T, options=options), name, attached=True)


@pytest.mark.parametrize("name", ["bert", "deberta", "deberta-v2-shared", "modernbert", "t5", "albert"])
def test_observed_matrices(name):
    """They are those of the slots."""
    inputs, model, seen = padded(name, "segment"), build(name), []
    number = len(SupportedEncoder.find(model).modules)
    with observe_attention(model, [lambda matrices, mask: seen.append((matrices.clone(), mask))] * number):
        with torch.no_grad():
            SupportedEncoder.find(model).model(**inputs)
        run_packed(model, inputs, attached=True)
    for (expected, mask), (found, moved) in zip(seen[:number], seen[number:], strict=True):
        assert torch.equal(mask.bool(), moved.bool())
        pairs = mask.bool()[:, None, :, None] & mask.bool()[:, None, None, :]
        torch.testing.assert_close(found * pairs, expected * pairs, **CLOSE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("esm", {"position_embedding_type": "absolute"}),
        ("esm", {"token_dropout": True, "mask_token_id": 7}),
        ("deberta", {"position_biased_input": True, "pos_att_type": ["p2c"]}),
        ("deberta-v2-shared", {"position_biased_input": True, "pos_att_type": "c2p"}),
        ("deberta-v2-own", {"relative_attention": False, "position_biased_input": True}),
    ],
)
def test_options_of_families(name, options):
    model = build(name, **options)
    check(model, name)
    check(swap(name, model, "partial"), name, attached=True)
