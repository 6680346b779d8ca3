"""Products with compact constants, against the matrices that they stand for."""

import pytest
import torch

from papa_lightning.attention import Reach
from papa_lightning.attention.compact import functional as compact
from papa_lightning.attention.compact.functional import (
    column_product,
    expand_profile,
    low_rank_attention,
    profile_attention,
    profile_mass,
    profile_product,
)
from papa_lightning.attention.functional import constant_attention, normalized_constants

HEADS, SIZE = 3, 5
REACHES = [Reach(), Reach(after=0), Reach(before=6, after=6), Reach(before=2, after=0), Reach(before=40, after=0)]
EXACT = {"atol": 1e-12, "rtol": 1e-12}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that few tokens are many blocks; products of 9 keys or more go through them at width 1."""
    monkeypatch.setattr(compact, "BLOCK", 4)


def numbers(length, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    profile = torch.rand(HEADS, 2 * width + 1, generator=generator, dtype=torch.float64)
    columns = torch.rand(HEADS, length, generator=generator, dtype=torch.float64)
    value = torch.randn(4, HEADS, length, SIZE, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, length, generator=generator) > 0.3
    mask[1] = False  # a sequence of padding
    return profile.to(dtype), columns.to(dtype), value.to(dtype), mask


def matrices(profile, columns, reach):
    """C[i,j] = rho(i - j) + alpha(j), entry by entry."""
    length, width = columns.shape[1], profile.shape[1] // 2
    entries = torch.zeros(HEADS, length, length, dtype=profile.dtype)
    for i in range(length):
        for j in range(length):
            before, after = i - j, j - i
            if before <= (length if reach.before is None else reach.before) and after <= (
                length if reach.after is None else reach.after
            ):
                entries[:, i, j] = columns[:, j] + (profile[:, width + i - j] if abs(i - j) <= width else 0)
    return entries


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize(("length", "width"), [(41, 1), (41, 4), (43, 5), (44, 7), (6, 9), (9, 0)])
def test_against_the_matrices(length, width, reach):
    profile, columns, value, mask = numbers(length, width)
    expected = matrices(profile, columns, reach)
    torch.testing.assert_close(expand_profile(profile, columns, reach), expected, **EXACT)
    for real in (None, mask):
        weights = normalized_constants(expected, real)
        result = profile_attention(profile, columns, value, real, reach)
        assert result.shape == (4, length, HEADS, SIZE)
        torch.testing.assert_close(result, (weights @ value).transpose(1, 2), **EXACT)


def test_long_sequences_never_meet_a_matrix(monkeypatch):
    monkeypatch.setattr(compact, "expand_profile", None)
    profile, columns, value, mask = numbers(41, 4)
    assert profile_attention(profile, columns, value, mask).isfinite().all()


def test_tokens_of_one_sequence_stay_out_of_the_next():
    profile, _, value, _ = numbers(41, 7)
    together = profile_product(profile, value.transpose(1, 2))
    alone = torch.cat([profile_product(profile, one.transpose(1, 2)) for one in value.split(1)])
    torch.testing.assert_close(together, alone, **EXACT)


@pytest.mark.parametrize("reach", [Reach(), Reach(after=0), Reach(before=6, after=6)], ids=str)
def test_gradients_reach_profile_columns_and_values(reach):
    given = numbers(41, 4)
    mask = given[3]
    gradients = []
    for function in (
        lambda profile, columns, value: profile_attention(profile, columns, value, mask, reach),
        lambda profile, columns, value: constant_attention(expand_profile(profile, columns, reach), value, mask),
    ):
        leaves = [tensor.clone().requires_grad_(True) for tensor in given[:3]]
        function(*leaves).square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for found, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_rows_without_mass_are_zero():
    profile, columns, value, _ = numbers(41, 4)
    profile.zero_()
    columns.zero_()
    columns[0, 3] = 1.0
    mask = torch.ones(4, 41, dtype=torch.bool)
    mask[2, 3] = False
    result = profile_attention(profile, columns, value, mask)
    assert not result[:, :, 1:].any()
    assert not result[2].any()
    torch.testing.assert_close(result[0, :, 0], value[0, 0, 3].expand(41, -1), **EXACT)


def test_low_rank_against_the_matrices():
    left, right, _ = torch.rand(3, HEADS, 41, 2, dtype=torch.float64).unbind()
    _, _, value, mask = numbers(41, 1)
    for real in (None, mask):
        expected = constant_attention(left @ right.mT, value, real)
        torch.testing.assert_close(low_rank_attention(left, right, value, real), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_exact_masses(dtype):
    profile, columns, value, mask = numbers(203, 4, dtype=dtype)
    mass = profile_mass(profile, columns, mask, Reach())
    assert mass.dtype is torch.float32
    exact = profile_mass(profile.double(), columns.double(), mask, Reach())
    torch.testing.assert_close(mass.double(), exact, atol=1e-4, rtol=1e-5)
    with torch.autocast("cpu", dtype):
        blurred = profile_mass(profile.float(), columns.float(), mask, Reach())
    torch.testing.assert_close(blurred.double(), exact, atol=1e-4, rtol=1e-5)
    result = profile_attention(profile, columns, value, mask)
    expected = profile_attention(profile.double(), columns.double(), value.double(), mask)
    assert result.dtype is dtype
    torch.testing.assert_close(result.double(), expected, atol=0.05, rtol=0.05)


def test_columns_of_a_causal_layer_take_what_came_before():
    columns = torch.tensor([[1.0, 2.0, 4.0]])
    tokens = torch.ones(1, 3, 1, 1)
    assert column_product(columns, tokens, Reach(after=0)).flatten().tolist() == [1, 3, 7]
    assert column_product(columns, tokens, Reach(after=1)).flatten().tolist() == [3, 7, 7]
    assert column_product(columns, tokens, Reach(before=1, after=0)).flatten().tolist() == [1, 3, 6]
    assert column_product(columns, tokens, Reach(before=0)).flatten().tolist() == [7, 6, 4]
    assert column_product(columns, tokens, Reach()).flatten().tolist() == [7]
