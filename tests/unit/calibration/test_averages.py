"""The running sums on their own."""

import pytest
import torch

from papa_lightning.calibration import AttentionAverages
from papa_lightning.errors import CalibrationError

assert_close = torch.testing.assert_close


def make_batch(seed, batch=3, length=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    attention = torch.softmax(torch.randn(2, batch, 3, length, length, generator=generator, dtype=torch.float64), -1)
    mask = torch.randint(0, 2, (batch, length), generator=generator)
    return attention.to(dtype), mask


def fill(averages, batches):
    for attention, mask in batches:
        averages.add_mask(mask)
        for layer in range(2):
            averages.add_attention(layer, attention[layer].clone(), mask)
    return averages


def test_average_is_the_definition():
    batches = [make_batch(0), make_batch(1, length=3), make_batch(2, batch=1), make_batch(3, length=1)]
    averages = fill(AttentionAverages(2, 3, 6), batches)
    sums, counts = torch.zeros(2, 3, 6, 6).double(), torch.zeros(6, 6).double()
    for attention, mask in batches:
        for sequence, m in enumerate(mask.tolist()):
            for i in range(len(m)):
                for j in range(len(m)):
                    counts[i, j] += m[i] * m[j]
                    sums[:, :, i, j] += attention[:, sequence, :, i, j] * m[i] * m[j]
    expected = torch.where(counts > 0, sums / counts.clamp_min(1), 0)
    assert torch.equal(averages.pair_counts, counts)
    assert_close(averages.sums, sums, atol=1e-12, rtol=1e-12)
    assert_close(averages.compute(), expected, atol=1e-12, rtol=1e-12)
    assert averages.compute()[:, :, 5].abs().max() == 0, "no sequence was that long"
    assert averages.num_sequences == sum(int(mask.any(dim=1).sum()) for _, mask in batches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_sums_are_float64_whatever_comes_in(dtype):
    averages = fill(AttentionAverages(2, 3, 5), [make_batch(0, dtype=dtype)])
    assert averages.sums.dtype is torch.float64
    assert averages.compute().dtype is torch.float64
    assert averages.compute(torch.float32).dtype is torch.float32


def test_many_small_terms_do_not_drown():
    """In float32 a sum of 2**24 ones stops growing."""
    averages = AttentionAverages(1, 1, 1)
    averages.sums += 2.0**24
    averages.add_attention(0, torch.ones(1, 1, 1, 1), torch.ones(1, 1))
    assert averages.sums.item() == 2**24 + 1


def test_reduction_adds_everything_once():
    halves = [make_batch(0), make_batch(1)], [make_batch(2, batch=1)]
    one, other = (fill(AttentionAverages(2, 3, 5), half) for half in halves)
    whole = fill(AttentionAverages(2, 3, 5), [*halves[0], *halves[1]])
    theirs = {
        id(one.sums): other.sums,
        id(one.pair_counts): other.pair_counts,
        id(one.squares): other.squares,
        id(one.num_sequences): other.num_sequences,
    }
    one.reduce(lambda tensor: tensor + theirs.pop(id(tensor)))
    assert theirs == {}
    assert_close(one.compute(), whole.compute(), atol=1e-14, rtol=1e-14)
    assert torch.equal(one.pair_counts, whole.pair_counts)
    assert one.num_sequences == whole.num_sequences
    assert_close(one.variance(), whole.variance(), atol=1e-14, rtol=1e-14)


def test_variance_is_the_definition():
    """Also where sequences are of different length, have holes, and come in batches of other sizes."""
    batches = [make_batch(0), make_batch(1, length=3), make_batch(2, batch=1), make_batch(3, length=1)]
    averages = fill(AttentionAverages(2, 3, 6), batches)
    constants, total, rows = averages.compute(), torch.zeros(2, 3).double(), 0
    for attention, mask in batches:
        for sequence, m in enumerate(mask.bool()):
            rows += int(m.sum())
            real = m[:, None] & m
            length = len(m)
            difference = attention[:, sequence] - constants[:, :, :length, :length]
            total += (difference.square() * real).sum(dim=(2, 3))
    assert averages.variance().dtype is torch.float64
    assert_close(averages.variance(), total / rows, atol=1e-12, rtol=1e-12)
    alone = fill(
        AttentionAverages(2, 3, 6),
        [(attention[:, [row]], mask[[row]]) for attention, mask in batches for row in range(len(mask))],
    )
    assert_close(alone.variance(), averages.variance(), atol=1e-12, rtol=1e-12)


def test_attention_that_never_changes_has_no_variance():
    """The difference of two large sums is not exactly 0, but it must not be below."""
    attention, mask = make_batch(0, batch=1, dtype=torch.float32)
    averages = fill(AttentionAverages(2, 3, 5), [(attention, torch.ones_like(mask))] * 1000)
    assert 0 <= averages.variance().min() <= averages.variance().max() < 1e-6


def test_sequences_of_padding_count_as_none():
    averages = AttentionAverages(1, 1, 2)
    averages.add_mask(torch.zeros(3, 2))
    averages.add_attention(0, torch.full((3, 1, 2, 2), float("nan")), torch.zeros(3, 2))
    with pytest.raises(CalibrationError, match=r"saw no sequence with a real token"):
        averages.compute()
    with pytest.raises(CalibrationError, match=r"saw no sequence with a real token"):
        averages.variance()
    assert averages.sums.abs().max() == 0
    assert averages.squares.abs().max() == 0


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_layers_are_named(broken):
    averages = fill(AttentionAverages(2, 3, 5), [make_batch(0)])
    averages.check_finite()
    averages.sums[1, 2, 0, 3] = broken
    averages.sums[1, 0, 4, 4] = broken
    for check in (averages.check_finite, averages.compute):
        with pytest.raises(CalibrationError, match=r"attention of layer 1, heads \[0, 2\], is NaN or infinite"):
            check()
