"""Position biases that give constants back, on plain tensors."""

import pytest
import torch
from unit.attention.mixing import mix

from papa_lightning.attention import KINDS, Place, Reach
from papa_lightning.attention.aft.from_constants import FLOOR, band_bias, dense_bias, kernel_bias, kernel_entries

HEADS, LENGTH, SIZE = 3, 9, 4
CLOSE = {"atol": 1e-9, "rtol": 1e-9}


def make_constants(causal=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(HEADS, LENGTH, LENGTH, generator=generator, dtype=torch.float64) ** 3 + 0.01
    return values.tril() if causal else values


def shares(constants):
    return constants / constants.sum(dim=-1, keepdim=True)


def weights_of(kind, constants, causal, **options):
    """The matrix (H, T, T) that a fresh layer multiplies the values with: what it gives for unit vectors."""
    reach = Reach(after=0 if causal else None)
    place = Place(0, HEADS, LENGTH, LENGTH, torch.float64, reach=reach)
    mixer = KINDS[kind](place, range(HEADS), init="from_constants", **options)
    mixer.load_constants(constants)
    value = torch.eye(LENGTH, dtype=torch.float64).expand(1, HEADS, -1, -1)
    query, key = torch.randn(2, 1, HEADS, LENGTH, LENGTH, dtype=torch.float64) * 5
    return mix(mixer, query, key, value, None, 0.3)[0][0].transpose(0, 1)


@pytest.mark.parametrize("causal", [False, True])
def test_aft_full_is_the_constant_heads(causal):
    """For any queries and keys: the gate is exactly 1 and the keys have no effect."""
    constants = make_constants(causal)
    torch.testing.assert_close(weights_of("aft_full", constants, causal), shares(constants), **CLOSE)


def test_aft_full_with_one_bias_is_their_mean():
    constants = make_constants()
    expected = shares(constants.mean(dim=0, keepdim=True)).expand(HEADS, -1, -1)
    torch.testing.assert_close(weights_of("aft_full", constants, False, per_head=False), expected, **CLOSE)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 3, LENGTH - 1, LENGTH])
def test_aft_local_is_exact_in_its_window_and_keeps_the_mass_outside(window, causal):
    constants = make_constants(causal)
    found, wanted = weights_of("aft_local", constants, causal, window=window), shares(constants)
    position = torch.arange(LENGTH)
    outside = (position - position[:, None]).abs() >= window
    seen = outside & (wanted > 0)
    torch.testing.assert_close(found[..., ~outside], wanted[..., ~outside], **CLOSE)
    means = (wanted * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(found[seen], means.expand_as(wanted)[seen], **CLOSE)


def test_a_window_ignores_pairs_that_calibration_never_saw():
    constants = torch.full((1, 6, 6), 0.25)
    constants[:, :, 4:] = 0
    band = band_bias(constants, 2, causal=False)
    torch.testing.assert_close(band[0, 0, 1:], torch.zeros(2))  # all keys that were seen weigh the same


@pytest.mark.parametrize(("causal", "window"), [(False, 3), (False, 4), (True, 3)])
def test_aft_conv_is_the_least_squares_fit_by_offset(causal, window):
    constants = make_constants(causal)
    wanted, entries = shares(constants), kernel_entries(LENGTH, window, causal)
    logs = kernel_bias(constants, entries, window)
    first = 1 - window if causal else -((window - 1) // 2)
    beside = torch.stack([wanted[head][(entries < 0) & (wanted[head] > 0)].mean() for head in range(HEADS)])
    for entry in range(window):
        means = wanted.diagonal(first + entry, dim1=1, dim2=2).mean(dim=1)
        torch.testing.assert_close(logs[:, entry].exp() * beside, means, **CLOSE)
    # The layer has these weights: rows of the matrix with one number an offset, divided by their sums.
    weights = torch.where(entries >= 0, logs[:, entries.clamp_min(0)], 0.0).exp()
    weights = shares(weights.tril() if causal else weights)
    torch.testing.assert_close(weights_of("aft_conv", constants, causal, window=window), weights, **CLOSE)


def test_kernel_of_a_grid():
    entries = kernel_entries(9, window=3, causal=False, side=3)
    assert entries[4].tolist() == list(range(9))  # the cell in the middle sees all, in reading order
    assert entries[0].tolist() == [4, 5, -1, 7, 8, -1, -1, -1, -1]
    weights_of("aft_conv", make_constants(), False, window=3, grid=True)


def test_zero_averages_have_a_finite_floor():
    constants = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]], dtype=torch.float64)
    bias = dense_bias(constants)
    assert bias.isfinite().all()
    assert torch.equal(bias[0, 1], bias[0, 1, :1].expand(3)), "a row that calibration never saw is uniform"
    torch.testing.assert_close(bias[0, 2, :2].exp().sum().item(), FLOOR * 2 / 3)
    assert band_bias(constants, 1, causal=False).isfinite().all()
    assert kernel_bias(constants, kernel_entries(3, 3, False), 3).isfinite().all()
