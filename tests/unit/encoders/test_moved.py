"""What the layers of an encoder are told of tokens that were moved, by whom, and for how long."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch
from conformance.tiny_models import build

from papa_lightning.encoders import FAMILIES, EncoderFamily, exact_when_packed, moved_tokens, register_family
from papa_lightning.encoders.finding import SupportedEncoder

TOKENS = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
PLACES = torch.tensor([[0, 1, 7]])


def run(model):
    with torch.no_grad():
        return model(**TOKENS).last_hidden_state


def hooks_of(model):
    return sum(len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("name", ["mpnet", "modernbert", "deberta-v2-own"])
def test_hooks_end_with_the_block(name):
    found = SupportedEncoder.find(build(name))
    expected = run(found.model)
    with moved_tokens(found, PLACES, TOKENS["attention_mask"]):
        assert hooks_of(found.model) > 0
        assert not torch.allclose(run(found.model), expected)
    with pytest.raises(ZeroDivisionError), moved_tokens(found, PLACES, TOKENS["attention_mask"]):
        1 / 0  # noqa: B018
    assert hooks_of(found.model) == 0
    assert torch.equal(run(found.model), expected)


def test_encoders_of_absolute_positions_are_told_nothing():
    found = SupportedEncoder.find(build("bert"))
    with moved_tokens(found, PLACES, TOKENS["attention_mask"]):
        assert hooks_of(found.model) == 0


@pytest.mark.parametrize("name", ["mpnet", "modernbert"])
def test_forwards_of_other_threads(name):
    found, inside, done = SupportedEncoder.find(build(name)), Event(), Event()
    expected = run(found.model)

    def other():
        assert inside.wait(30)
        hidden = run(found.model)
        done.set()
        return hidden

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(other)
        with moved_tokens(found, PLACES, TOKENS["attention_mask"]):
            inside.set()
            assert done.wait(30)
            assert not torch.allclose(run(found.model), expected)
    assert torch.equal(future.result(), expected)


@pytest.mark.parametrize(("implementation", "exact"), [("eager", True), ("sdpa", True), ("flash_attention_2", False)])
def test_kernels_that_split_rows_at_jumps(implementation, exact):
    found = SupportedEncoder.find(build("llama"))
    found.model.config._attn_implementation_internal = implementation
    assert exact_when_packed(found) == exact
    assert exact_when_packed(found, holes=False)


def test_families_of_others_say_that_they_are_packed():
    before = FAMILIES["bert"]
    try:
        register_family("bert", EncoderFamily("BertSelfAttention"))
        assert not exact_when_packed(SupportedEncoder.find(build("bert")))
        register_family("bert", EncoderFamily("BertSelfAttention", packs=True))
        assert exact_when_packed(SupportedEncoder.find(build("bert")))
    finally:
        register_family("bert", before)
