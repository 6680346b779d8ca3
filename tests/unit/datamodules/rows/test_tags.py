import pytest

from papa_lightning.datamodules.rows.tags import fit_tag_ids, has_tags, tag_ids, word_lists
from papa_lightning.errors import DataError

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def words(value):
    return word_lists([["a"], value], [4, 5], "tokens", "'train.csv'")[1]


def tags(value, count=2):
    return tag_ids([value], [["w"] * count], [5], TAGS, ("tokens", "ner_tags"), "'train.csv'")[0]


@pytest.mark.parametrize("cell", [["A", "[", "b"], '["A", "[", "b"]', " A  [ b "])
def test_words_are_lists_or_texts(cell):
    assert words(cell) == ["A", "[", "b"]


def test_brackets_that_are_words():
    assert words("[ 1 ]") == ["[", "1", "]"]


@pytest.mark.parametrize("cell", [["B-PER", "O"], "B-PER O", "[1, 0]", [1, 0], "1 0", '["B-PER", "O"]'])
def test_tags_by_number_and_by_name(cell):
    assert tags(cell) == [1, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "column 'tokens' is empty: give the row a text"),
        (None, "column 'tokens' is empty"),
        (" ", "column 'tokens' is empty"),
        (7, "column 'tokens' is 7, not a list"),
        (["a", ""], "column 'tokens' has '' as word 2: write a word there"),
        (["a", None], "column 'tokens' has None as word 2"),
        (
            "['a', 'b']",
            r"column 'tokens' begins with \"\['a', 'b'\]\", which is no JSON list: write the words with blanks",
        ),
    ],
)
def test_bad_words_name_file_row_and_column(value, message):
    with pytest.raises(DataError, match=rf"'train.csv', row 6: {message}"):
        words(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["O"], "column 'ner_tags' has 1 tags, but column 'tokens' has 2 words: give every word one tag"),
        (["O", "O", "O"], "column 'ner_tags' has 3 tags, but column 'tokens' has 2 words"),
        (
            ["O", "B-ORG"],
            r"column 'ner_tags' has 'B-ORG' at word 2 \('w'\), which is no label of this task: use one of 0",
        ),
        (["O", 5], "column 'ner_tags' has 5 at word 2"),
        (["O", None], "column 'ner_tags' has None at word 2"),
    ],
)
def test_bad_tags_name_file_row_and_column(value, message):
    with pytest.raises(DataError, match=rf"'train.csv', row 6: {message}"):
        tags(value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("O B-PER I-PER O", "O B-PER I-PER O"),
        ("I-PER I-PER B-PER I-PER", "B-PER I-PER B-PER I-PER"),  # IOB1: B- only between two of a kind
        ("I-PER I-LOC I-LOC O I-LOC", "B-PER B-LOC I-LOC O B-LOC"),
        ("B-PER I-LOC", "B-PER B-LOC"),
        ("", ""),
    ],
)
def test_i_tags_that_continue_nothing_begin_an_entity(before, after):
    old, new = ([TAGS.index(tag) for tag in text.split()] for text in (before, after))
    assert fit_tag_ids(old, range(len(old)), TAGS, "IOB2") == new


def test_a_tag_that_the_task_has_not_stays_what_it_was():
    assert fit_tag_ids([1, 2], [1], ("O", "B-PER", "E-PER"), "IOBES") == [2]


def test_hidden_tags_are_no_tags():
    assert not has_tags([[-1], [-100], ["_", ""], None, []])
    assert has_tags([[0]])
    assert has_tags(["O O"])
