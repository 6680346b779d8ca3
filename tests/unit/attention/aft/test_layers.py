"""The layers on plain tensors: what they compute, what learns, and what they refuse."""

import pytest
import torch
from unit.attention.direct_forms import MASKS, direct, make_mask, make_rows, offsets

from papa_lightning.attention import (
    AdditiveAttention,
    AFTConv,
    AFTConv2d,
    AFTFull,
    AFTLocal,
    AFTSimple,
    FactorizedBias,
    NormalizedKernel,
    additive_attention,
)
from papa_lightning.errors import PapaError

assert_close = torch.testing.assert_close
EXACT = {"atol": 1e-12, "rtol": 1e-12}
LAYERS = {
    "full": lambda **more: AFTFull(8, max_length=40, inner=4, chunk=8, **more),
    "simple": lambda **more: AFTSimple(8, **more),
    "local": lambda **more: AFTLocal(8, max_length=40, window=3, inner=4, **more),
    "conv": lambda **more: AFTConv(8, heads=2, max_length=40, window=5, **more),
    "conv2d": lambda: AFTConv2d(8, heads=2, side=6, window=3),
    "additive": lambda **more: AdditiveAttention(8, heads=2, chunk=8, **more),
}
CAUSAL = [name for name in LAYERS if name != "conv2d"]


def make_layer(name, **more):
    torch.manual_seed(0)
    layer = LAYERS[name](**more).double()
    for parameter in layer.parameters():  # gamma and beta would be 0
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_padding_changes_no_real_row_and_every_parameter_learns(name):
    layer = make_layer(name)
    hidden = torch.randn(2, 36, 8, dtype=torch.float64)
    mask = torch.rand(2, 36) < 0.7
    changed = hidden.masked_fill(~mask[..., None], 7.0)
    result = layer(hidden, mask)
    assert_close(layer(changed, mask.long())[mask], result[mask], **EXACT)
    assert_close(layer(hidden[:1], mask[:1]), result[:1], **EXACT)
    result[mask].square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in layer.parameters()), name
    assert layer.key.weight.grad.abs().max() > 1e-6


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_layers_look_back_only_and_shorter_sequences_are_beginnings(name):
    layer = make_layer(name, causal=True)
    hidden = torch.randn(1, 36, 8, dtype=torch.float64, requires_grad=True)
    result = layer(hidden)
    assert_close(layer(hidden[:, :10]), result[:, :10], **EXACT)
    (gradient,) = torch.autograd.grad(result[:, 9].sum(), hidden)
    assert (gradient[:, 10:] == 0).all()
    assert (gradient[:, :10] != 0).all()


@pytest.mark.parametrize("name", LAYERS)
def test_one_token_one_sequence_and_half_precision(name):
    layer = make_layer(name).float()
    assert layer(torch.randn(1, 1, 8)).shape == (1, 1, 8)
    hidden = torch.randn(2, 36, 8)
    expected = layer(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(layer(hidden).float(), expected, atol=0.2, rtol=0.1)
    with torch.no_grad():
        layer.key.weight.mul_(50.0)
    loss = layer.to(torch.bfloat16)(hidden.to(torch.bfloat16)).float().square().sum()
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_the_band_of_a_factorized_bias_is_cut_from_the_whole():
    bias = FactorizedBias(max_length=70, inner=8, groups=2).double()
    assert FactorizedBias(512, 64)(512).std().item() == pytest.approx(0.01, rel=0.1)
    for length, window, causal in ((1, 1, False), (5, 9, True), (40, 3, False), (70, 33, True), (70, 70, False)):
        whole, band = bias(length), bias.band(length, window, causal)
        reach = min(window, length) - 1
        assert band.shape == (2, length, reach + 1 if causal else 2 * reach + 1)
        distance = offsets(length)
        for column in range(band.shape[2]):
            expected = torch.where(distance == column - reach, whole, 0.0).sum(dim=2)
            assert_close(band[..., column], expected, **EXACT)
    bias.band(40, 3).square().sum().backward()
    assert (bias.u.grad[:, :40] != 0).all()
    assert (bias.v.grad[:, :40] != 0).all()


def test_a_kernel_is_normalized_and_begins_at_zero():
    for dimensions in (1, 2):
        kernel = NormalizedKernel(heads=3, window=5, dimensions=dimensions)
        assert (kernel() == 0).all()
        kernel().sum().backward()
        assert (kernel.beta.grad != 0).all()
        with torch.no_grad():
            kernel.gamma.copy_(torch.arange(1.0, 4.0).view_as(kernel.gamma))
            kernel.beta.fill_(0.5)
        values = kernel().flatten(1)
        assert_close(values.mean(1), torch.full((3,), 0.5))
        assert_close(values.std(1, correction=0), torch.arange(1.0, 4.0))
    alone = NormalizedKernel(heads=2, window=1)
    alone().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in alone.parameters())


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask_kind", MASKS)
def test_additive_attention_is_its_formula(mask_kind, causal):
    query, key, value = make_rows((2, 9, 6))
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mask = make_mask(mask_kind, 2, 9)
    result = additive_attention(query, key, value, weights, mask, causal, chunk=4)
    scores = torch.tanh(query[:, :, None] + key[:, None]) * weights.flatten()
    scores = scores.unflatten(-1, (3, 2)).sum(-1).repeat_interleave(2, dim=-1)
    for row in range(9):  # the same as AFT-full with the scores of this row as keys, and an open gate
        zero = torch.zeros_like(value)
        expected = direct(zero, scores[:, row], value, torch.zeros(6, 9, 9), mask, causal=False) * 2
        if causal:
            seen = slice(0, row + 1)
            some = None if mask is None else mask[:, seen]
            nothing = torch.zeros(6, row + 1, row + 1)
            expected = direct(zero[:, seen], scores[:, row, seen], value[:, seen], nothing, some) * 2
        assert_close(result[:, row], expected[:, row], **EXACT)
    given = [tensor.requires_grad_() for tensor in (query, key, value, weights)]
    assert torch.autograd.gradcheck(lambda *x: additive_attention(*x, mask, causal, chunk=4), given, fast_mode=True)


def test_what_cannot_be_built_or_mixed_is_refused_by_name():
    refused = {
        "window is 41, but max_length is only 40": lambda: AFTLocal(8, max_length=40, window=41),
        "window is 6, but max_length is only 5": lambda: AFTConv(8, heads=2, max_length=5, window=6),
        "window is 7, but side is only 6": lambda: AFTConv2d(8, heads=2, side=6, window=7),
        "window is 0": lambda: AFTLocal(8, max_length=40, window=0),
        "heads are 3, which does not divide the 8": lambda: AFTConv(8, heads=3, max_length=40, window=5),
        "heads are 5, which does not divide the 8": lambda: AdditiveAttention(8, heads=5),
        "heads are 3.*8": lambda: AFTConv2d(8, heads=3, side=6, window=3),
        "inner is 0": lambda: AFTFull(8, max_length=40, inner=0),
        "hidden_size is 0": lambda: AFTSimple(0),
        "chunk is 0": lambda: AFTFull(8, max_length=40, chunk=0),
        "have 41 tokens, but max_length is 40": lambda: LAYERS["full"]()(torch.randn(1, 41, 8)),
        "have 41 tokens, but .* is 40": lambda: LAYERS["local"]()(torch.randn(1, 41, 8)),
        "have 32 tokens, which is no square grid": lambda: LAYERS["conv2d"]()(torch.randn(1, 32, 8)),
        "have 49 tokens, .* at most 6 x 6": lambda: LAYERS["conv2d"]()(torch.randn(1, 49, 8)),
        "hidden has the shape": lambda: LAYERS["simple"]()(torch.randn(1, 10, 7)),
        "v has 3 numbers": lambda: additive_attention(*torch.randn(3, 1, 5, 4), torch.randn(3)),
    }
    for words, call in refused.items():
        with pytest.raises(PapaError, match=words):
            call()
