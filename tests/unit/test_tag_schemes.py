"""Schemes of tags against seqeval, and what is left of entities whose words are lost."""

import random

import pytest
import torch
from seqeval import scheme as seqeval
from seqeval.metrics import f1_score

from papa_lightning.datamodules import TokenClassificationDataModule
from papa_lightning.errors import PapaError
from papa_lightning.tag_schemes import RULES, fit_tags, read_entities, scheme_of, write_entities
from papa_lightning.tasks import EntityF1

KINDS = ("PER", "LOC", "a-b")
NAMES = {
    scheme: ["O", *(f"{mark}-{kind}" for kind in KINDS for mark in rules.marks)] for scheme, rules in RULES.items()
}


def batch(names, sentences):
    longest = max(map(len, sentences))
    return torch.tensor([[names.index(tag) for tag in tags] + [-100] * (longest - len(tags)) for tags in sentences])


def random_tags(names, length, generator):
    tags = []
    while len(tags) < length:
        tags += [generator.choice(names)] * generator.choice([1, 1, 2, 3])
    return tags[:length]


def random_entities(length, generator):
    """Tags of IOB2 without a fault."""
    tags = []
    while len(tags) < length:
        kind = generator.choice(KINDS)
        tags += generator.choice([["O"], [f"B-{kind}"] + [f"I-{kind}"] * generator.choice([0, 0, 1, 2])])
    return tags[:length]


@pytest.mark.filterwarnings("ignore:F-score is ill-defined")
@pytest.mark.parametrize("valid", [True, False])
@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES", "BILOU"])
@pytest.mark.parametrize("seed", range(15))
def test_equal_to_seqeval_strict(scheme, valid, seed):
    generator, names = random.Random(seed), NAMES[scheme]
    true, predicted = [], []
    for _ in range(8):
        length = generator.randint(1, 15)
        tags = random_tags(names, length, generator)
        if valid:
            tags = write_entities(read_entities(random_entities(length, generator)), length, scheme)
        true.append(tags)
        predicted.append([generator.choice(names) if generator.random() < 0.2 else tag for tag in tags])
    metric = EntityF1(names, scheme)
    labels = batch(names, true)
    metric.update(batch(names, predicted).where(labels >= 0, 1), labels)
    expected = f1_score(true, predicted, mode="strict", scheme=getattr(seqeval, scheme))
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(15))
def test_io_is_iob2_without_neighbours_of_one_kind(seed):
    generator = random.Random(seed)
    true, predicted = ([random_tags(NAMES["IO"], 12, generator) for _ in range(8)] for _ in range(2))
    metric, other = EntityF1(NAMES["IO"]), EntityF1(NAMES["IOB2"])
    metric.update(batch(NAMES["IO"], predicted), batch(NAMES["IO"], true))
    as_iob2 = [[fit_tags(tags, range(12), "IOB2") for tags in sentences] for sentences in (predicted, true)]
    other.update(*(batch(NAMES["IOB2"], sentences) for sentences in as_iob2))
    assert float(metric.compute()) == float(other.compute())


@pytest.mark.parametrize("scheme", list(RULES))
def test_a_perfect_model_scores_one_in_every_scheme(scheme):
    generator = random.Random(3)
    tags = [fit_tags(random_entities(12, generator), range(12), scheme) for _ in range(8)]
    metric = EntityF1(NAMES[scheme])
    metric.update(batch(NAMES[scheme], tags), batch(NAMES[scheme], tags))
    assert metric.compute() == 1.0


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "IOBES", "BILOU"])
def test_what_is_written_is_read(scheme):
    generator = random.Random(5)
    for _ in range(50):
        entities = read_entities(random_entities(9, generator))
        assert read_entities(write_entities(entities, 9, scheme)) == entities


@pytest.mark.parametrize(
    ("names", "scheme"),
    [
        (["O", "B-PER", "I-PER", "B-LOC"], "IOB2"),
        (["O", "I-PER", "I-LOC", "B-LOC"], "IOB1"),
        (["O", "I-PER", "I-LOC"], "IO"),
        (["O", "S-PER", "B-PER", "I-PER", "E-PER"], "IOBES"),
        (["O", "S-PER"], "IOBES"),
        (["O", "U-PER", "B-PER", "I-PER", "L-PER"], "BILOU"),
        (["O", "B-PER", "I-LOC"], None),
        (["O", "B-PER", "E-PER"], None),
        (["O", "I-PER", "E-PER"], None),
        (["O", "S-PER", "U-PER"], None),
        (["O", "S-PER", "B-PER"], None),
        (["O", "B-PER", "M-PER"], None),
        (["O"], None),
        (["O", "PER"], None),
        (["NOUN", "VERB"], None),
    ],
)
def test_schemes_are_recognised_by_the_names(names, scheme):
    assert scheme_of(names) == scheme


@pytest.mark.parametrize(
    ("tags", "kept", "scheme", "expected"),
    [
        ("B-X I-X O", (1, 2), "IOB2", "B-X O"),
        ("B-X I-X I-X", (0, 2), "IOB2", "B-X I-X"),
        ("B-X I-X O B-X", (0, 1, 3), "IOB2", "B-X I-X B-X"),
        ("B-X I-X I-X E-X", (0, 1), "IOBES", "B-X E-X"),
        ("B-X E-X O", (1, 2), "IOBES", "S-X O"),
        ("B-X I-X L-X", (1, 2), "BILOU", "B-X L-X"),
        ("U-X", (), "BILOU", ""),
        ("I-X O I-X", (0, 2), "IOB1", "I-X B-X"),
        ("I-X B-X", (1,), "IOB1", "I-X"),
        ("I-X E-X O I-X", (0, 1, 2, 3), "IOBES", "B-X E-X O S-X"),
    ],
)
def test_what_is_left_of_an_entity_is_one(tags, kept, scheme, expected):
    assert fit_tags(tags.split(), kept, scheme) == expected.split()


def test_tags_of_no_scheme_are_said_to_be_scored_by_words():
    with pytest.warns(UserWarning, match=r"look as if they marked entities, but in none of the schemes IOB2, IOB1"):
        data = TokenClassificationDataModule("x", ["O", "B-PER", "I-LOC"])
    assert data.metrics == ("token_accuracy",)


def test_a_scheme_that_does_not_suit_the_names_is_refused():
    for names, scheme, message in (
        (["O", "B-PER", "I-LOC"], None, "whose marks are those of no scheme"),
        (["O", "S-PER"], "IOB2", r"label_names has 'S-PER', but entity_f1 reads tags in the scheme IOB2"),
        (["O", "S-PER"], "IOE", "scheme is 'IOE': choose from IOB2, IOB1"),
    ):
        with pytest.raises(PapaError, match=message):
            EntityF1(names, scheme)
