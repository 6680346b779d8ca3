"""Files whose rows do not fit their header, and names of files that other libraries read as patterns."""

import os

import pytest

from papa_lightning.datamodules.reading.conll import read_conll
from papa_lightning.datamodules.reading.files import read_split
from papa_lightning.errors import DataError

GOOD = [{"text": "a film", "label": "1"}, {"text": "b", "label": "0"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.csv", "text,label\na,1\nb,0,\n", r"line 3 has 3 fields, but the header has 2 \('text', 'label'\)"),
        ("train.csv", "text,label\na,1,\nb,0,\n", "line 2 has 3 fields, but the header has 2"),
        ("train.csv", "text,label\n\n\na, b,1\n", "line 4 has 3 fields"),
        ("train.csv", 'text,label\n"a\nb",1\nc\n', "line 4 has 1 fields"),
        ("train.csv", "text,label\na\rb,1\n", "line 2: a carriage return stands inside a field"),
        ("train.csv", 'text,label\n"a,1\nb,0\n', "line 2: a field begins with a quotation mark that nothing closes"),
        ("train.csv", 'text,label\n"a" film,1\n', "line 2: a field goes on behind its closing quotation mark"),
        ("train.csv", "text,text,label\na,b,1\n", "the header names the column 'text' more than once"),
        ("train.csv", f"text,label\n{'a' * 140_000},1\n", "line 2: a field is longer than 131072 characters"),
        ("train.tsv", "text\tlabel\na\t1\t\n", "line 2 has 3 fields, but the header has 2"),
        ("train.tsv", "text\tlabel\na\rb\t1\n", "line 2: a carriage return stands inside a field"),
        ("train.jsonl", '{"text": "a", "label": NaN}\n', "line 1 holds NaN, which is not JSON: write null"),
        ("train.jsonl", '{"a": 1}\n{"text": "a", "text": "b"}\n', "line 2 names a key of an object twice"),
        ("train.jsonl", '{"a": "\\ud83d"}\n', "line 1 holds half a character"),
        ("train.jsonl", '[{"text": "a"}]\n', "line 1 is not a JSON object; a list of rows goes into a .json file"),
        (
            "train.json",
            '{"data": [\n{"text": "a"}]}\n',
            "line 1 is not JSON .*: write a list of objects, or one object",
        ),
        ("train.json", '[{"text": "a"}, 3]', "entry 2 is not a JSON object"),
        ("train.json", "[]", "holds no rows"),
        ("train.jsonl", "[" * 100_000 + "]" * 100_000, "line 1 is not JSON that can be read"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode())
    with pytest.raises(DataError, match=rf"{name}'.*{message}"):
        read_split(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "\ufefftext,label\na film,1\nb,0\n"),
        ("train.csv", "text,label\r\na film,1\r\nb,0\r\n"),
        ("train.csv", "text,label\ra film,1\rb,0\r"),
        ("train.csv", "text,label,\na film,1,\nb,0,\n"),
        ("train.csv", ",text,label\n0,a film,1\n1,b,0\n"),
        ("train.tsv", "\ttext\tlabel\n0\ta film\t1\n1\tb\t0\n"),
        ("train.json", '[{"text": "a film", "label": "1"},\n {"text": "b", "label": "0"}]'),
        ("train.json", '{"text": "a film", "label": "1"}\n{"text": "b", "label": "0"}\n'),
        ("train.jsonl", '\ufeff{"text": "a film", "label": "1"}\n\n{"text": "b", "label": "0"}'),
    ],
)
def test_what_is_only_unusual_is_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode())
    assert read_split(tmp_path / name).to_list() == GOOD


def test_characters_that_other_readers_take_for_ends_of_lines(tmp_path):
    text = "a\u2028b\x0bc\x0cd\x85e \U0001f600"
    (tmp_path / "train.csv").write_text(f"text,label\n{text},1\n", encoding="utf-8")
    (tmp_path / "train.jsonl").write_text(f'{{"text": "{text[:3]} \\ud83d\\ude00"}}\n', encoding="utf-8")
    assert read_split(tmp_path / "train.csv")["text"][0] == text
    assert read_split(tmp_path / "train.jsonl")["text"][0] == text[:3] + " \U0001f600"


@pytest.mark.parametrize("folder", ["run[12]", "run*", "run?", "zip::run", "a{1,2}", "hf:run", "50%run", "run#1"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet", "conll"])
def test_a_path_is_no_pattern(tmp_path, folder, suffix):
    import pandas as pd

    for name, word in ((folder, "right"), ("run1", "wrong"), ("run", "wrong"), ("a1", "wrong")):
        path = tmp_path / name / f"train.{suffix}"
        path.parent.mkdir()
        frame = pd.DataFrame([{"text": word, "label": 1}])
        if suffix == "parquet":
            frame.to_parquet(path)
        elif suffix == "csv":
            frame.to_csv(path, index=False)
        else:
            path.write_text(f'{{"text": "{word}"}}\n' if suffix == "jsonl" else f"{word}\n")
    path = tmp_path / folder / f"train.{suffix}"
    rows = read_conll(path, "text", "tags") if suffix == "conll" else read_split(path)
    assert rows["text"][0] in ("right", ["right"])


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "json"])
def test_a_file_with_the_time_and_size_of_before_is_read_again(tmp_path, suffix):
    path = tmp_path / f"train.{suffix}"
    for word in ("old", "new", "old"):
        path.write_text(f'{{"text": "{word}"}}\n' if "json" in suffix else f"text\n{word}\n")
        os.utime(path, ns=(10**18, 10**18))
        assert read_split(path)["text"][:] == [word]


def test_columns_that_are_not_needed_may_hold_anything(tmp_path):
    lines = [
        '{"text": "a", "more": {"b": [1]}}',
        '{"text": "b", "more": [1, "x", null]}',
        '{"text": "c", "other": 1e400}',
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:2]) + "\n" + '{"text": "c", "big": 36893488147419103232}\n')
    rows = read_split(tmp_path / "train.jsonl")
    assert rows["text"][:] == ["a", "b", "c"]
    assert rows["more"][:2] == [{"b": [1]}, [1, "x", None]]


GERMEVAL = "#\thttp://de.wikipedia.org/wiki/X [2009-10-17]\n1\tRom\tB-LOC\tO\n2\t#\tO\tO\n\n#\tx\n1\tEs\tO\tO\n"


def test_comments_between_sentences_are_no_words(tmp_path):
    (tmp_path / "train.conll").write_text(GERMEVAL)
    rows = read_conll(tmp_path / "train.conll", "tokens", "tags", (1, 2)).to_list()
    assert rows == [{"tokens": ["Rom", "#"], "tags": ["B-LOC", "O"]}, {"tokens": ["Es"], "tags": ["O"]}]
    (tmp_path / "test.conll").write_text("# id = 1\nRom O\n# O\n# a b\n")
    with pytest.raises(DataError, match=r"line 4 has 3 columns, but expected are 2"):
        read_conll(tmp_path / "test.conll", "tokens", "tags")


def test_columns_that_are_chosen_count_in_universal_dependencies_too(tmp_path):
    (tmp_path / "train.conllu").write_text("1\tDogs\tdog\tNOUN\tNNS\t_\t0\troot\t_\t_\n")
    assert read_conll(tmp_path / "train.conllu", "w", "t").to_list() == [{"w": ["Dogs"], "t": ["NOUN"]}]
    assert read_conll(tmp_path / "train.conllu", "w", "t", (2, 4)).to_list() == [{"w": ["dog"], "t": ["NNS"]}]
