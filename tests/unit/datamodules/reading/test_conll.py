import pytest

from papa_lightning.datamodules.reading.conll import read_conll
from papa_lightning.errors import DataError

CONLLU = """# sent_id = 1
# text = Don't go
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\t_\t0\troot\t_\t_
2\tn't\tnot\tPART\tRB\t_\t1\tadvmod\t_\t_
2.1\tnow\tnow\tADV\tRB\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t1\txcomp\t_\t_

# sent_id = 2
1\t#\t#\tSYM\t#\t_\t0\troot\t_\t_
"""


def read(tmp_path, name, text, places=None):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_conll(tmp_path / name, "tokens", "tags", places).to_list()


@pytest.mark.parametrize("suffix", ["conll", "bio", "txt"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n\n", "\r\n"])
def test_words_and_tags_between_blanks(tmp_path, suffix, end):
    text = "\n\n-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects  VBZ B-VP O \n\n \nPeter NNP B-NP B-PER" + end
    assert read(tmp_path, f"train.{suffix}", text) == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "tags": ["B-PER"]},
    ]


def test_words_between_tabs_may_hold_blanks_and_hashes(tmp_path):
    text = "\ufeff#\tO\nNew York\tB-LOC\na\u2028b\tO\n"
    assert read(tmp_path, "train.conll", text) == [
        {"tokens": ["#", "New York", "a\u2028b"], "tags": ["O", "B-LOC", "O"]}
    ]


def test_other_columns(tmp_path):
    text = "1 EU NNP B-ORG x\n2 rejects VBZ O x\n"
    assert read(tmp_path, "train.conll", text, places=(1, 3)) == [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]}]
    with pytest.raises(
        DataError, match=r"line 1 has 5 columns, but expected are 8 \(the columns \(1, 7\) are asked for"
    ):
        read(tmp_path, "train.conll", text, places=(1, 7))


def test_words_without_tags(tmp_path):
    assert read(tmp_path, "test.txt", "EU\nrejects\n\nPeter\n") == [
        {"tokens": ["EU", "rejects"]},
        {"tokens": ["Peter"]},
    ]


def test_universal_dependencies_leave_out_ranges_empty_nodes_and_comments(tmp_path):
    assert read(tmp_path, "train.conllu", CONLLU) == [
        {"tokens": ["Do", "n't", "go"], "tags": ["AUX", "PART", "VERB"]},
        {"tokens": ["#"], "tags": ["SYM"]},
    ]


def test_changed_file_is_read_again(tmp_path):
    assert read(tmp_path, "train.conll", "a O\n") == [{"tokens": ["a"], "tags": ["O"]}]
    assert read(tmp_path, "train.conll", "bb O\n") == [{"tokens": ["bb"], "tags": ["O"]}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.conll", "EU NNP B-ORG\n\nrejects O\n", r"line 3 has 2 columns, but expected are 3 \(the first word of"),
        ("train.conll", "EU\tO\nNew York B-LOC\n", "line 2 has 1 columns, but expected are 2"),
        ("train.conll", "EU\tO\n\tO\n", "line 2: a word or tag is empty"),
        ("train.conllu", CONLLU + "2\tx\tSYM\n", r"line 11 has 3 columns, but expected are 10 \(CoNLL-U has so many"),
        ("train.conll", "", "is an empty file: write at least one row"),
        ("train.conll", "\n-DOCSTART- O\n\n", "holds no sentences: write at least one"),
    ],
)
def test_bad_file_names_file_and_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=rf"{name}'.*{message}"):
        read(tmp_path, name, text)


def test_wrong_encoding_names_the_line(tmp_path):
    path = tmp_path / "train.conll"
    path.write_bytes("a O\né O\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"train\.conll' is not in UTF-8: line 2, byte 1"):
        read_conll(path, "tokens", "tags")
