"""NER and POS, and the base of all data modules with one label per word."""

import warnings

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from papa_lightning.datamodules import NERDataModule, POSDataModule
from papa_lightning.errors import DataError, PapaError

NER_ROWS = [
    {"id": "0", "tokens": ["w1", "w2", "film"], "ner_tags": ["B-PER", "I-PER", "O"]},
    {"id": "1", "tokens": ["good"], "ner_tags": ["B-LOC"]},
    {"id": "2", "tokens": ["a", "w3"], "ner_tags": [0, 7]},
    {"id": "3", "tokens": ["a", "w3"], "ner_tags": ["O", "B-MISC"]},
]


@pytest.fixture
def ner(tmp_path, bert_folder, write_jsonl):
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", [row for row in NER_ROWS if row["id"] != "2"])
    arguments = {"data_dir": str(tmp_path), "max_length": 8, "batch_size": 4}
    return lambda **kwargs: NERDataModule(bert_folder, **(arguments | kwargs))


def validation(data):
    data.setup("validate")
    return next(iter(data.val_dataloader()))


def test_facts_are_known_before_setup():
    data = NERDataModule("no-such-tokenizer")
    assert data.label_names == ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
    assert (data.num_labels, data.metrics, data.validation_names) == (9, ("entity_f1",), ())
    assert data.description == "conll2003 train (hub eriktks/conll2003, revision refs/convert/parquet)"
    wnut = NERDataModule("no-such-tokenizer", dataset="wnut_17", revision="abc")
    assert (wnut.num_labels, wnut.label_names[:4]) == (13, ("O", "B-corporation", "I-corporation", "B-creative-work"))
    assert wnut.description == "wnut_17 train (hub leondz/wnut_17, revision abc)"
    assert wnut.hparams["dataset"] == "wnut_17"
    assert POSDataModule("x", treebank="de_gsd").description == "pos train (hub commul/universal_dependencies, de_gsd)"
    with pytest.raises(PapaError, match="dataset is 'ontonotes', but must be one of 'conll2003', 'wnut_17'"):
        NERDataModule("x", dataset="ontonotes")


def test_batches_label_the_first_token_of_a_word(ner):
    data = ner()
    batch = validation(data)
    assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
        "input_ids": ((3, 8), torch.int64),
        "attention_mask": ((3, 8), torch.int64),
        "token_type_ids": ((3, 8), torch.int64),
        "word_ids": ((3, 8), torch.int64),
        "labels": ((3, 8), torch.int64),
        "example_id": ((3,), torch.int64),
    }
    assert batch["word_ids"].tolist()[0] == [-100, 0, 1, 2, -100, -100, -100, -100]
    assert torch.equal(batch["word_ids"] == -100, batch["labels"] == -100)
    assert batch["labels"].tolist() == [
        [-100, 1, 2, 0, -100, -100, -100, -100],
        [-100, 5, -100, -100, -100, -100, -100, -100],
        [-100, 0, 7, -100, -100, -100, -100, -100],
    ]
    assert batch["attention_mask"].tolist()[0] == [1, 1, 1, 1, 0, 0, 0, 1]
    assert batch["example_id"].tolist() == [0, 1, 2]
    assert data.tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == [
        "[CLS]",
        "w1",
        "w2",
        "film",
        *["[PAD]"] * 3,
        "[SEP]",
    ]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet", "conll", "txt"])
def test_every_file_type_gives_the_same_rows(ner, tmp_path, suffix):
    expected = validation(ner())
    (tmp_path / "validation.jsonl").unlink()
    rows = [NER_ROWS[0], NER_ROWS[1], NER_ROWS[3]]
    path = tmp_path / f"validation.{suffix}"
    if suffix == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif suffix in ("csv", "tsv"):
        separator = "," if suffix == "csv" else "\t"
        lines = [separator.join((" ".join(row["tokens"]), " ".join(row["ner_tags"]))) for row in rows]
        path.write_text("\n".join([separator.join(("tokens", "ner_tags")), *lines]))
    else:
        blocks = ["\n".join(map("{} - {}".format, row["tokens"], row["ner_tags"])) for row in rows]
        path.write_text("-DOCSTART- - O\n\n" + "\n\n".join(blocks))
    found = validation(ner())
    assert {name: values.tolist() for name, values in found.items()} == {
        name: values.tolist() for name, values in expected.items()
    }


def test_hub_rows_with_class_labels(bert_folder, monkeypatch):
    asked = []
    names = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC"]
    types = {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=names))}
    rows = Dataset.from_list([{"id": "0", "tokens": ["w1", "film"], "ner_tags": [3, 0]}], features=Features(types))

    def load(path, config, revision):
        asked.append((path, config, revision))
        return DatasetDict({"train": rows, "validation": rows, "test": rows})

    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", load)
    data = NERDataModule(bert_folder, max_length=8)
    data.setup()
    assert set(asked) == {("eriktks/conll2003", None, "refs/convert/parquet")}
    assert next(iter(data.test_dataloader()))["labels"][0].tolist() == [-100, 3, 0] + [-100] * 5


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (NERDataModule, r"'eriktks/conll2003' cannot be loaded from the hub: no network\. Check the network and the "
         r"revision, or pass data_dir, a folder with the original files eng\.train, .* as train\.conll, validation"),
        (POSDataModule, r"'commul/universal_dependencies' \(en_ewt\) cannot be loaded .*en_ewt-ud-train\.conllu"),
    ],
)  # fmt: skip
def test_hub_that_cannot_be_reached_says_which_files_to_get(bert_folder, monkeypatch, cls, message):
    def load(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", load)
    with pytest.raises(DataError, match=message):
        cls(bert_folder).setup("fit")


def test_hub_data_set_with_a_script_names_the_parquet_revision(bert_folder, monkeypatch):
    def load(*args, **kwargs):
        raise RuntimeError("Dataset scripts are no longer supported, but found conll2003.py")

    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", load)
    with pytest.raises(DataError, match=r"found conll2003\.py.*take 'refs/convert/parquet'"):
        NERDataModule(bert_folder, revision="main").setup("fit")


def test_i_tags_without_b_are_repaired_and_counted_once(ner, tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").unlink()
    (tmp_path / "train.conll").write_text("a O\n\nw1 I-PER\nw2 I-PER\nw3 B-PER\nfilm O\nw4 I-LOC\n")
    (tmp_path / "validation.conll").write_text("w1 B-PER\nw2 I-PER\nw3 B-PER\nw4 B-LOC\na O\n")
    data = ner()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
        data.setup("fit")
    (message,) = [str(warning.message) for warning in caught]
    assert message == (
        "conll2003: 2 tags of column 'ner_tags' were I- without a B- or I- of the same kind before them, and are read "
        "as B- (train.conll 2, first in row 2; validation.conll 0): the files are in the scheme IOB1 or IO, and the "
        "task is scored in IOB2."
    )
    rows = {row["example_id"].item(): row["labels"].tolist() for row in data.train_dataloader().dataset}
    assert rows[1] == [-100, 1, 2, 1, 0, 5, -100, -100]


def test_words_that_become_nothing_are_counted_once(tmp_path, tokenizer_of, write_jsonl):
    rows = [{"tokens": ["a", "film"], "upos": ["DET", "NOUN"]}, {"tokens": ["a", "\u200d"], "upos": ["DET", "NOUN"]}]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows if split == "train" else rows[:1])
    data = POSDataModule(tokenizer_of("bert"), data_dir=str(tmp_path), max_length=8)
    with pytest.warns(UserWarning, match="become no token") as caught:
        data.setup("fit")
    (message,) = [str(warning.message) for warning in caught]
    assert message == (
        "pos: 1 words of column 'tokens' become no token with this tokenizer, so their labels have no place "
        "(train.jsonl 1, first in row 2; validation.jsonl 0): they are neither trained on nor scored."
    )


def test_long_sentences_are_cut_and_counted_with_their_words(ner, tmp_path, write_jsonl):
    row = {"tokens": ["w1"] * 9, "ner_tags": ["O"] * 9}
    write_jsonl(tmp_path / "validation.jsonl", [row, NER_ROWS[0], row])
    data = ner()
    places = r"\(validation.jsonl 2, first in row 1\)"
    lost = "6 words found no slot and are neither trained on nor scored"
    with pytest.warns(UserWarning, match=rf"2 of 3 examples \(66.7%\) do not fit .* {places}: raise .*{lost}"):
        data.setup("validate")


def test_test_rows_without_tags_serve_prediction_only(ner, tmp_path):
    (tmp_path / "test.txt").write_text("w1\nfilm\n\nw2\n")
    data = ner()
    with pytest.warns(UserWarning, match=r"conll2003 \(data_dir .*\) has no test split with labels"):
        data.setup("test")
    data.setup("predict")
    batch = next(iter(data.predict_dataloader()))
    assert "labels" not in batch
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 1]]


def test_treebank_under_its_own_file_names(tmp_path, bert_folder):
    words = [("w1", "PRON"), ("w2", "VERB")]
    text = "".join(f"{n}\t{word}\t_\t{tag}" + "\t_" * 6 + "\n" for n, (word, tag) in enumerate(words, start=1))
    for name in ("train", "dev", "test"):
        (tmp_path / f"en_ewt-ud-{name}.conllu").write_text(f"# sent_id = 1\n{text}\n# sent_id = 2\n{text}")
    data = POSDataModule(bert_folder, data_dir=str(tmp_path), max_length=8)
    data.setup()
    batch = next(iter(data.test_dataloader()))
    assert batch["labels"].tolist() == [[-100, 10, 15, -100, -100, -100, -100, -100]] * 2


def test_words_without_a_part_of_speech_are_left_out(tmp_path, bert_folder, monkeypatch):
    names = ["NOUN", "VERB", "_"]  # in the order of a copy on the hub, not in ours
    types = {"tokens": List(Value("string")), "upos": List(ClassLabel(names=names))}
    row = {"tokens": ["w1-w2", "w1", "w2"], "upos": [2, 1, 0]}
    splits = DatasetDict(dict.fromkeys(("train", "validation"), Dataset.from_list([row], features=Features(types))))
    monkeypatch.setattr("papa_lightning.datamodules.reading.files.load_dataset", lambda *args, **kwargs: splits)
    data = POSDataModule(bert_folder, max_length=8)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    assert [data.label_names[label] for label in batch["labels"][0] if label >= 0] == ["VERB", "NOUN"]
    assert data.tokenizer.decode(batch["input_ids"][0][:3]) == "[CLS] w1 w2"


@pytest.mark.parametrize(("padding", "length"), [("max_length", 32), ("longest", 5)])
def test_plain_layout_pads_to_the_length_or_to_the_longest_row(ner, padding, length):
    batch = validation(ner(layout="plain", padding=padding, max_length=32))
    assert {tuple(batch[name].shape) for name in ("input_ids", "attention_mask", "token_type_ids", "labels")} == {
        (3, length)
    }
    assert batch["attention_mask"].sum(1).tolist() == [5, 3, 4]
    assert batch["labels"][1, :5].tolist() == [-100, 5, -100, -100, -100]
    assert batch["example_id"].tolist() == [0, 1, 2]
