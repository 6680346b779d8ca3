import pytest

from papa_lightning.datamodules.rows.checks import check_columns, check_texts, is_labelled, label_ids
from papa_lightning.errors import DataError

NAMES = ("negative", "positive")


def labels(values, first=0):
    return label_ids(values, range(first, first + len(values)), NAMES, "label", "'train.csv'")


def test_labels_by_number_and_by_name():
    assert labels([0, 1, "positive", "negative", "1", " 0", 1.0]) == [0, 1, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("missing", [None, "", float("nan")])
def test_missing_label_names_file_row_and_column(missing):
    with pytest.raises(
        DataError,
        match=r"'train.csv', row 7: column 'label' is missing: use one of 0 \(negative\), 1 \(positive\), by number",
    ):
        labels([1, missing], first=5)


@pytest.mark.parametrize("wrong", [2, -1, 0.5, "neutral", "-1", [1], True])
def test_label_of_another_task(wrong):
    with pytest.raises(DataError, match=r"row 1: column 'label' is .*, which is no label of this task: use one of 0"):
        labels([wrong])


@pytest.mark.parametrize(
    ("value", "found"), [("", "is empty"), (" \t", "is empty"), (None, "is missing"), (3, "is 3, not a text")]
)
def test_bad_text_names_file_row_and_column(value, found):
    with pytest.raises(DataError, match=rf"'train.csv', row 2: column 'sentence' {found}: give the row a text"):
        check_texts(["a", value], [0, 1], "sentence", "'train.csv'")


def test_missing_columns_list_those_found():
    with pytest.raises(
        DataError, match=r"'t.csv' has no column 'sentence', 'label'; its columns are 'text', 'idx': rename"
    ):
        check_columns(["text", "idx"], ["sentence", "label"], "'t.csv'")


def test_hidden_labels_are_no_labels():
    assert not is_labelled([-1, None, "", "-1"])
    assert is_labelled([-1, 1])
    assert is_labelled(["positive"])
