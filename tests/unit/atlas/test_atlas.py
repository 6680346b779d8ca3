"""The atlas of heads: names of patterns, numbers of constants, and what a pass over data adds."""

import pytest
import torch
from torch import Tensor
from unit.encoders.tiny_encoders import HEADS, LAYERS, LENGTH, build, make_inputs

from papa_lightning import AttentionConstants, PapaError, calibrate
from papa_lightning.atlas import make_atlas, measure_atlas
from papa_lightning.criteria import RankingInputs, criterion_from

SIZE = 16
ORDER = torch.arange(SIZE)
BEHIND = ORDER[:, None] - ORDER


def rows(weights: Tensor) -> Tensor:
    """(T, T) with rows that sum to 1."""
    return weights / weights.sum(dim=1, keepdim=True)


#: A constant that is clearly one thing, by the name that it should get.
CLEAR = {
    "previous token": rows((BEHIND == 1) + 0.01),
    "next token": rows((BEHIND == -1) + 0.01),
    "itself": torch.eye(SIZE),
    "first token": rows((ORDER.expand(SIZE, -1) == 0) + 0.01),
    "separator": rows((ORDER.expand(SIZE, -1) == SIZE - 1) + 0.01),
    "local window": rows((BEHIND.abs() <= 2) + 0.01),
    "broad": torch.full((SIZE, SIZE), 1 / SIZE),
    "position-specific": rows((ORDER.flip(0)[:, None] == ORDER) + (ORDER[:, None] == (ORDER * 7) % SIZE) + 0.002),
}


@pytest.mark.parametrize("name", sorted(CLEAR))
def test_a_clear_pattern_gets_its_name(name: str) -> None:
    constants = AttentionConstants(
        CLEAR[name].float()[None, None], torch.full((SIZE, SIZE), 9.0), {"layout": "segment", "max_length": SIZE}
    )
    assert make_atlas(constants).names == [[name]]


def test_scores_weigh_pairs_by_their_sequences() -> None:
    """Entries of few sequences count little: the share is that of all sequences together."""
    counts = torch.tensor([[9.0, 9.0, 1.0], [9.0, 9.0, 1.0], [1.0, 1.0, 1.0]])
    values = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0], [0.0, 1.0, 0.0]])
    scores = make_atlas(AttentionConstants(values[None, None], counts)).scores
    assert float(scores["previous"]) == pytest.approx((9 * 0.2 + 1 * 1.0) / 10)
    assert float(scores["first"]) == pytest.approx((9 * 0.5 + 9 * 0.2) / 19)
    assert "separator" not in scores  # nothing says where they are


def test_window_and_distance() -> None:
    constants = AttentionConstants(rows(BEHIND.abs() <= 2)[None, None], torch.ones(SIZE, SIZE))
    numbers = make_atlas(constants).numbers
    assert float(numbers["window"]) == 1  # three of five keys
    assert float(numbers["distance"]) == pytest.approx(1.15, abs=0.01)


def test_one_pass_gives_the_numbers_of_calibration_and_criteria() -> None:
    encoder, batches = build("bert"), [make_inputs(seed=seed) for seed in (1, 2)]
    atlas = measure_atlas(encoder, batches, LENGTH, separators=[3])
    constants = calibrate(encoder, batches, LENGTH)
    torch.testing.assert_close(atlas.constants.values, constants.values)
    torch.testing.assert_close(atlas.constants.variance, constants.variance)
    norms = criterion_from("output_norm").scores(RankingInputs(encoder, batches=batches))
    torch.testing.assert_close(atlas.numbers["output_norm"], norms, rtol=1e-5, atol=1e-6)
    given = measure_atlas(encoder, batches, LENGTH, constants=constants, separators=[3])
    torch.testing.assert_close(given.scores["separator"], atlas.scores["separator"])
    assert atlas.measured["sequences"] == constants.metadata["sequences"]


def test_weights_of_separators_are_those_of_their_tokens() -> None:
    encoder, inputs = build("bert"), make_inputs()
    separator = int(inputs["input_ids"][0, 1])
    with torch.no_grad():
        encoder.set_attn_implementation("eager")
        attentions = encoder(**inputs, output_attentions=True).attentions
        encoder.set_attn_implementation("sdpa")
    real = inputs["attention_mask"].bool()
    keys = (inputs["input_ids"] == separator) & real
    found = measure_atlas(encoder, [inputs], LENGTH, separators=[separator]).scores["separator"]
    totals = torch.stack(
        [((own * keys[:, None, None]).sum(dim=3) * real[:, None]).sum(dim=(0, 2)) for own in attentions]
    )
    torch.testing.assert_close(found, (totals / real.sum()).double(), rtol=1e-4, atol=1e-6)


def test_the_table_has_a_row_for_each_head() -> None:
    encoder, batches = build("bert"), [make_inputs()]
    table = measure_atlas(encoder, batches, LENGTH).table()
    assert list(table[["layer", "head"]].itertuples(index=False, name=None)) == [
        (layer, head) for layer in range(LAYERS) for head in range(HEADS)
    ]
    assert {"pattern", "previous", "broad", "window", "variance", "entropy", "output_norm"} <= set(table)
    assert table.notna().all(axis=None)


def test_constants_of_another_encoder_are_refused() -> None:
    constants = AttentionConstants(torch.full((1, 1, LENGTH, LENGTH), 0.1), torch.ones(LENGTH, LENGTH))
    with pytest.raises(PapaError, match="the constants have 1 layers of 1 heads"):
        measure_atlas(build("bert"), [make_inputs()], LENGTH, constants=constants)
