"""Predictions as files, and their counts."""

import contextlib

import numpy as np
import pytest
import torch

from papa_lightning.errors import PapaError, ResultFileError
from papa_lightning.study.predictions import Predictions, load_predictions, same_examples, save_predictions
from papa_lightning.tasks.metrics import token_metrics

TAGS = ["O", "B-PER", "I-PER"]


def words(seed=0, names=TAGS):
    """Sentences of 3, 0, 4 and 1 words."""
    examples = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3])
    generator = torch.Generator().manual_seed(seed)
    logits, labels = torch.randn(8, 3, generator=generator), torch.randint(0, 3, (8,), generator=generator)
    return Predictions(logits, labels, examples, 4, names)


def test_round_trip(tmp_path):
    sets = {"": words(), "harder ☃": words(1, names=None)}
    found = load_predictions(save_predictions(tmp_path / "new" / "one.parquet", sets))
    assert list(found) == list(sets)
    for name, one in sets.items():
        assert torch.equal(found[name].logits, one.logits)
        assert same_examples(found[name], one)
        assert found[name].label_names == one.label_names
    assert not same_examples(found[""], words(1))


@pytest.mark.parametrize("place", range(60, 1500, 97))
def test_a_damaged_file_is_refused(tmp_path, place):
    path = save_predictions(tmp_path / "one.parquet", {"": words()})
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 4
    path.write_bytes(content)
    with contextlib.suppress(ResultFileError):  # unless it is a bit that nothing reads
        assert torch.equal(load_predictions(path)[""].logits, words().logits)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ResultFileError, match="No such file"):
        load_predictions(tmp_path / "none.parquet")


def test_counts_are_those_of_the_metrics():
    one = words()
    rows = [one.examples == number for number in range(4)]
    predicted, labels = (
        torch.nn.utils.rnn.pad_sequence([values[row] for row in rows], True, -100)
        for values in (one.predicted, one.labels)
    )
    for name in ("token_accuracy", "entity_f1"):
        counts, found = one.counts(name)
        assert len(counts) == 4
        assert not counts[1].any()
        expected = token_metrics([name], 3, TAGS)(predicted, labels)[name]
        assert found.score(counts.sum(axis=0)) == pytest.approx(float(expected), abs=1e-6)


def test_losses_are_summed_exactly():
    one = words()
    counts, found = one.counts("loss")
    assert np.array_equal(counts, counts.round())
    assert found.score(counts.sum(axis=0)) == pytest.approx(float(one.losses.mean()), abs=1e-6)
    assert one.counts("perplexity") is None


def test_shapes_that_do_not_fit_are_refused():
    one = words()
    with pytest.raises(PapaError, match=r"logits are \(8, 3\), labels \(7,\)"):
        Predictions(one.logits, one.labels[:7], one.examples, 4, TAGS)
    with pytest.raises(PapaError, match="below total, 3"):
        Predictions(one.logits, one.labels, one.examples, 3, TAGS)
