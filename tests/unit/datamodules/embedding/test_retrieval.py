"""Folders of BEIR: what is read, what is judged, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from papa_lightning.datamodules import RetrievalDataModule
from papa_lightning.embeddings import RelevantPassages
from papa_lightning.errors import DataError, PapaError

CORPUS = [
    {"_id": "p1", "title": "good", "text": "film"},
    {"_id": "p2", "title": "", "text": "w1 w2"},
    {"_id": 3, "title": None, "text": "w3"},
    {"_id": "p4", "title": "", "text": "w1"},
]
QUERIES = [{"_id": "q1", "text": "w1"}, {"_id": "q2", "text": "w5"}, {"_id": "q3", "text": "w6"}]
QRELS = [("q2", "p1", 1), ("q1", "p2", 2), ("q1", "3", 1), ("q3", "p4", 0)]


def lines(rows: list[dict]) -> str:
    return "\n".join(map(json.dumps, rows))


def qrels(rows: list[tuple]) -> str:
    return "\n".join(["query-id\tcorpus-id\tscore", *("\t".join(map(str, row)) for row in rows)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.jsonl").write_text(lines(CORPUS))
    (tmp_path / "queries.jsonl").write_text(lines(QUERIES))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "dev.tsv").write_text(qrels(QRELS))
    return tmp_path


def make(folder: Path, tokenizer: str, **options) -> RetrievalDataModule:
    return RetrievalDataModule(tokenizer, str(folder), max_length=8, **options)


def texts_of(data, rows) -> list[str]:
    return [data.tokenizer.decode(ids, skip_special_tokens=True) for ids in rows["input_ids"]]


def test_rows_are_judged_queries_and_all_passages(folder, bert_folder) -> None:
    data = make(folder, bert_folder)
    with pytest.warns(
        UserWarning, match=r"dev.tsv': 1 of 3 queries have no passage with a grade above 0, and are left out"
    ):
        data.setup("fit")
    # The query w1 is a passage too, and has its row.
    assert texts_of(data, data.val_dataloader().dataset) == ["w5", "w1", "good film", "w1 w2", "w3"]
    assert texts_of(data, data.train_dataloader().dataset) == ["good film", "w1 w2", "w3", "w1"]
    judged = data.judgements()
    assert isinstance(judged, RelevantPassages)
    assert (judged.queries.tolist(), judged.passages.tolist()) == ([0, 1], [2, 3, 4, 1])
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.1, 1.0], [0.3, 1.0]])
    # The first finds its passage at once; the second finds itself (p4, not relevant), then grades 2 and 1.
    assert judged.answers(vectors).scores()["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)


def test_a_passage_with_the_id_of_the_query_is_no_answer_to_it(tmp_path, bert_folder) -> None:
    """As in the evaluation of BEIR: in ArguAna every query is a passage too."""
    passages = [{"_id": name, "text": f"w{n}"} for n, name in enumerate("abc")]
    (tmp_path / "corpus.jsonl").write_text(lines(passages))
    (tmp_path / "queries.jsonl").write_text(lines([passages[2], passages[0]]))
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text(qrels([("a", "b", 1), ("c", "c", 1)]))
    data = make(tmp_path, bert_folder)
    data.setup("fit")
    judged = data.judgements()
    assert texts_of(data, data.val_dataloader().dataset) == ["w0", "w2", "w1"]
    answers = judged.answers(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]]))
    assert answers.scores() == {"ndcg@10": 1.0, "mrr@10": 1.0, "recall@100": 1.0}
    # Of two passages, and, where the qrels name it, of three.
    assert answers.chance("mrr@10") == pytest.approx(((1 + 1 / 2) / 2 + (1 + 1 / 2 + 1 / 3) / 3) / 2)


def test_prefixes_and_limits(folder, bert_folder) -> None:
    data = make(
        folder, bert_folder, query_prefix="good ", passage_prefix="bad ", max_eval_examples=1, max_train_examples=2
    )
    with pytest.warns(UserWarning, match="left out"):
        data.setup("fit")
    wanted = ["good w5", "bad good film", "bad w1 w2", "bad w3", "bad w1"]
    assert texts_of(data, data.val_dataloader().dataset) == wanted
    assert texts_of(data, data.train_dataloader().dataset) == ["bad good film", "bad w1 w2"]
    assert len(data.judgements()) == 1
    assert data.description == f"retrieval corpus (data_dir {folder.name}, first 2 examples)"


def test_validation_takes_the_qrels_that_are_there(folder, bert_folder) -> None:
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / "train.tsv")
    (folder / "qrels" / "test.tsv").write_text(qrels(QRELS[:1]))
    data = make(folder, bert_folder)
    with pytest.warns(UserWarning, match="has no split 'dev' with qrels: validating on 'train'"):
        data.setup("fit")
    assert len(data.judgements()) == 2
    data.setup("test")
    assert len(data.judgements("test")) == 1


def test_identity_of_the_data(folder, bert_folder) -> None:
    before = make(folder, bert_folder).fingerprint()
    assert make(folder, bert_folder, query_prefix="good ").fingerprint() == before
    (folder / "queries.jsonl").write_text(lines([*QUERIES, {"_id": "q4", "text": "w7"}]))
    assert make(folder, bert_folder).fingerprint() != before


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([("q9", "p1", 1)], "row 1: column 'query-id' is 'q9', which the queries file lacks: add it there"),
        ([("q1", "p9", 1)], "row 1: column 'corpus-id' is 'p9', which the corpus file lacks: add it there"),
        ([*QRELS, ("q1", "p2", 1)], "row 5: column 'corpus-id' is 'p2' for the query 'q1' once more: keep one"),
        ([("q1", "p1", "much")], "row 1: column 'score' is 'much', which is no whole number: write a grade"),
        ([("q1", "p1", 0)], ": no query has a relevant passage: pass at least one with a grade above 0"),
    ],
)
def test_wrong_qrels_are_refused(folder, bert_folder, rows, wanted) -> None:
    (folder / "qrels" / "dev.tsv").write_text(qrels(rows))
    with pytest.raises(DataError) as caught:
        make(folder, bert_folder).setup("validate")
    assert "dev.tsv'" in str(caught.value)
    assert wanted in str(caught.value)


@pytest.mark.parametrize(
    ("name", "rows", "wanted"),
    [
        ("corpus", [*CORPUS, CORPUS[0]], "row 5: column '_id' is 'p1', as in row 1: give every row an id of its own"),
        ("queries", [*QUERIES, {"_id": None, "text": "w1"}], "row 4: column '_id' is missing: give the row an id"),
        ("corpus", [{"_id": "p1", "title": "", "text": " "}], "row 1: column 'text' is empty: give the row a text"),
        ("corpus", [{"_id": "p1", "title": "", "text": 7}], "row 1: column 'text' is 7, not a text"),
        ("queries", [{"_id": "q1", "question": "w1"}], "has no column 'text'; its columns are '_id', 'question'"),
    ],
)
def test_wrong_texts_are_refused(folder, bert_folder, name, rows, wanted) -> None:
    (folder / f"{name}.jsonl").write_text(lines(rows))
    with pytest.raises(DataError) as caught:
        make(folder, bert_folder).setup("fit")
    assert f"{name}.jsonl'" in str(caught.value)
    assert wanted in str(caught.value)


def test_missing_files_are_named(folder, bert_folder) -> None:
    (folder / "qrels" / "dev.tsv").rename(folder / "qrels" / "other.tsv")
    with pytest.raises(DataError, match=r"has no qrels: write dev\.tsv or test\.tsv into its folder qrels"):
        make(folder, bert_folder).setup("validate")
    (folder / "qrels").rename(folder / "judged")
    with pytest.raises(DataError, match="has no folder qrels: pass a BEIR folder"):
        make(folder, bert_folder).setup("validate")
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no corpus\.jsonl: pass a BEIR folder, which has one"):
        make(folder, bert_folder).setup("fit")
    with pytest.raises(DataError, match="which does not exist"):
        make(folder / "nowhere", bert_folder).setup("fit")


def test_prefixes_that_are_no_texts_are_refused(folder, bert_folder) -> None:
    with pytest.raises(PapaError, match="query_prefix is 1, but must be a text"):
        make(folder, bert_folder, query_prefix=1)
    with pytest.raises(PapaError, match=r"passage_prefix is \['p'\], but must be a text"):
        make(folder, bert_folder, passage_prefix=["p"])
