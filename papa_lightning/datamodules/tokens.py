"""Base of data modules for sentences, split into words, with one label per word."""

from collections.abc import Mapping, Sequence
from operator import ne
from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value
from transformers import PreTrainedTokenizerBase

from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.reading.conll import COLUMN_SUFFIXES, CONLLU_SUFFIX, Places, read_conll
from papa_lightning.datamodules.reading.formats import READERS, suffix_of
from papa_lightning.datamodules.rows.reports import tally
from papa_lightning.datamodules.rows.tags import fit_tag_ids, has_tags, tag_ids, word_lists
from papa_lightning.datamodules.rows.tokenizing import NO_LABEL, prepare_for_words, tokenize_words
from papa_lightning.either_lightning import rank_zero_warn
from papa_lightning.tag_schemes import scheme_of


class TokenDataModule(TaskDataModule):
    """Base of the data modules whose rows are sentences split into words, with one label per word.

    A subclass has the facts of its task as class attributes, see `POSDataModule`. `labels` of a batch are (B, T): the
    label of a word at its first token, elsewhere -100, which losses and metrics ignore. `word_ids` (B, T) has the
    number of the word, from 0, in the same places, also without labels; batches for prediction also have `num_words`
    (B,). In the segment-aligned layout only the last separator moves, so that words keep their positions.

    Besides the files of `TaskDataModule`, `data_dir` may hold CoNLL files (.conll, .bio or .txt: one word a line, its
    tag in the last column) and CoNLL-U files (.conllu). Lists in csv and tsv files are words between blanks, or JSON.
    Where the labels mark entities in a scheme that `scheme_of` knows, tags that break it are corrected: in IOB2 an I-
    tag without a B- before it (schemes IOB1 and IO) becomes a B- tag. The rest of an entity whose words have no token,
    or no slot, is tagged as an entity. For the arguments see `TaskDataModule`.
    """

    token_column: str = "tokens"
    """Column of the words."""
    conll_places: Places | None = None
    """Columns of the word and of the tag in a CoNLL file; see `read_conll`."""
    suffixes = (*READERS, *COLUMN_SUFFIXES, CONLLU_SUFFIX)
    hub_remedy = "pass data_dir, a folder with the original files as train.conll, validation.conll and test.conll"

    @property
    def fewest_slots(self) -> int:
        """Smallest number of slots that leaves one for a word: CLS x SEP."""
        return 3

    def needed_columns(self, labelled: bool) -> list[str]:
        """Names of the columns that `encode` reads."""
        return [self.token_column, *([self.label_column] if labelled else [])]

    def features(self, labelled: bool) -> dict[str, Any]:
        """Types in which the columns of `encode` are stored; batches hold int64."""
        counts = {name: Value("int32") for name in ("cut_words", "vanished", "repaired", "num_words")}
        slots = List(Value("int32"), length=self.max_length)
        labels = {"labels": slots} if labelled else {}
        return super().features(labelled=False) | counts | {"word_ids": slots} | labels

    def encode(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], where: str) -> dict[str, list[Any]]:
        """Check n rows and turn them into columns of numbers; see `TaskDataModule.encode`."""
        words = word_lists(columns[self.token_column], rows, self.token_column, where)
        tags = None
        if self.label_column in columns:
            names = (self.token_column, self.label_column)
            tags = tag_ids(columns[self.label_column], words, rows, self.label_names, names, where)
        encoded = tokenize_words(self.tokenizer, words, tags, self.max_length, self.layout, self.preset)
        if tags is not None and (scheme := scheme_of(self.label_names)) is not None:
            fitted = [fit_tag_ids(row, range(len(row)), self.label_names, scheme) for row in tags]
            encoded["repaired"] = [sum(map(ne, *pair)) for pair in zip(tags, fitted, strict=True)]
            encoded["labels"] = [
                _place_tags(word_ids, fit_tag_ids(row, _words_in(word_ids), self.label_names, scheme))
                for row, word_ids in zip(tags, encoded["word_ids"], strict=True)
            ]
        return encoded | {"num_words": list(map(len, words))}

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer and check that it can make rows of the layout, word by word."""
        return prepare_for_words(super().load_tokenizer(), self.tokenizer_name)

    def read_file(self, path: Path) -> Dataset:
        """Read the file of one split."""
        if suffix_of(path) in READERS:
            return super().read_file(path)
        return read_conll(path, self.token_column, self.label_column, self.conll_places)

    def has_labels(self, values: Sequence[Any]) -> bool:
        """Whether the values of the label column hold any label."""
        return has_tags(values, self.label_names)

    def report(self, splits: Mapping[str, Dataset]) -> None:
        """Warn once of the losses in new splits; see `TaskDataModule.report`."""
        super().report(splits)
        repaired, places = tally(splits, "repaired")
        if repaired:
            scheme = scheme_of(self.label_names)
            found = f"do not fit the scheme {scheme} and are read as part of the entities that they begin or go on"
            reason = "mend the files, or name the labels as their scheme does"
            if scheme == "IOB2":
                found = "were I- without a B- or I- of the same kind before them, and are read as B-"
                reason = "the files are in the scheme IOB1 or IO, and the task is scored in IOB2"
            rank_zero_warn(
                f"{self.task_name}: {repaired} tags of column {self.label_column!r} {found} ({places}): {reason}."
            )
        vanished, places = tally(splits, "vanished")
        if vanished:
            rank_zero_warn(
                f"{self.task_name}: {vanished} words of column {self.token_column!r} become no token with this "
                f"tokenizer, so their labels have no place ({places}): they are neither trained on nor scored."
            )


def _words_in(word_ids: Sequence[int]) -> list[int]:
    """Numbers of the words of a row that have a slot."""
    return [word for word in word_ids if word != NO_LABEL]


def _place_tags(word_ids: Sequence[int], tags: Sequence[int]) -> list[int]:
    """Tags of the words of a row in their slots."""
    left = iter(tags)
    return [NO_LABEL if word == NO_LABEL else next(left) for word in word_ids]
