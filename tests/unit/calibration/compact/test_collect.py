"""Calibration straight to compact constants: the same as a fit to the average."""

import pytest
import torch
from transformers import GPT2Config, GPT2Model
from unit.encoders.tiny_encoders import HEADS, LAYERS, LENGTH, build, make_inputs

from papa_lightning import CompactConstants, calibrate, calibrate_compact, swap_attention
from papa_lightning.attention import Reach
from papa_lightning.calibration import averages
from papa_lightning.calibration.compact.collect import CompactAverages
from papa_lightning.errors import CalibrationError

CLOSE = {"atol": 1e-6, "rtol": 1e-6}


def make_batches():
    """Of different lengths, with holes, and a sequence of padding."""
    batches = [make_inputs(), make_inputs(length=7, seed=1), make_inputs(batch=1, seed=2)]
    batches[2]["attention_mask"].zero_()
    return batches


def assert_same(found, expected):
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert one.reach == other.reach
        torch.testing.assert_close(one.profile, other.profile, **CLOSE)
        torch.testing.assert_close(one.columns, other.columns, **CLOSE)
        torch.testing.assert_close(one.beyond, other.beyond, **CLOSE)


@pytest.mark.parametrize("chunk", [1, 150, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_as_a_fit_to_the_average(dtype, chunk, monkeypatch):
    monkeypatch.setattr(averages, "_ON_CPU", chunk)  # a row at a time, some rows, all
    model = build(dtype=dtype).train()
    found = calibrate_compact(model, make_batches(), 12, width=3, metadata={"data": "tiny"})
    assert model.training
    average = calibrate(model, make_batches(), 12)
    assert_same(found, CompactConstants.fit(average, width=3))
    torch.testing.assert_close(found.errors, CompactConstants.fit(average, width=3).errors, **CLOSE)
    assert found.layers[0].profile.dtype is dtype
    assert found.metadata == {**average.metadata, "data": "tiny", "compact": {"width": 3}}


def test_a_causal_encoder(monkeypatch):
    monkeypatch.setattr(averages, "_ON_CPU", 200)  # some rows at a time, each with its own part of the mask
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=12)).eval()
    found = calibrate_compact(model, make_batches(), LENGTH, width=2)
    assert found.layers[0].reach == Reach(after=0)
    assert_same(found, CompactConstants.fit(calibrate(model, make_batches(), LENGTH), width=2))
    found.check(model)


def test_a_swapped_encoder_is_seen_as_it_was():
    model = build()
    expected = calibrate_compact(model, make_batches(), LENGTH, width=20)
    swap_attention(model, "compact", constants=expected)
    again = calibrate_compact(model, make_batches(), LENGTH, width=20)
    assert_same(again, expected)
    with torch.no_grad():
        before = model(**make_inputs()).last_hidden_state
    assert torch.equal(swap_attention(model, "compact", constants=again)(**make_inputs()).last_hidden_state, before)


def test_several_processes_add_up():
    model, batches = build(), make_batches()
    parts = []

    def gather(share, all_reduce=None):
        return calibrate_compact(model, share, LENGTH, width=3, all_reduce=all_reduce)

    gather(batches[:1], lambda tensor: parts.append(tensor.clone()) or tensor)
    waiting = iter(parts)
    together = gather(batches[1:], lambda tensor: tensor + next(waiting))
    expected = gather(batches)
    assert_same(together, expected)
    torch.testing.assert_close(together.errors, expected.errors, **CLOSE)
    assert together.metadata["sequences"] == expected.metadata["sequences"] == 8


def test_the_error_of_a_sample_of_rows():
    model = build()
    exact = calibrate_compact(model, make_batches(), LENGTH, width=2)
    sample = calibrate_compact(model, make_batches(), LENGTH, width=2, error_rows=6)
    assert sample.metadata["compact"] == {"width": 2, "error_rows": 6}
    assert not torch.equal(sample.errors, exact.errors)
    torch.testing.assert_close(sample.errors, exact.errors, atol=0.25, rtol=0)
    assert_same(sample, exact)


def test_no_matrix_of_a_head_is_kept():
    averages = CompactAverages([Reach()] * LAYERS, HEADS, 64, width=4, num_rows=2)
    tensors = [tensor for tensor in vars(averages).values() if isinstance(tensor, torch.Tensor)]
    assert len(tensors) == 6
    assert sum(tensor.numel() for tensor in tensors if tensor is not averages.pair_counts) < LAYERS * HEADS * 64 * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 99}, "max_length is 99"),
        ({"width": 0}, "width is 0"),
        ({"error_rows": 0}, "error_rows is 0"),
        ({"batches": []}, "saw no sequence"),
    ],
)
def test_bad_arguments_of_the_pass(arguments, message):
    with pytest.raises(CalibrationError, match=message):
        calibrate_compact(build(), **({"batches": make_batches(), "max_length": LENGTH} | arguments))


def test_attention_that_is_not_finite():
    model = build()
    with torch.no_grad():
        model.encoder.layer[1].attention.self.query.weight.fill_(float("nan"))
    with pytest.raises(CalibrationError, match=r"attention of layer 1, heads \[0, 1, 2, 3\], is NaN"):
        calibrate_compact(model, make_batches(), LENGTH)
