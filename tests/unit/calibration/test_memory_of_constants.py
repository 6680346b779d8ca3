"""Sums and constants are large: nothing takes a second copy of all of them."""

import pytest
import torch

from papa_lightning import AttentionConstants
from papa_lightning.calibration.averages import AttentionAverages
from papa_lightning.runtime import peak_bytes

LAYERS, HEADS, LENGTH = 3, 4, 128
MATRIX = 8 * LENGTH**2  # one head in float64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def averages():
    one = AttentionAverages(LAYERS, HEADS, LENGTH)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    one.add_mask(mask)
    for layer in range(LAYERS):
        one.add_attention(layer, torch.rand(2, HEADS, LENGTH, LENGTH).softmax(-1), mask)
    return one


def test_sums_are_looked_at_where_they_are(averages):
    assert peak_bytes(averages.check_finite, CPU) < MATRIX


def test_constants_are_divided_head_by_head(averages):
    result = LAYERS * HEADS * MATRIX // 2
    assert peak_bytes(lambda: averages.compute(torch.float32), CPU) <= result + 4 * MATRIX
    assert peak_bytes(averages.variance, CPU) <= 4 * MATRIX


def test_constants_are_made_and_saved_where_they_are(averages, tmp_path):
    values, counts = averages.compute(torch.float32), averages.pair_counts
    assert peak_bytes(lambda: AttentionConstants(values, counts), CPU) <= 4 * MATRIX
    constants = AttentionConstants(values, counts)
    assert peak_bytes(lambda: constants.save(tmp_path / "file"), CPU) < MATRIX
    whole = values.nbytes + counts.nbytes
    assert peak_bytes(lambda: AttentionConstants.load(tmp_path / "file"), CPU) <= whole + 4 * MATRIX
