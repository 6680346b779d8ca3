"""An encoder is looked up once a public call, and a call sees the encoder as it is by then."""

import copy
from collections import Counter

import pytest
import torch
from conformance.tiny_models import build, make_config, make_constants, make_inputs
from transformers import AutoModel, BertForSequenceClassification

from papa_lightning import calibrate, calibrate_compact, export_encoder, restore_attention, swap_attention
from papa_lightning.encoders import (
    EncoderFamily,
    SupportedEncoder,
    encoder_shape,
    find_encoder,
    finding,
    gate_logits,
    is_calibrated,
    load_constants,
    swapped_layers,
)


@pytest.fixture
def counts(monkeypatch):
    """The look-ups of families, and the walks over all modules for those of self-attention."""
    counts, family_of, walk = Counter(), finding.family_of, EncoderFamily.attention_modules

    def counted_family(encoder):
        counts["families"] += 1
        return family_of(encoder)

    def counted_walk(self, encoder):
        counts["walks"] += 1
        return walk(self, encoder)

    monkeypatch.setattr(finding, "family_of", counted_family)
    monkeypatch.setattr(EncoderFamily, "attention_modules", counted_walk)
    return counts


@pytest.mark.parametrize("name", ["bert", "deberta", "albert-groups", "gpt2"])
def test_look_ups_a_public_call(name, counts, tmp_path):
    encoder, constants = build(name, dtype=torch.float32), make_constants(name)
    batches = [make_inputs(name), make_inputs(name, seed=1), make_inputs(name, seed=2)]
    counts.clear()

    def done(families, walks):
        assert counts["families"] <= families, counts
        assert counts["walks"] <= walks, counts
        counts.clear()

    average = calibrate(encoder, batches, constants.max_length)
    done(families=1, walks=2)  # as found, and with the modules opened
    calibrate_compact(encoder, batches, constants.max_length, width=2)
    done(families=1, walks=2)
    swap_attention(encoder, "constant", constants=constants)
    done(families=1, walks=3)  # as found, restored, and with the modules opened
    swap_attention(encoder, "gated", max_length=constants.max_length)
    done(families=1, walks=3)
    load_constants(encoder, average)
    done(families=1, walks=1)
    average.check(encoder)
    done(families=1, walks=1)
    for batch in batches:
        encoder(**batch)
    done(families=0, walks=0)
    assert len(gate_logits(encoder)) == len(swapped_layers(encoder)) == encoder_shape(encoder)[0]
    assert is_calibrated(encoder)
    done(families=4, walks=4)
    encoder.save_pretrained(tmp_path / "saved")
    done(families=2, walks=1)
    restore_attention(encoder)
    done(families=1, walks=1)
    AutoModel.from_pretrained(tmp_path / "saved")
    done(families=5, walks=6)
    export_encoder(swap_attention(encoder, "constant", constants=constants), tmp_path / "exported")
    done(families=6, walks=10)


def test_a_found_encoder_is_not_looked_up_again(counts):
    found = SupportedEncoder.find(build("bert"))
    assert SupportedEncoder.find(found) is found
    assert (found.num_layers, len(found.reaches), len(found.distinct_modules), found.mixers) == (3, 3, 3, [])
    assert counts == {"families": 1, "walks": 1}


def test_an_encoder_in_a_module_is_looked_up_once(counts):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), BertForSequenceClassification(make_config("bert")))
    assert encoder_shape(module) == (3, 4)
    assert counts == {"families": 1, "walks": 1}


def test_an_encoder_that_changes_between_calls():
    """No look-up outlives a call: layers that were taken away, and the attention of a copy, count from then on."""
    encoder = build("bert", dtype=torch.float32)
    first = calibrate(encoder, [make_inputs("bert")], 10)
    encoder.encoder.layer = encoder.encoder.layer[:2]
    assert encoder_shape(encoder) == (2, 4)
    second = calibrate(encoder, [make_inputs("bert")], 10)
    assert torch.equal(first.values[:2], second.values)
    swap_attention(encoder, "constant", constants=second)
    copied = copy.deepcopy(encoder)
    encoder.encoder.layer = encoder.encoder.layer[:1]
    assert [len(swapped_layers(one)) for one in (encoder, copied)] == [1, 2]
    assert find_encoder(copied) is copied
