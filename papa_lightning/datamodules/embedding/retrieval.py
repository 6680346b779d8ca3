"""Retrieval: passages that are relevant to queries, in the folders of BEIR."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from papa_lightning.checks import as_text, number_of
from papa_lightning.datamodules.embedding.texts import EmbeddingDataModule, JudgedTexts, different
from papa_lightning.datamodules.parts import Role
from papa_lightning.datamodules.reading.files import content_hash, find_split_files, read_split
from papa_lightning.datamodules.rows.checks import check_columns, check_texts, row_error
from papa_lightning.either_lightning import rank_zero_warn
from papa_lightning.embeddings import RelevantPassages
from papa_lightning.errors import DataError

_ID, _TEXT, _TITLE = "_id", "text", "title"
_QUERY, _PASSAGE, _GRADE = "query-id", "corpus-id", "score"


class RetrievalDataModule(EmbeddingDataModule):
    """Queries and the passages that are relevant to them, scored by nDCG@10, MRR@10 and recall@100.

    `data_dir` has the form of BEIR: ``corpus.jsonl`` and ``queries.jsonl`` with `_id`, `text` and, for passages, an
    optional `title`, which is put before the text; ``qrels/dev.tsv`` and ``qrels/test.tsv`` with the header query-id,
    corpus-id, score, where a grade of 0 means not relevant. Without ``dev.tsv``, validation takes ``train.tsv``, or
    else ``test.tsv``; no training reads them. A query without any relevant passage is left out. A passage with the id
    of the query is no answer to it, as in the evaluation of BEIR, unless it is relevant by the qrels.

    Attention is averaged over the first passages of the corpus. Rows of validation and test are the different texts of
    the judged queries and of all passages.

    Source: Thakur et al., "BEIR: A Heterogenous Benchmark for Zero-shot Evaluation of Information Retrieval Models",
    arXiv 2104.08663.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        data_dir: Folder of the data set.
        query_prefix: Text to put before every query, such as ``"query: "``. None: the prompt ``query`` of the
            sentence-transformers files in the folder of the tokenizer, or their default one, if there are any.
        passage_prefix: Text to put before every passage; None: the prompt ``document``, ``passage`` or ``corpus``.
        task_name: Short name of the task, for metadata and messages.
        max_length: Number of slots T of every row.
        max_train_examples: Number of passages to average attention over, from the start of the corpus. None: all.
        max_eval_examples: Number of queries, from the start of the qrels. None: all.
        **kwargs: See `TaskDataModule`.

    Raises:
        PapaError: An argument is out of range; see `TaskDataModule`.

    Example:
        >>> data = RetrievalDataModule("bert-base-uncased", "scifact", query_prefix="query: ")
        >>> data.metrics, data.description
        (('ndcg@10', 'mrr@10', 'recall@100'), 'retrieval corpus (data_dir scifact, first 2000 examples)')
    """

    metrics = RelevantPassages.metrics
    evidence = "qrels"
    split_names: Mapping[str, str] = {"train": "corpus", "validation": "dev", "judged": "train", "test": "test"}
    role_order: Mapping[Role, tuple[str, ...]] = {
        "train": ("train",),
        "validation": ("validation", "judged", "test"),
        "test": ("test", "validation", "judged"),
        "predict": ("test", "validation", "judged"),
    }

    def __init__(
        self,
        tokenizer: str,
        data_dir: str,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        task_name: str = "retrieval",
        max_length: int = 256,
        max_train_examples: int | None = 2000,
        **kwargs: Any,
    ) -> None:
        self.task_name = as_text("task_name", task_name)
        folder = as_text("data_dir", data_dir)
        super().__init__(tokenizer, folder, max_length=max_length, max_train_examples=max_train_examples, **kwargs)
        self.query_prefix = self.prompt("query_prefix", query_prefix, "query")
        self.passage_prefix = self.prompt("passage_prefix", passage_prefix, "document", "passage", "corpus")

    def fingerprint(self) -> str:
        """Identity of the data by content, see `TaskDataModule.fingerprint`."""
        files = [
            self._file_of("corpus"),
            self._file_of("queries"),
            *map(self.split_file, ("validation", "judged", "test")),
        ]
        found = [None if file is None else content_hash(file) for file in files]
        return hashlib.sha256(str(found).encode()).hexdigest()

    def split_file(self, split: str) -> Path | None:
        """Path of the corpus, or of the qrels of a split, None if there are none."""
        if split == "train":
            return self._file_of("corpus")
        assert self.folder is not None
        folder, name = self.folder / "qrels", self.split_names[split]
        if self.folder.is_dir() and not folder.is_dir():
            raise DataError(
                f"data_dir {str(self.folder)!r} has no folder qrels: pass a BEIR folder, with corpus.jsonl, "
                "queries.jsonl, and qrels/dev.tsv or qrels/test.tsv."
            )
        return find_split_files(folder, [name], self.suffixes).get(name)

    def read_texts(self) -> list[str]:
        """The first passages of the corpus, see `EmbeddingDataModule.read_texts`."""
        _, texts = self._read("corpus", self.max_train_examples)
        return self.prepared(self.passage_prefix, texts)

    def read_judged(self, split: str) -> JudgedTexts | None:
        """The judged queries and all passages, see `EmbeddingDataModule.read_judged`."""
        file = self.split_file(split)
        if file is None:
            return None
        passages, passage_texts = self._read("corpus")
        queries, query_texts = self._read("queries")
        relevant = self._relevant(file, queries, passages)
        numbers = list(dict.fromkeys(query for query, _ in relevant))[: self.max_eval_examples]
        asked = self.prepared(self.query_prefix, [query_texts[number] for number in numbers])
        answers = self.prepared(self.passage_prefix, passage_texts)
        texts = different([*asked, *answers])
        places, place = {text: n for n, text in enumerate(texts)}, {number: n for n, number in enumerate(numbers)}
        relevance = [(place[query], one, grade) for (query, one), grade in relevant.items() if query in place]
        same = {place: passages[name] for name, place in queries.items() if name in passages}
        left_out = [-1 if (number, same.get(number)) in relevant else same.get(number, -1) for number in numbers]
        judged = RelevantPassages(
            torch.tensor([places[text] for text in asked], dtype=torch.int64),
            torch.tensor([places[text] for text in answers]),
            torch.tensor(relevance, dtype=torch.int64).reshape(-1, 3),
            repr(str(file)),
            torch.tensor(left_out, dtype=torch.int64),
        )
        return JudgedTexts(texts, judged)

    def rows_of(self, split: str) -> Dataset:
        """The texts of a split, which must exist."""
        if self._texts(split) is None:
            raise DataError(
                f"data_dir {str(self.folder)!r} has no qrels: write dev.tsv or test.tsv into its folder qrels, with "
                f"the columns {_QUERY}, {_PASSAGE} and {_GRADE}."
            )
        return super().rows_of(split)

    def _file_of(self, name: str) -> Path:
        """Path of the corpus or of the queries, which must exist."""
        assert self.folder is not None
        file = find_split_files(self.folder, [name], self.suffixes).get(name)
        if file is None:
            raise DataError(f"data_dir {str(self.folder)!r} has no {name}.jsonl: pass a BEIR folder, which has one.")
        return file

    def _read(self, name: str, limit: int | None = None) -> tuple[dict[str, int], list[str]]:
        """The places of queries or passages by their id, and their texts."""
        file = self._file_of(name)
        rows, where = read_split(file), repr(str(file))
        check_columns(rows.column_names, [_ID, _TEXT], where)
        rows = rows if limit is None else rows.select(range(min(limit, len(rows))))
        places = dict[str, int]()
        for row, one in enumerate(rows[_ID]):
            if one in (None, ""):
                raise row_error(where, row, _ID, "is missing", "give the row an id")
            if places.setdefault(str(one), row) != row:
                found = f"is {str(one)!r}, as in row {places[str(one)] + 1}"
                raise row_error(where, row, _ID, found, "give every row an id of its own")
        titles = rows[_TITLE] if _TITLE in rows.column_names else [None] * len(rows)
        joined = [
            f"{title} {text}".strip() if isinstance(title, str) and isinstance(text, str) else text
            for title, text in zip(titles, rows[_TEXT], strict=True)
        ]
        return places, check_texts(joined, range(len(joined)), _TEXT, where)

    def _relevant(
        self, file: Path, queries: Mapping[str, int], passages: Mapping[str, int]
    ) -> dict[tuple[int, int], int]:
        """The grades of relevant passages by the places of query and passage, in the order of the file."""
        rows, where, columns = read_split(file), repr(str(file)), (_QUERY, _PASSAGE, _GRADE)
        check_columns(rows.column_names, columns, where)
        grades = dict[tuple[int, int], int]()
        for row, (query, passage, value) in enumerate(zip(*(rows[name] for name in columns), strict=True)):
            pair = (
                _place(queries, query, row, _QUERY, where, "queries"),
                _place(passages, passage, row, _PASSAGE, where, "corpus"),
            )
            if pair in grades:
                found = f"is {passage!r} for the query {query!r} once more"
                raise row_error(where, row, _PASSAGE, found, "keep one grade for each query and passage")
            grades[pair] = _grade(value, row, where)
        relevant = {pair: grade for pair, grade in grades.items() if grade > 0}
        asked, answered = ({query for query, _ in pairs} for pairs in (grades, relevant))
        if relevant and len(answered) < len(asked):
            lacking = f"{len(asked) - len(answered)} of {len(asked)} queries have"
            rank_zero_warn(f"{where}: {lacking} no passage with a grade above 0, and are left out.")
        return relevant


def _place(places: Mapping[str, int], name: Any, row: int, column: str, where: str, file: str) -> int:
    """The place of a query or passage by its id."""
    if (found := places.get(str(name))) is None:
        raise row_error(
            where, row, column, f"is {name!r}, which the {file} file lacks", "add it there, or remove the row"
        )
    return found


def _grade(value: Any, row: int, where: str) -> int:
    """The grade of a passage."""
    number = number_of(value)
    if number is None or number != number.to_integral_value():
        raise row_error(
            where, row, _GRADE, f"is {value!r}, which is no whole number", "write a grade, 0 for not relevant"
        )
    return int(number)
