"""Data of one's own: columns and labels by arguments, or in YAML."""

import pytest
import yaml
from lightning.pytorch.cli import LightningArgumentParser

from papa_lightning.datamodules import (
    TaskDataModule,
    TextClassificationDataModule,
    TextPairClassificationDataModule,
    TokenClassificationDataModule,
)
from papa_lightning.errors import DataError, PapaError


def from_yaml(text):
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(TaskDataModule, "data", subclass_mode=True)
    return parser.instantiate_classes(parser.parse_object({"data": yaml.safe_load(text)})).data


def write(folder, write_jsonl, row, values, column, splits=("train", "validation")):
    for split in splits:
        write_jsonl(folder / f"{split}.jsonl", [row | {column: value} for value in values])


def test_texts_from_yaml(tmp_path, bert_folder, write_jsonl):
    write(tmp_path, write_jsonl, {"title": "a film"}, ["bug", "wish", 2], "kind", splits=["fit"])
    write(tmp_path, write_jsonl, {"title": "a film"}, ["bug", "wish", "question"], "kind", splits=["train", "dev"])
    data = from_yaml(f"""
        class_path: TextClassificationDataModule
        init_args:
          tokenizer: {bert_folder}
          data_dir: {tmp_path}
          text_column: title
          label_column: kind
          label_names: [bug, wish, question]
          metrics: [f1, accuracy]
          task_name: tickets
          split_names: {{validation: dev}}
          max_length: 16
    """)
    assert isinstance(data, TextClassificationDataModule)
    assert (data.num_labels, data.label_names, data.metrics) == (3, ("bug", "wish", "question"), ("f1", "accuracy"))
    assert data.description == f"tickets train (data_dir {tmp_path.name})"
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["labels"].tolist() == [0, 1, 2]


def test_pairs_from_yaml(tmp_path, bert_folder, write_jsonl):
    write(tmp_path, write_jsonl, {"question": "a", "answer": "film"}, ["no", "yes"], "label")
    data = from_yaml(f"""
        class_path: TextPairClassificationDataModule
        init_args:
          tokenizer: {bert_folder}
          data_dir: {tmp_path}
          text_columns: [question, answer]
          label_names: ['no', 'yes']
          max_length: 10
    """)
    assert isinstance(data, TextPairClassificationDataModule)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert data.tokenizer.decode(batch["input_ids"][0]).split("[SEP]")[1] == " film [PAD] [PAD] "


def test_words_from_yaml(tmp_path, bert_folder):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.bio").write_text("1 w1 x B-GENE\n2 w2 x I-GENE\n3 film x O\n")
    data = from_yaml(f"""
        class_path: TokenClassificationDataModule
        init_args:
          tokenizer: {bert_folder}
          data_dir: {tmp_path}
          label_names: [O, B-GENE, I-GENE]
          conll_places: [1, -1]
          max_length: 8
    """)
    assert isinstance(data, TokenClassificationDataModule)
    assert data.metrics == ("entity_f1",)
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["labels"].tolist() == [[-100, 1, 2, 0, -100, -100, -100, -100]]


def test_words_with_any_labels_are_scored_by_accuracy(tmp_path, bert_folder, write_jsonl):
    data = TokenClassificationDataModule(bert_folder, ["noun", "I-verb", "other"], data_dir=str(tmp_path), max_length=8)
    assert data.metrics == ("token_accuracy",)
    write(tmp_path, write_jsonl, {"tokens": ["w1", "w2"]}, [["noun", "I-verb"]], "tags")
    data.setup("fit")  # nothing is repaired where the labels are no IOB2 tags
    assert next(iter(data.val_dataloader()))["labels"][0, :4].tolist() == [-100, 0, 1, -100]


def test_two_hundred_classes(tmp_path, bert_folder, write_jsonl):
    names = [f"class {number}" for number in range(200)]
    write(tmp_path, write_jsonl, {"text": "a film"}, [199, "class 7"], "label")
    data = TextClassificationDataModule(bert_folder, names, data_dir=str(tmp_path), max_length=8)
    data.setup("fit")
    assert next(iter(data.val_dataloader()))["labels"].tolist() == [199, 7]


def test_hub_by_name(bert_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "papa_lightning.datamodules.reading.files.load_dataset", lambda *a, **k: asked.append((a, k)) or {}
    )
    data = TextClassificationDataModule(bert_folder, ["a", "b"], hub_path="me/mine", hub_config="small", revision="r")
    with pytest.raises(DataError, match="hub me/mine, small, revision r has no split 'train'"):
        data.setup("fit")
    assert asked[0] == (("me/mine", "small"), {"revision": "r"})


def test_neither_folder_nor_hub(bert_folder):
    with pytest.raises(DataError, match="data_dir is None, but text_classification is on no hub: pass a folder"):
        TextClassificationDataModule(bert_folder, ["a", "b"]).setup("fit")


@pytest.mark.parametrize("label", [0.5, "3.7"])
def test_regression_is_refused(tmp_path, bert_folder, write_jsonl, label):
    write(tmp_path, write_jsonl, {"text": "a film"}, [1.0, label] if label == 0.5 else ["1", label], "label")
    data = TextClassificationDataModule(bert_folder, ["low", "high"], data_dir=str(tmp_path), max_length=8)
    found = r"train\.jsonl', row 2: column 'label' is '?(0\.5|3\.7)'?, which is no label of this task"
    with pytest.raises(DataError, match=rf"{found}.*\(regression\) are not supported"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (TextClassificationDataModule, {"label_names": "yes"}, "label_names is 'yes', but must be a list of names"),
        (TextClassificationDataModule, {"label_names": None}, "label_names is None, but must be a list of names"),
        (
            TextClassificationDataModule,
            {"label_names": ["a"]},
            r"label_names is \['a'\], but must hold 2 names or more",
        ),
        (TextClassificationDataModule, {"label_names": ["a", "a"]}, "label_names holds 'a' more than once: keep one"),
        (
            TextClassificationDataModule,
            {"label_names": ["a", True]},
            "label_names holds True, but must hold names: put",
        ),
        (TextClassificationDataModule, {"metrics": []}, r"metrics is \[\], but must hold 1 names or more"),
        (TextClassificationDataModule, {"text_column": ""}, "text_column holds '', but must hold names"),
        (
            TextClassificationDataModule,
            {"split_names": {"dev": "x"}},
            "a key of split_names is 'dev', but must be one of",
        ),
        (TextPairClassificationDataModule, {"text_columns": ["a"]}, r"text_columns is \['a'\], but must hold 2 names"),
        (TextPairClassificationDataModule, {"text_columns": list("abc")}, "but a pair has two columns: name those"),
        (TokenClassificationDataModule, {"token_column": None}, "token_column is None, but must be a name"),
        (
            TokenClassificationDataModule,
            {"conll_places": (0, "x")},
            r"conll_places is \(0, 'x'\), but must be two numbers",
        ),
    ],
)
def test_arguments_out_of_range(cls, arguments, message):
    with pytest.raises(PapaError, match=message):
        cls("some-tokenizer", **({"label_names": ["a", "b"]} | arguments))
