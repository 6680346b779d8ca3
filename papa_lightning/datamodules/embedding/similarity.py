"""Pairs of texts with a similarity by people: your own, STS-B and STS 2012 to 2017."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Value

from papa_lightning.checks import as_names, as_text, check_choice, number_of
from papa_lightning.datamodules.embedding.texts import EmbeddingDataModule, JudgedTexts, different
from papa_lightning.datamodules.reading.files import store_rows
from papa_lightning.datamodules.reading.formats import open_text, unreadable
from papa_lightning.datamodules.rows.checks import check_columns, check_texts, is_labelled, row_error
from papa_lightning.embeddings import SimilarPairs
from papa_lightning.errors import PapaError

#: Names of the original files of STS-B, and the places of their columns.
_ORIGINAL = {"train": "sts-train", "validation": "sts-dev", "test": "sts-test"}
_COLUMNS = {"score": 4, "sentence1": 5, "sentence2": 6}
#: Data sets of the hub by year, and the configuration.
_YEARS: Mapping[int, tuple[str, str | None]] = {
    **{year: (f"mteb/sts{year}-sts", None) for year in (12, 13, 14, 15, 16)},
    17: ("mteb/sts17-crosslingual-sts", "en-en"),
}


class SimilarityDataModule(EmbeddingDataModule):
    """Pairs of texts with a similarity by people, scored by the correlation of cosines with it.

    Rows are the different texts of the pairs. Both texts of a pair have the same prefix. A test split whose scores are
    missing, or all -1, is one without scores.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        data_dir: Folder with one file per split, see `TaskDataModule`; a split for training or for validation may be
            missing.
        text_columns: Columns of the first and of the second text.
        score_column: Column of the similarity, a number in any unit.
        prefix: Text to put before every text, such as ``"query: "``. None: the default prompt of the
            sentence-transformers files in the folder of the tokenizer, if there are any.
        task_name: Short name of the task, for metadata and messages.
        hub_path: Name of the data set on the hub, without `data_dir`.
        hub_config: Name of its configuration.
        split_names: Other names of the splits, by "train", "validation" and "test".
        **kwargs: See `TaskDataModule`; `max_train_examples` and `max_eval_examples` are numbers of pairs.

    Raises:
        PapaError: An argument is out of range; see `TaskDataModule`.

    Example:
        >>> data = SimilarityDataModule("bert-base-uncased", "pairs", score_column="gold", prefix="query: ")
        >>> data.metrics, data.layout
        (('spearman', 'pearson'), 'plain')
    """

    metrics = SimilarPairs.metrics
    evidence = "scores that differ"

    def __init__(
        self,
        tokenizer: str,
        data_dir: str | None = None,
        text_columns: Sequence[str] = ("sentence1", "sentence2"),
        score_column: str = "score",
        prefix: str | None = None,
        task_name: str = "similarity",
        hub_path: str | None = None,
        hub_config: str | None = None,
        split_names: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.text_columns = as_names("text_columns", text_columns, fewest=2)
        if len(self.text_columns) > 2:
            raise PapaError(f"text_columns is {list(text_columns)}, but a pair has two texts: name two columns.")
        self.label_column = as_text("score_column", score_column)
        self.task_name = as_text("task_name", task_name)
        self.hub_path, self.hub_config = hub_path, hub_config
        self.split_names = {**type(self).split_names, **(split_names or {})}
        super().__init__(tokenizer, data_dir, **kwargs)
        self.prefix = self.prompt("prefix", prefix)

    def read_texts(self) -> list[str] | None:
        """The texts of the first training pairs, see `EmbeddingDataModule.read_texts`."""
        rows = self.load_split("train")
        if rows is None:
            return None
        one, other = self._pairs("train", rows, self.max_train_examples)
        return [text for pair in zip(one, other, strict=True) for text in pair]

    def read_judged(self, split: str) -> JudgedTexts | None:
        """The pairs of a split and their similarities, see `EmbeddingDataModule.read_judged`."""
        rows = self.load_split(split)
        if rows is None:
            return None
        pairs = self._pairs(split, rows, self.max_eval_examples)
        texts, column = different([*pairs[0], *pairs[1]]), self.score_column(rows)
        where = self._where(split)
        if split == "test" and (column not in rows.column_names or not is_labelled(rows[column])):
            return JudgedTexts(texts, None)
        check_columns(rows.column_names, [column], where)
        gold = _scores(rows[column][: len(pairs[0])], column, where)
        places = {text: place for place, text in enumerate(texts)}
        first, second = (torch.tensor([places[text] for text in one]) for one in pairs)
        return JudgedTexts(texts, SimilarPairs(first, second, gold, f"{where}, column {column!r}"))

    def score_column(self, rows: Dataset) -> str:
        """Column of the similarity in the rows of a split."""
        return self.label_column

    def _pairs(self, split: str, rows: Dataset, limit: int | None) -> tuple[list[str], list[str]]:
        """The first texts and the second texts of a split, as the encoder gets them."""
        where = self._where(split)
        check_columns(rows.column_names, self.text_columns, where)
        some = rows.select(range(len(rows) if limit is None else min(limit, len(rows))))
        one, other = (
            self.prepared(self.prefix, check_texts(some[name], range(len(some)), name, where))
            for name in self.text_columns
        )
        return one, other


class STSBDataModule(SimilarityDataModule):
    """The Semantic Textual Similarity Benchmark: pairs of sentences, scored by Spearman correlation.

    `data_dir` is a folder with the original files as they come (sts-train.csv, sts-dev.csv and sts-test.csv, separated
    by tabs, without a header), or with one file per split whose columns are sentence1, sentence2 and score or label.
    The hub's ``sentence-transformers/stsb`` has scores from 0 to 1, ``nyu-mll/glue`` (configuration ``stsb``) and the
    original from 0 to 5, which makes no difference to a correlation; the test split of GLUE has none.

    Source: Cer et al., "SemEval-2017 Task 1: Semantic Textual Similarity", arXiv 1708.00055. The original files are at
    http://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        data_dir: Folder of the files. None: the data set of the hub.
        prefix: See `SimilarityDataModule`.
        hub_path: Name of the data set on the hub.
        hub_config: Name of its configuration.
        **kwargs: See `TaskDataModule`; `max_train_examples` and `max_eval_examples` are numbers of pairs.

    Example:
        >>> STSBDataModule("bert-base-uncased").description
        'stsb train (hub sentence-transformers/stsb)'
    """

    def __init__(
        self,
        tokenizer: str,
        data_dir: str | None = None,
        prefix: str | None = None,
        hub_path: str = "sentence-transformers/stsb",
        hub_config: str | None = None,
        **kwargs: Any,
    ) -> None:
        original = data_dir is not None and any(Path(data_dir).expanduser().glob("sts-*.csv*"))
        super().__init__(
            tokenizer,
            data_dir,
            text_columns=("sentence1", "sentence2"),
            score_column="score",
            prefix=prefix,
            task_name="stsb",
            hub_path=hub_path,
            hub_config=hub_config,
            split_names=_ORIGINAL if original else None,
            **kwargs,
        )

    def score_column(self, rows: Dataset) -> str:
        """The column score, or label in GLUE's form."""
        return "label" if "score" not in rows.column_names and "label" in rows.column_names else "score"

    def read_file(self, path: Path) -> Dataset:
        """Read the file of a split, also of the original form."""
        if not path.name.startswith("sts-"):
            return super().read_file(path)
        return store_rows(path, lambda: _original_rows(path), Features(dict.fromkeys(_COLUMNS, Value("string"))))


class STSDataModule(SimilarityDataModule):
    """Semantic textual similarity of SemEval 2012 to 2017: pairs of sentences, scored by Spearman correlation.

    All but 2012 have a test split only, over whose texts attention is averaged too.

    Source: Agirre et al. 2012 to 2016 and Cer et al. 2017, the SemEval tasks of these years, in the form of MTEB
    (Muennighoff et al., arXiv 2210.07316).

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        year: The year, from 12 to 17.
        data_dir: Folder with one file per split, with the columns sentence1, sentence2 and score. None: the data set of
            the hub.
        prefix: See `SimilarityDataModule`.
        hub_config: Configuration on the hub, in 2017 the languages; None takes English.
        **kwargs: See `TaskDataModule`; `max_train_examples` and `max_eval_examples` are numbers of pairs.

    Example:
        >>> STSDataModule("bert-base-uncased", year=17).source
        'hub mteb/sts17-crosslingual-sts, en-en'
    """

    def __init__(
        self,
        tokenizer: str,
        year: int = 12,
        data_dir: str | None = None,
        prefix: str | None = None,
        hub_config: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("year", year, _YEARS)
        path, config = _YEARS[year]
        super().__init__(
            tokenizer,
            data_dir,
            text_columns=("sentence1", "sentence2"),
            score_column="score",
            prefix=prefix,
            task_name=f"sts{year}",
            hub_path=path,
            hub_config=hub_config or config,
            split_names=None,
            **kwargs,
        )


def _scores(values: Sequence[Any], column: str, where: str) -> torch.Tensor:
    """The numbers of a column, also as text."""
    found = [number_of(value) for value in values]
    for row, (value, number) in enumerate(zip(values, found, strict=True)):
        if number is None:
            what = "is missing" if value in (None, "") else f"is {value!r}, which is no finite number"
            raise row_error(where, row, column, what, "give the pair its similarity as a number, or remove the row")
    return torch.tensor([float(number) for number in found if number is not None], dtype=torch.float64)


def _original_rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of an original file of STS-B: fields between tabs, without header and quoting; some have further fields."""
    with open_text(path) as file:
        for line, fields in enumerate(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), start=1):
            if not fields:
                continue
            if len(fields) <= max(_COLUMNS.values()):
                raise unreadable(
                    path,
                    f"line {line} has {len(fields)} fields between tabs, but the original form has genre, file, year, "
                    "number, score and two sentences",
                )
            yield {name: fields[place] for name, place in _COLUMNS.items()}
