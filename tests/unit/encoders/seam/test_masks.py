"""Masks that reach a swapped encoder and say nothing: each is refused, by what was found in it."""

import warnings

import pytest
import torch
from conformance import tiny_models
from unit.encoders.tiny_encoders import LENGTH, build, make_constants, make_inputs

from papa_lightning import PapaError, restore_attention, swap_attention
from papa_lightning.encoders import UnmaskedPaddingWarning

MASK = make_inputs()["attention_mask"]


def altered(value, dtype=torch.float64):
    mask = MASK.to(dtype).clone()
    mask[1, 1] = value
    return mask


def four(value):
    """For scores, with one entry another one."""
    mask = torch.zeros(4, 1, LENGTH, LENGTH, dtype=torch.float64)
    mask[2, 0, :, 4] = value
    return mask


WRONG = {
    "nan": (altered(float("nan")), r"attention_mask has the value nan"),
    "-1": (altered(-1, torch.int64), r"attention_mask has the value -1, but is 1 for a real token"),
    "2": (altered(2, torch.int32), r"attention_mask has the value 2,"),
    "half": (altered(0.5), r"attention_mask has the value 0.5,"),
    "infinite": (altered(float("inf")), r"attention_mask has the value inf,"),
    "complex": (MASK.to(torch.complex64), r"attention_mask is of torch.complex64"),
    "list": (MASK.tolist(), r"attention_mask is a list, but must be a tensor"),
    "numpy": (MASK.numpy(), r"attention_mask is a ndarray, but must be a tensor"),
    "one dimension": (MASK[0], r"attention_mask has shape \(10,\), but must be of shape \(batch, length\).*\(4, 10\)"),
    "three dimensions": (torch.ones(4, LENGTH, LENGTH), r"attention_mask has shape \(4, 10, 10\)"),
    "another batch": (MASK[:1], r"attention_mask has shape \(1, 10\)"),
    "another length": (MASK[:, :6], r"attention_mask has shape \(4, 6\)"),
    "0 throughout": (torch.zeros_like(MASK), r"attention_mask of shape \(4, 10\) is 0 throughout"),
    "scores with nan": (four(float("nan")), r"attention_mask of shape \(4, 1, 10, 10\) has the value nan"),
    "scores of 1": (four(1.0), r"has the value 1.0, but one of four dimensions is added to the scores"),
    "scores of -1": (four(-1.0), r"has the value -1.0, but one of four dimensions is added to the scores"),
}


@pytest.mark.parametrize("kind", ["constant", "gated"])
@pytest.mark.parametrize("name", WRONG)
def test_masks_that_cannot_be_used(name, kind):
    mask, message = WRONG[name]
    model = swap_attention(build(), kind, constants=make_constants())
    with pytest.raises(PapaError, match=message):
        model(input_ids=make_inputs()["input_ids"], attention_mask=mask)
    with pytest.raises(PapaError, match=message):
        model(make_inputs()["input_ids"], mask)  # by its place


@pytest.mark.parametrize("name", ["albert", "deberta", "mpnet", "roformer", "llama", "t5"])
def test_every_seam_refuses(name):
    model, inputs = tiny_models.swapped(name, "partial"), tiny_models.make_inputs(name)
    with pytest.raises(PapaError, match=r"attention_mask has the value 3"):
        tiny_models.encode(model, {**inputs, "attention_mask": inputs["attention_mask"] * 3})


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float16, torch.bfloat16, torch.float64])
def test_masks_of_all_dtypes_are_read(dtype):
    model = swap_attention(build(), "constant", constants=make_constants())
    with torch.no_grad():
        expected = model(**make_inputs()).last_hidden_state
        found = model(input_ids=make_inputs()["input_ids"], attention_mask=MASK.to(dtype)).last_hidden_state
    assert torch.equal(found, expected)


def test_scores_of_old_encoders_are_read():
    model = swap_attention(build(), "constant", constants=make_constants())
    scores = torch.zeros(4, 1, 1, LENGTH, dtype=torch.float64).masked_fill(MASK[:, None, None] == 0, -10000.0)
    with torch.no_grad():
        expected = model(**make_inputs()).last_hidden_state
        found = model(input_ids=make_inputs()["input_ids"], attention_mask=scores).last_hidden_state
    real = MASK.bool()
    torch.testing.assert_close(found[real], expected[real], atol=1e-12, rtol=1e-12)


def test_the_original_encoder_takes_what_it_always_took():
    model = build()
    with torch.no_grad():
        expected = model(input_ids=make_inputs()["input_ids"], attention_mask=WRONG["2"][0]).last_hidden_state
        waiting = swap_attention(model, "constant", max_length=LENGTH)
        assert torch.equal(
            waiting(input_ids=make_inputs()["input_ids"], attention_mask=WRONG["2"][0]).last_hidden_state, expected
        )
    assert not restore_attention(model)._forward_pre_hooks


def test_padding_without_a_mask():
    tokens = make_inputs()["input_ids"].clone()
    model = swap_attention(build(), "constant", constants=make_constants())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnmaskedPaddingWarning)
        model(input_ids=tokens)
    tokens[0, -2:] = 0
    with pytest.warns(UnmaskedPaddingWarning, match=r"padding token 0, but attention_mask is None"):
        model(input_ids=tokens)
