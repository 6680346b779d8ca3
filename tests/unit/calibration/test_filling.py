"""Filled averages: the formula, its limits, and what stays 0."""

import math
import warnings
from typing import Any

import pytest
import torch
from conformance import tiny_models
from torch import Tensor
from torch.testing import assert_close
from unit.encoders.tiny_encoders import LENGTH, build, make_inputs

from papa_lightning import AttentionConstants, PapaError, calibrate, swap_attention
from papa_lightning.attention import Reach, ZeroMassWarning
from papa_lightning.calibration import CompactConstants, control_constants, describe_filling, merge_constants
from papa_lightning.calibration.filling import STRENGTH, WIDTH
from papa_lightning.encoders import attention_reaches

EXACT = {"atol": 1e-12, "rtol": 0.0}


def synthetic(
    reach: Reach | None = None, lengths: tuple[int, ...] = (9, 6, 6, 5, 5, 5, 4, 3), length: int = 14, heads: int = 3
) -> AttentionConstants:
    """Averages over sequences of these lengths, as two layers with this reach would have them."""
    counts = torch.zeros(length, length, dtype=torch.float64)
    for one in lengths:
        counts[:one, :one] += 1
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, heads, length, length, generator=generator, dtype=torch.float64) * 0.05 + 0.1
    return AttentionConstants((reach or Reach()).cut(values) * (counts > 0), counts)


def profile_of(constants: AttentionConstants) -> Tensor:
    fitted = CompactConstants.fit(constants, width=WIDTH)
    return torch.stack([layer.expand() for layer in fitted.layers])


def test_by_hand() -> None:
    """0.5 on the diagonal and 0.2 beside it are columns of 0.2 and 0.3 more at distance 0, also where nothing was."""
    values = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    counts = torch.tensor([[3, 3, 0], [3, 3, 0], [0, 0, 0]])
    found = AttentionConstants(values[None, None], counts).filled()
    expected = torch.tensor([[0.5, 0.2, 0.2], [0.2, 0.5, 0.2], [0.2, 0.2, 0.5]], dtype=torch.float64)
    assert_close(found.values[0, 0], expected, atol=1e-8, rtol=0)
    assert found.metadata == {"filled": {"strength": STRENGTH, "pairs": 5}}
    assert describe_filling(found) == "filled 5 of 9 position pairs, which calibration never saw"


@pytest.mark.parametrize("strength", [0.5, STRENGTH, 40])
@pytest.mark.parametrize("reach", [Reach(), Reach(after=0), Reach(2, 2)])
def test_the_mean_of_the_average_and_as_many_sequences_of_the_profile(reach: Reach, strength: float) -> None:
    constants = synthetic(reach)
    counts, profile = constants.pair_counts, profile_of(constants)
    expected = (counts * constants.values + strength * profile) / (counts + strength)
    assert_close(constants.filled(strength).values, expected, **EXACT)


def test_little_strength_is_the_average_and_much_is_the_profile() -> None:
    constants = synthetic()
    seen = constants.pair_counts > 0
    weak, strong = (constants.filled(strength).values for strength in (1e-12, 1e12))
    assert_close(weak[..., seen], constants.values[..., seen], atol=1e-10, rtol=0)
    assert_close(weak[..., ~seen], strong[..., ~seen], atol=1e-10, rtol=0)
    assert_close(strong, profile_of(constants), atol=1e-10, rtol=0)
    assert not torch.allclose(strong, constants.values, atol=1e-3)


@pytest.mark.parametrize("reach", [Reach(), Reach(after=0), Reach(before=2, after=0), Reach(3, 3)])
def test_what_was_never_seen_gets_weights_within_the_reach_and_none_beyond(reach: Reach) -> None:
    constants = synthetic(reach)
    found, allowed = constants.filled(), reach.allowed(constants.max_length)
    assert (found.values[..., allowed] > 0).all()
    assert (found.values[..., ~allowed] == 0).all()
    unseen = (constants.pair_counts == 0) & allowed
    assert found.metadata["filled"]["pairs"] == int(unseen.sum()) > 0


@pytest.mark.parametrize("name", ["gpt2", "modernbert", "bert"])
def test_real_layers_keep_their_reach_and_no_token_is_left_alone(name: str) -> None:
    model = tiny_models.build(name)
    inputs = make_inputs()
    short = {key: values[:, :5] for key, values in inputs.items()}
    average = calibrate(model, [short], max_length=LENGTH)
    filled = average.filled()
    for values, reach in zip(filled.values, attention_reaches(model), strict=True):
        allowed = reach.allowed(LENGTH)
        assert (values[:, ~allowed] == 0).all()
        assert (values.sum(dim=-1) > 0).all()
    swap_attention(model, "constant", constants=average)
    with torch.no_grad(), pytest.warns(ZeroMassWarning, match="fill_unseen=True"):
        model(**inputs)
    swap_attention(model, "constant", constants=filled)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs)


def test_a_profile_above_1_is_cut() -> None:
    values = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    counts = torch.tensor([[9, 9, 0], [9, 9, 0], [0, 0, 1]])
    assert AttentionConstants(values[None, None], counts).filled(100.0).values.max() <= 1.0


def test_pruned_heads_stay_pruned_and_constants_without_a_sequence_stay_0() -> None:
    constants = synthetic()
    values = constants.values.clone()
    values[1, 2] = 0.0
    found = AttentionConstants(values, constants.pair_counts).filled()
    assert (found.values[1, 2] == 0).all()
    assert (found.values[1, :2] > 0).all()
    nothing = AttentionConstants(torch.zeros(1, 2, 3, 3), torch.zeros(3, 3)).filled()
    assert (nothing.values == 0).all()
    assert nothing.metadata["filled"]["pairs"] == 0
    assert describe_filling(nothing) == ""


def test_heads_that_share_constants_go_on_sharing_them() -> None:
    merged = merge_constants(synthetic(heads=5)).filled()
    assert (merged.values == merged.values[:, :1]).all()


def test_one_position() -> None:
    constants = AttentionConstants(torch.ones(1, 2, 1, 1), torch.full((1, 1), 3.0))
    assert_close(constants.filled().values, constants.values)


def test_the_measurement_stays_with_the_filled_constants() -> None:
    model = build()
    average = calibrate(model, [make_inputs(length=6)], max_length=LENGTH, metadata={"data": "some"})
    found = average.filled(2)
    assert found.variance is average.variance
    assert found.pair_counts is average.pair_counts
    assert found.metadata == {**average.metadata, "filled": {"strength": 2.0, "pairs": LENGTH**2 - 36}}
    assert found.filled() is found
    assert "filled" not in average.metadata


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_sums_are_those_of_float64_and_the_same_again(dtype: torch.dtype) -> None:
    constants = synthetic()
    rounded = AttentionConstants(constants.values.to(dtype), constants.pair_counts)
    exact = AttentionConstants(rounded.values.double(), constants.pair_counts)
    found = rounded.filled()
    assert torch.equal(found.values, exact.filled().values.to(dtype))
    assert torch.equal(found.values, rounded.filled().values)


@pytest.mark.parametrize("noted", [3, "yes", [], {}, {"pairs": "many"}, None])
def test_metadata_of_others_under_the_same_name_say_nothing(noted: Any) -> None:
    assert describe_filling(AttentionConstants(torch.ones(1, 1, 2, 2), torch.ones(2, 2), {"filled": noted})) == ""


def test_controls_hold_for_the_pairs_that_were_filled() -> None:
    filled = synthetic(Reach(after=0)).filled()
    shuffled = control_constants("shuffled", filled)
    assert_close(shuffled.values.sort(dim=-1).values, filled.values.sort(dim=-1).values, **EXACT)
    unseen = slice(10, None)
    assert not torch.equal(shuffled.values[:, :, unseen], filled.values[:, :, unseen])


@pytest.mark.parametrize("strength", [0, -1.0, math.nan, math.inf, True, "4", None])
def test_strengths_that_cannot_be_meant(strength: Any) -> None:
    with pytest.raises(PapaError, match=r"^strength is .*, but must be a .*number"):
        synthetic().filled(strength)
