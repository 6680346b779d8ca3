"""Averages over whatever calls are made of an encoder."""

import pytest
import torch
from projects import LENGTH, Classifier, Sentences
from torch.utils.data import DataLoader

from papa_lightning import PapaError, calibrate, swap_attention
from papa_lightning.calibration import observe

DATA = Sentences(6)
IDS, MASK = DATA.input_ids, DATA.attention_mask


@pytest.mark.parametrize("swapped", [False, True])
def test_calls_in_any_order_and_form_are_one_average(swapped: bool) -> None:
    encoder = Classifier().bert.eval()
    expected = calibrate(encoder, DataLoader(DATA, 4), LENGTH)
    if swapped:
        swap_attention(encoder, "constant", constants=expected)
    with torch.no_grad(), observe(encoder, LENGTH) as calls:
        encoder(IDS[4:], MASK[4:])
        encoder(attention_mask=MASK[:1].bool(), input_ids=IDS[:1])
        encoder.forward(IDS[1:4], attention_mask=MASK[1:4])
    assert calls.count == 3
    torch.testing.assert_close(calls.sums.compute().float(), expected.values, atol=1e-6, rtol=0)
    assert "forward" not in vars(encoder)
    assert int(calls.sums.num_sequences) == 6


def test_an_own_forward_of_the_encoder_comes_back() -> None:
    encoder = Classifier().bert.eval()
    own = encoder.forward
    encoder.forward = lambda *args, **kwargs: own(*args, **kwargs)
    before = vars(encoder)["forward"]
    with torch.no_grad(), observe(encoder, LENGTH):
        assert encoder.forward is not before
    assert vars(encoder)["forward"] is before


def test_gradients_outside_do_not_reach_the_sums() -> None:
    encoder = Classifier().bert.eval()
    with observe(encoder, LENGTH) as calls:
        encoder(IDS, MASK).last_hidden_state.sum().backward()
    assert not calls.sums.sums.requires_grad
    torch.testing.assert_close(
        calls.sums.compute().float(), calibrate(encoder, DataLoader(DATA, 4), LENGTH).values, atol=1e-6, rtol=0
    )


def test_a_layer_that_is_left_out_is_refused() -> None:
    """Its sums would lack what the counts have."""
    encoder = Classifier().bert.eval()

    encoder.encoder.layer[1].forward = lambda hidden, *_, **__: hidden
    with pytest.raises(PapaError, match=r"layer 1 ran 0 times in a call of the BertModel in batch 0"):  # noqa: SIM117
        with torch.no_grad(), observe(encoder, LENGTH):
            encoder(IDS, MASK)


def test_two_do_not_observe_at_once() -> None:
    encoder = Classifier().bert.eval()
    with observe(encoder, LENGTH), pytest.raises(PapaError, match="already"), observe(encoder, LENGTH):
        pass
    with torch.no_grad(), observe(encoder, LENGTH) as calls:
        encoder(IDS, MASK)
    assert calls.count == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": IDS}, r"batch 0 has no attention_mask \(keys: input_ids\)"),
        ({"input_ids": IDS[:, :8], "attention_mask": MASK[:, :8]}, "has sequences of 8 tokens, but max_length is 6"),
    ],
)
def test_a_call_that_cannot_be_counted_is_refused(arguments: dict[str, torch.Tensor], message: str) -> None:
    encoder = Classifier().bert.eval()
    with torch.no_grad(), observe(encoder, 6) as calls:
        with pytest.raises(PapaError, match=message):
            encoder(**arguments)
        with pytest.raises(PapaError, match=message):
            calls.check()
