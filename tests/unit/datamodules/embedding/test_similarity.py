"""Pairs of texts with scores: what is read, what is judged, and what is refused."""

import json
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from papa_lightning.datamodules import SimilarityDataModule, STSBDataModule, STSDataModule
from papa_lightning.embeddings import SimilarPairs
from papa_lightning.errors import DataError, PapaError

PAIRS = [("w1 w2", "w3", 5.0), ("w3", "w4", 0.5), ("good film", "bad film", 2.0)]


def write(folder: Path, split: str, rows: list[dict], suffix: str = ".jsonl") -> None:
    names = list(rows[0])
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
        return
    mark = {".csv": ",", ".tsv": "\t"}.get(suffix)
    lines = (
        [json.dumps(row) for row in rows]
        if mark is None
        else [mark.join(names), *(mark.join(str(row[name]) for name in names) for row in rows)]
    )
    (folder / f"{split}{suffix}").write_text("\n".join(lines), encoding="utf-8")


def rows_of(pairs=PAIRS, one="sentence1", other="sentence2", score="score") -> list[dict]:
    return [{one: a, other: b, score: gold} for a, b, gold in pairs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "validation"):
        write(tmp_path, split, rows_of())
    return tmp_path


def texts_of(data, rows) -> list[str]:
    """Texts of rows, without special tokens."""
    return [data.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows["input_ids"]]


def pairs_of(data: SimilarityDataModule) -> SimilarPairs:
    judged = data.judgements()
    assert isinstance(judged, SimilarPairs)
    return judged


def make(folder: Path, tokenizer: str, **options) -> SimilarityDataModule:
    return SimilarityDataModule(tokenizer, str(folder), max_length=8, **options)


def fault(folder: Path, tokenizer: str, rows: list[dict], **options) -> str:
    """What is said of the rows of validation."""
    write(folder, "validation", rows)
    with pytest.raises(DataError) as caught:
        make(folder, tokenizer, **options).setup("validate")
    return str(caught.value).replace(str(folder), "")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_rows_are_the_different_texts_and_judgements_name_them(tmp_path, bert_folder, suffix) -> None:
    for split in ("train", "validation"):
        write(tmp_path, split, rows_of(one="a", other="b", score="gold"), suffix)
    data = make(tmp_path, bert_folder, text_columns=["a", "b"], score_column="gold")
    data.setup("fit")
    rows = data.val_dataloader().dataset
    assert texts_of(data, rows) == ["w1 w2", "w3", "good film", "w4", "bad film"]
    assert torch.as_tensor(rows["example_id"][:]).tolist() == list(range(5))
    assert set(rows.column_names) >= {"input_ids", "attention_mask", "token_type_ids", "example_id"}
    assert "labels" not in next(iter(data.val_dataloader()))
    assert rows["attention_mask"][0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    judged = pairs_of(data)
    assert (judged.first.tolist(), judged.second.tolist()) == ([0, 1, 2], [1, 3, 4])
    assert judged.gold.tolist() == [5.0, 0.5, 2.0]
    assert texts_of(data, data.train_dataloader().dataset) == ["w1 w2", "w3", "w4", "good film", "bad film"]


def test_limits_are_numbers_of_pairs(folder, bert_folder) -> None:
    data = make(folder, bert_folder, max_train_examples=1, max_eval_examples=2)
    data.setup("fit")
    assert len(data.train_dataloader().dataset) == 2
    assert len(data.val_dataloader().dataset) == 3
    assert len(data.judgements()) == 2


def test_a_split_that_is_not_there_is_another_one(tmp_path, bert_folder) -> None:
    write(tmp_path, "test", rows_of())
    data = make(tmp_path, bert_folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
    said = [str(one.message) for one in caught if "has no split" in str(one.message)]
    assert [one.partition("has no split ")[2] for one in said] == [
        "'train': attention is averaged over 'test'.",
        "'validation' with scores that differ: validating on 'test'.",
    ]
    assert len(data.train_dataloader().dataset) == len(data.val_dataloader().dataset) == 5
    (tmp_path / "test.jsonl").rename(tmp_path / "other.jsonl")
    with pytest.raises(DataError, match="has no file for the split 'train'"):
        make(tmp_path, bert_folder).setup("fit")


@pytest.mark.parametrize("gold", [-1.0, None])
def test_a_test_split_with_hidden_scores_is_predicted_but_not_judged(folder, bert_folder, gold) -> None:
    write(folder, "test", rows_of([("w9", "w8", gold), ("w7", "w6", gold)]))
    data = make(folder, bert_folder)
    with pytest.warns(UserWarning, match="has no split 'test' with scores that differ: testing on 'validation'"):
        data.setup("test")
    assert len(data.judgements("test")) == 3
    data.setup("predict")
    assert texts_of(data, data.predict_dataloader().dataset) == ["w9", "w7", "w8", "w6"]


def test_prefixes_come_from_the_argument_or_from_the_folder(folder, bert_folder, tmp_path_factory) -> None:
    data = make(folder, bert_folder, prefix="good ")
    data.setup("validate")
    assert texts_of(data, data.val_dataloader().dataset)[0] == "good w1 w2"
    sentences = tmp_path_factory.mktemp("sentences")
    for path in Path(bert_folder).iterdir():
        (sentences / path.name).write_bytes(path.read_bytes())
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    (sentences / "modules.json").write_text(json.dumps(modules))
    (sentences / "1_Pooling").mkdir()
    (sentences / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    prompts = {"prompts": {"query": "bad ", "sts": "film "}, "default_prompt_name": "sts"}
    (sentences / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    assert make(folder, str(sentences)).prefix == "film "
    assert make(folder, str(sentences), prefix="").prefix == ""


def test_sts_b_as_it_comes(tmp_path, bert_folder) -> None:
    start = "main-captions\tMSRvid\t2012test\t0001"
    lines = [f'{start}\t2.500\tA "good film\tw1, w2', f"{start}\t5.000\tw3\tw4\tlicense\tsource"]
    for name in ("sts-train", "sts-dev"):
        (tmp_path / f"{name}.csv").write_text("\n".join(lines), encoding="utf-8")
    data = STSBDataModule(bert_folder, str(tmp_path), max_length=8)
    data.setup("fit")
    assert pairs_of(data).gold.tolist() == [2.5, 5.0]
    assert texts_of(data, data.val_dataloader().dataset)[2] == "w2"
    assert data.description.startswith("stsb sts-train (data_dir ")
    (tmp_path / "sts-dev.csv").write_text("\n".join([*lines, "main-captions\tMSRvid"]))
    with pytest.raises(DataError, match="line 3 has 2 fields between tabs, but the original form has genre"):
        STSBDataModule(bert_folder, str(tmp_path), max_length=8).setup("validate")


def test_sts_b_in_the_form_of_glue(tmp_path, bert_folder) -> None:
    write(tmp_path, "validation", rows_of(score="label"))
    data = STSBDataModule(bert_folder, str(tmp_path), max_length=8)
    with pytest.warns(UserWarning, match="attention is averaged over"):
        data.setup("fit")
    assert pairs_of(data).gold.tolist() == [5.0, 0.5, 2.0]


def test_the_years_of_sts(folder, bert_folder) -> None:
    assert STSDataModule(bert_folder, year=12).source == "hub mteb/sts12-sts"
    data = STSDataModule(bert_folder, year=16, data_dir=str(folder), max_length=8)
    data.setup("validate")
    assert len(data.judgements()) == 3
    with pytest.raises(PapaError, match="year is 11, but must be one of 12, 13"):
        STSDataModule(bert_folder, year=11)


def test_identity_of_the_data(folder, bert_folder) -> None:
    before = make(folder, bert_folder).fingerprint()
    assert make(folder, bert_folder, prefix="good ").fingerprint() == before
    write(folder, "validation", rows_of([*PAIRS[:2], ("good film", "bad film", 3.0)]))
    assert make(folder, bert_folder).fingerprint() != before


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"score": "much"}, "'/validation.jsonl', row 2: column 'score' is 'much', which is no finite number: give"),
        ({"score": "inf"}, "'/validation.jsonl', row 2: column 'score' is 'inf', which is no finite number: give"),
        ({"score": True}, "'/validation.jsonl', row 2: column 'score' is True, which is no finite number: give"),
        ({"score": None}, "'/validation.jsonl', row 2: column 'score' is missing: give the pair its similarity"),
        ({"sentence2": " "}, "'/validation.jsonl', row 2: column 'sentence2' is empty: give the row a text"),
        ({"sentence1": 7}, "'/validation.jsonl', row 2: column 'sentence1' is 7, not a text: give the row a text"),
    ],
)
def test_a_wrong_cell_is_named(tmp_path, bert_folder, row, wanted) -> None:
    rows = rows_of()
    assert fault(tmp_path, bert_folder, [rows[0], rows[1] | row, rows[2]]).startswith(wanted)


def test_pairs_that_nothing_correlates_with_are_refused(tmp_path, bert_folder) -> None:
    same = rows_of([(a, b, 3.0) for a, b, _ in PAIRS])
    said = fault(tmp_path, bert_folder, same)
    assert said.startswith("'/validation.jsonl', column 'score': all 3 similarities are 3, with which nothing")
    said = fault(tmp_path, bert_folder, rows_of()[:1])
    assert said.startswith("'/validation.jsonl', column 'score': there are 1 pairs, of which nothing correlates")
    said = fault(tmp_path, bert_folder, rows_of(), score_column="gold")
    assert said.startswith("'/validation.jsonl' has no column 'gold'; its columns are 'sentence1'")
    said = fault(tmp_path, bert_folder, rows_of(), text_columns=["a", "b"])
    assert "has no column 'a', 'b'" in said


def test_arguments_are_refused(folder, bert_folder) -> None:
    with pytest.raises(PapaError, match="prefix is 3, but must be a text: put it into quotation marks"):
        make(folder, bert_folder, prefix=3)
    with pytest.raises(PapaError, match=r"text_columns is \['a'\], but must hold 2 names or more"):
        make(folder, bert_folder, text_columns=["a"])
    with pytest.raises(PapaError, match="a pair has two texts: name two columns"):
        make(folder, bert_folder, text_columns=["a", "b", "c"])
    with pytest.raises(PapaError, match="split is 'train', but must be one of 'validation', 'test'"):
        make(folder, bert_folder).judgements("train")


def test_numbers_of_texts_are_those_of_the_rows(folder, bert_folder) -> None:
    data = make(folder, bert_folder)
    data.setup("fit")
    vectors = torch.eye(5)
    vectors[1] = vectors[0]  # w1 w2 and w3, the most similar pair
    vectors[4] = vectors[2] + vectors[4]
    assert data.judgements().answers(vectors).scores()["spearman"] == pytest.approx(1.0, abs=1e-5)
