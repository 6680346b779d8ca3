import pickle
import random

import pytest
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from papa_lightning.errors import PapaError
from papa_lightning.tasks import EntityF1
from papa_lightning.tasks.metrics import token_metrics

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-a-b", "I-a-b")


def random_tags(generator: random.Random, length: int) -> list[str]:
    """Any tags in any order, many of them broken, and runs long enough to be entities."""
    tags: list[str] = []
    while len(tags) < length:
        tags += [generator.choice(NAMES)] * generator.choice([1, 1, 1, 2, 3])
    return tags[:length]


def altered(tags: list[str], generator: random.Random) -> list[str]:
    return [generator.choice(NAMES) if generator.random() < 0.2 else tag for tag in tags]


def as_batch(true: list[list[str]], predicted: list[list[str]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Words at random positions, with special tokens, further sub-tokens and padding between them."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((len(true), 40), -100)
    # What is predicted where there is no word must not count.
    guesses = torch.randint(0, len(NAMES), labels.shape, generator=generator)
    for row, (tags, guess) in enumerate(zip(true, predicted, strict=True)):
        places = torch.randperm(40, generator=generator)[: len(tags)].sort().values
        labels[row, places] = torch.tensor([NAMES.index(tag) for tag in tags], dtype=torch.long)
        guesses[row, places] = torch.tensor([NAMES.index(tag) for tag in guess], dtype=torch.long)
    return guesses, labels


@pytest.mark.filterwarnings("ignore:F-score is ill-defined")
@pytest.mark.parametrize("seed", range(40))
def test_equal_to_seqeval_strict(seed: int) -> None:
    generator, metric = random.Random(seed), EntityF1(NAMES)
    all_true, all_predicted = [], []
    for batch in range(generator.choice([1, 3])):
        true = [random_tags(generator, generator.randint(1, 20)) for _ in range(generator.randint(1, 6))]
        predicted = [altered(tags, generator) for tags in true]
        metric.update(*as_batch(true, predicted, seed + 100 * batch))
        all_true += true
        all_predicted += predicted
    expected = f1_score(all_true, all_predicted, mode="strict", scheme=IOB2)
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("true", "predicted", "counts"),
    [
        ("B-PER I-PER O", "B-PER I-PER O", (1, 1, 1)),
        ("B-PER I-PER O", "B-PER O O", (0, 1, 1)),
        ("B-PER I-PER O", "B-LOC I-LOC O", (0, 1, 1)),
        ("B-PER B-PER O", "B-PER I-PER O", (0, 1, 2)),
        ("O O O", "O I-PER I-PER", (0, 0, 0)),
        ("B-PER I-PER O", "I-PER I-PER O", (0, 0, 1)),
        ("B-PER I-LOC I-LOC", "B-PER O O", (1, 1, 1)),
        ("B-PER I-PER I-PER", "B-PER I-PER I-PER", (1, 1, 1)),
    ],
)
def test_counts(true: str, predicted: str, counts: tuple[int, int, int]) -> None:
    metric = EntityF1(NAMES)
    metric.update(*(torch.tensor([[NAMES.index(tag) for tag in tags.split()]]) for tags in (predicted, true)))
    assert (int(metric.true_positives), int(metric.predicted), int(metric.actual)) == counts


def test_an_entity_ends_with_its_sentence() -> None:
    metric, tags = EntityF1(NAMES), torch.tensor([[0, 1], [2, 0]])
    metric.update(tags, tags)
    assert (int(metric.predicted), int(metric.actual)) == (1, 1)


def test_nothing_at_all_scores_zero() -> None:
    metric = EntityF1(NAMES)
    metric.update(torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), -100))
    assert metric.compute() == 0.0


def test_states_are_sums_and_no_part_of_a_checkpoint() -> None:
    metric = EntityF1(NAMES)
    assert {name: reduction.__name__ for name, reduction in metric._reductions.items()} == dict.fromkeys(
        ("true_positives", "predicted", "actual"), "dim_zero_sum"
    )
    assert metric.state_dict() == {}
    assert pickle.loads(pickle.dumps(metric)).compute() == 0.0


@pytest.mark.parametrize("name", ["PER", "B-", "I", "X-PER", ""])
def test_other_schemes_are_refused(name: str) -> None:
    with pytest.raises(PapaError, match=r"label_names has .* the scheme IOB2"):
        EntityF1(["O", name])


@pytest.mark.parametrize(
    ("names", "label_names", "message"),
    [
        (["entity_f1"], None, "label_names is None"),
        (["accuracy"], None, "choose from token_accuracy, entity_f1"),
        ([], None, "at least one name"),
    ],
)
def test_bad_token_metrics(names: list[str], label_names: list[str] | None, message: str) -> None:
    with pytest.raises(PapaError, match=message):
        token_metrics(names, 3, label_names)


def test_token_accuracy_counts_words_only() -> None:
    metrics = token_metrics(["token_accuracy"], 3, None)
    metrics.update(torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 2, 2, -100]]))
    assert metrics.compute()["token_accuracy"] == pytest.approx(2 / 3)
