"""Packed batches of every family: hidden states, averages and criteria are those of the padded batch."""

import pytest
import torch
from conformance.test_moved_tokens import CLOSE, LAYOUTS, MOVABLE, T, padded
from conformance.tiny_models import plain, swapped

from papa_lightning.calibration import gather
from papa_lightning.encoders import Packer, Packing, SupportedEncoder
from papa_lightning.encoders.inputs import first_position

#: Families that must be packed, with holes too.
NAMED = ["bert", "roberta", "albert", "electra", "distilbert", "gpt2", "llama", "modernbert", "esm", "nomic_bert"]


@torch.no_grad()
def both(model, inputs, tokens=12):
    """Hidden states of all levels (L + 1, real tokens, d), packed and padded; None where nothing is packed."""
    found = SupportedEncoder.find(model)
    packed, levels = Packer.of(found).pack(inputs), found.model(**inputs, output_hidden_states=True).hidden_states
    if packed is None:
        return None
    unpacked = [torch.zeros_like(level) for level in levels]
    for group in packed.groups(tokens):
        batch = packed.batch(group)
        with batch.prepared(torch.device("cpu")) as arguments:
            states = found.model(**arguments, output_hidden_states=True).hidden_states
        for own, level in zip(states, unpacked, strict=True):
            batch.put(own, level)
    real = inputs["attention_mask"].bool()
    return torch.stack(unpacked)[:, real], torch.stack(levels)[:, real]


def check(model, name):
    compared = 0
    for layout in LAYOUTS:
        outcome = both(model, padded(name, layout))
        if outcome is not None:
            known = outcome[1].isfinite()  # eager ModernBERT takes the softmax of float64's lowest number in float32
            torch.testing.assert_close(
                outcome[0][known], outcome[1][known], **CLOSE, msg=lambda text, layout=layout: f"{layout}: {text}"
            )
            compared += 1
    return compared


@pytest.mark.parametrize("name", MOVABLE)
def test_a_plain_encoder(name):
    compared = check(plain(name), name)
    assert compared == len(LAYOUTS) or name not in NAMED


@pytest.mark.parametrize("mode", ["partial", "all", "gated"])
@pytest.mark.parametrize("name", MOVABLE)
def test_a_swapped_encoder(name, mode):
    assert check(swapped(name, mode), name) == len(LAYOUTS)


@pytest.mark.parametrize("name", ["bert", "roberta", "llama", "gpt2"])
def test_given_position_ids_stay_with_their_tokens(name):
    """Also where only padding at the end is cut."""
    inputs, first = {key: held[:, :6] for key, held in padded(name, "plain").items()}, first_position(plain(name))
    inputs["position_ids"] = torch.arange(first + 3, first + 9)[None]
    packed, whole = (gather(plain(name), [inputs], T, packing=Packing(enabled)) for enabled in (True, False))
    torch.testing.assert_close(packed.sums, whole.sums, **CLOSE)


@pytest.mark.parametrize("name", MOVABLE)
def test_averages(name):
    """Of several batches of different layouts, which are packed together."""
    batches = [padded(name, layout) for layout in LAYOUTS]
    packed, whole = (gather(plain(name), batches, T, packing=Packing(enabled, 12)) for enabled in (True, False))
    for part in ("sums", "squares", "pair_counts", "num_sequences"):
        torch.testing.assert_close(getattr(packed, part), getattr(whole, part), **CLOSE)
