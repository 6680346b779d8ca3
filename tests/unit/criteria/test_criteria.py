"""Criteria by name, the ones that run nothing, and what a ranking of them looks like."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor
from unit.encoders.tiny_encoders import HEADS, LAYERS, LENGTH, build, make_constants, make_inputs

from papa_lightning import AttentionConstants, HeadRanking, PapaError, calibrate
from papa_lightning.criteria import CRITERIA, HeadCriterion, RankingInputs, criterion_from, rank_heads

NAMES = [
    "variance",
    "divergence",
    "output",
    "taylor",
    "gate",
    "output_norm",
    "entropy",
    "first_token",
    "greedy",
    "embedding",
    "random",
    "layer",
]


def test_the_names() -> None:
    assert set(NAMES) <= set(CRITERIA)
    assert all(CRITERIA[name].name == name for name in CRITERIA)
    assert all(criterion_from(name).spec == name for name in NAMES[:10])
    assert {name for name in NAMES if criterion_from(f"{name}:bottom_up" if name == "layer" else name).passes == 0} == {
        "variance",
        "first_token",
        "random",
        "layer",
    }


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "median",
        "layer",
        "layer:",
        "layer:sideways",
        "random:",
        "random:-1",
        "random:x",
        "gate:2",
        "Variance",
        "embedding:0",
        "greedy:x",
    ],
)
def test_what_is_no_criterion_is_refused(spec: str) -> None:
    with pytest.raises(PapaError, match=rf"criterion is '{spec}': choose from variance, .*layer:bottom_up"):
        criterion_from(spec)


def test_random_orders() -> None:
    inputs = RankingInputs(build())
    before = torch.random.get_rng_state()
    orders = {spec: rank_heads(spec, inputs) for spec in ("random", "random:0", "random:1", "random:2")}
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [ranking.criterion for ranking in orders.values()] == list(orders)
    assert orders["random"].heads == orders["random:0"].heads == rank_heads("random:0", inputs).heads
    assert len({tuple(ranking.heads) for ranking in orders.values()}) == 3
    every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    assert all(sorted(ranking.heads) == every != ranking.heads for ranking in orders.values())


def test_layer_by_layer() -> None:
    up = rank_heads("layer:bottom_up", RankingInputs(build()))
    down = rank_heads("layer:top_down", RankingInputs(build()))
    assert up.heads == [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    assert down.heads == [(layer, head) for layer in reversed(range(LAYERS)) for head in range(HEADS)]


def test_variance_of_the_constants_file() -> None:
    encoder = build()
    constants = calibrate(encoder, [make_inputs()], LENGTH)
    ranking = rank_heads("variance", RankingInputs(encoder, constants))
    assert constants.variance is not None
    assert ranking == HeadRanking.from_scores(constants.variance.tolist(), "variance")
    assert ranking.scores == sorted(constants.variance.flatten().tolist())


def test_constants_without_variance_are_refused() -> None:
    with pytest.raises(PapaError, match=r"constants.variance is None: these constants were not calibrated"):
        rank_heads("variance", RankingInputs(build(), make_constants()))


def test_constants_of_another_encoder_are_refused() -> None:
    constants = calibrate(build(layers=2), [make_inputs()], LENGTH)
    with pytest.raises(PapaError, match=r"have 2 layers of 4 heads, but the encoder has 3"):
        rank_heads("variance", RankingInputs(build(), constants))


class Weights(HeadCriterion):
    """A criterion of one's own: a number that the encoder itself has for each head."""

    name: ClassVar[str] = "weights"

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def measure(self, inputs: RankingInputs) -> Tensor:
        layers = [layer.attention.self.value.weight for layer in inputs.encoder.encoder.layer]
        scores = torch.stack([weight.view(HEADS, -1).norm(dim=1) for weight in layers])
        return scores.T if self.broken else scores


def test_a_criterion_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = build()
    ranking = rank_heads(Weights(), RankingInputs(encoder))
    assert ranking.criterion == "weights"
    layer, head = ranking.heads[0]
    own = encoder.encoder.layer[layer].attention.self.value.weight.view(HEADS, -1)[head].norm()
    assert ranking.scores[0] == pytest.approx(float(own))
    monkeypatch.setitem(CRITERIA, "weights", Weights)
    assert rank_heads("weights", RankingInputs(encoder)) == ranking


def test_scores_of_another_shape_are_refused() -> None:
    with pytest.raises(PapaError, match=r"'weights' gave scores of shape \(4, 3\).*3 layers of 4 heads"):
        rank_heads(Weights(broken=True), RankingInputs(build()))


def test_controls_have_no_variance() -> None:
    constants = AttentionConstants(torch.ones(1, 1, 2, 2), torch.ones(2, 2))
    assert constants.variance is None
