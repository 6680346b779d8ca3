"""Scores from counts of examples, against the metrics themselves."""

import pytest
import torch

from papa_lightning.tasks.metrics import METRICS, Labels, classification_metrics, token_metrics

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def score_of(name: str, labels: Labels, predicted: torch.Tensor, true: torch.Tensor) -> float:
    counts = METRICS[name].counts(labels)
    assert counts is not None
    each = counts.of_examples(predicted, true)
    assert each.shape[0] == len(true)
    assert not each.is_floating_point()
    return float(counts.score(each.double().numpy().sum(axis=0)))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("number", [2, 3, 5])
@pytest.mark.parametrize("name", ["accuracy", "f1", "matthews_corrcoef"])
def test_of_sequences(name: str, number: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Of few labels, so that some classes are missing.
    predicted, true = torch.randint(0, number, (2, 8), generator=generator)
    expected = float(classification_metrics([name], number)(predicted, true)[name])
    assert score_of(name, Labels(number), predicted[:, None], true[:, None]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["token_accuracy", "entity_f1"])
def test_of_words(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(0, len(TAGS), (9, 12), generator=generator)
    predicted = torch.where(torch.rand(true.shape, generator=generator) < 0.3, true.flip(0), true)
    true[torch.rand(true.shape, generator=generator) < 0.2] = -100
    true[4] = -100
    expected = float(token_metrics([name], len(TAGS), TAGS)(predicted, true)[name])
    assert score_of(name, Labels(len(TAGS), TAGS), predicted, true) == pytest.approx(expected, abs=1e-6)


def test_nothing_to_count_is_a_score_of_0() -> None:
    none = torch.zeros(3, 1, dtype=torch.long)
    assert [score_of(name, Labels(2), none, none) for name in ("f1", "matthews_corrcoef")] == [0.0, 0.0]
