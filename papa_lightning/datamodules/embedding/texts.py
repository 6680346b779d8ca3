"""Base of the data modules of embedding tasks: rows are single texts, judged by what is known of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher

from papa_lightning.checks import check_choice
from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.parts import Role
from papa_lightning.datamodules.rows.layouts import Layout
from papa_lightning.datamodules.rows.tokenizing import tokenize
from papa_lightning.either_lightning import rank_zero_warn
from papa_lightning.embeddings import Judgements
from papa_lightning.encoders.sentence_files import SentenceFiles, read_sentence_files
from papa_lightning.errors import DataError, PapaError

#: Column of the texts, and part of the identity of stored ones: raise it when they are stored in another way.
_TEXT, _VERSION = "text", 1


@dataclass(frozen=True, eq=False)
class JudgedTexts:
    """Texts, and what is known of them.

    Args:
        texts: Different texts, as the encoder gets them.
        judgements: What their embeddings are judged by, the number of a text being its place in `texts`; None where
            nothing is known.
    """

    texts: Sequence[str]
    judgements: Judgements | None


class EmbeddingDataModule(TaskDataModule):
    """Base of the data modules whose rows are single texts, without labels.

    The training split has the texts over which attention is averaged; no score of theirs is read. The validation and
    test splits have the different texts that are judged, see `judgements`. A role without a split of its own takes
    another one, and a warning says so. For the arguments see `TaskDataModule`; rows are padded at the end unless
    `layout` says otherwise.
    """

    label_names: tuple[str, ...] = ()
    """No row has a label."""
    role_order: Mapping[Role, tuple[str, ...]] = {
        "train": ("train", "validation", "test"),
        "validation": ("validation", "test"),
        "test": ("test", "validation"),
        "predict": ("test", "validation"),
    }
    """Keys of `split_names` by role, of which the first that is there is taken."""

    def __init__(self, tokenizer: str, data_dir: str | None = None, layout: Layout = "plain", **kwargs: Any) -> None:
        super().__init__(tokenizer, data_dir, layout=layout, **kwargs)
        self._known: dict[str, JudgedTexts | None] = {}

    @abstractmethod
    def read_texts(self) -> list[str] | None:
        """The texts of the training split, up to `max_train_examples`; None where there is no such split."""

    @abstractmethod
    def read_judged(self, split: str) -> JudgedTexts | None:
        """The texts of another split, up to `max_eval_examples`; None where there is no such split."""

    def judgements(self, split: str = "validation") -> Judgements:
        """What the embeddings of the rows of a split are judged by; a row's `example_id` is its number.

        Args:
            split: ``"validation"`` or ``"test"``.

        Raises:
            DataError: When the data have nothing to judge by.
        """
        check_choice("split", split, ("validation", "test"))
        found = self._texts(self._splits_of("test" if split == "test" else "validation")[0])
        if found is None or found.judgements is None:
            raise DataError(
                f"{self.task_name} ({self.source}) has nothing to judge embeddings by: add {self.evidence}."
            )
        return found.judgements

    @property
    @abstractmethod
    def evidence(self) -> str:
        """What judgements are made of, for messages."""

    def prompt(self, name: str, given: str | None, *prompts: str) -> str:
        """The text to put before a text: an argument, or a prompt of the sentence-transformers files of the encoder.

        Args:
            name: Name of the argument.
            given: Its value; None reads the files in the folder of the tokenizer.
            *prompts: Names of prompts, of which the first that is there is taken, or else the default of the files.

        Raises:
            PapaError: For what is no text.
        """
        if given is not None:
            if not isinstance(given, str):
                raise PapaError(f"{name} is {given!r}, but must be a text: put it into quotation marks.")
            return given
        files = self._sentence_files
        found = [one for one in (*prompts, files.default_prompt or "") if one in files.prompts]
        return files.prompts[found[0]] if found else ""

    def prepared(self, prefix: str, texts: Iterable[str]) -> list[str]:
        """Texts behind a prefix, in lower case where the sentence-transformers files of the encoder say so."""
        lower = self._sentence_files.lower_case
        return [(prefix + text).lower() if lower else prefix + text for text in texts]

    @property
    def _sentence_files(self) -> SentenceFiles:
        return read_sentence_files(self.tokenizer_name) or SentenceFiles()

    def needed_columns(self, labelled: bool) -> list[str]:
        """Names of the columns that `encode` reads."""
        return [_TEXT]

    def encode(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], where: str) -> dict[str, list[Any]]:
        """Turn n texts into columns of numbers; see `TaskDataModule.encode`."""
        return tokenize(self.tokenizer, [list(columns[_TEXT])], self.max_length, self.layout, self.preset)

    def rows_of(self, split: str) -> Dataset:
        """The texts of a split, which must exist."""
        found = self._texts(split)
        return _stored(found.texts) if found is not None else super().rows_of(split)  # which refuses it

    def needs_labels(self, split: str) -> bool:
        """No split needs labels."""
        return False

    def is_labelled(self, rows: Dataset) -> bool:
        """No row has a label."""
        return False

    def report_role(self, role: Role, used: Sequence[str]) -> None:
        """Warn of a role that takes the split of another one."""
        wanted, taken = self.role_order[role][0], used[0]
        if role == "predict" or taken == wanted:
            return
        does = {"train": "attention is averaged over", "validation": "validating on", "test": "testing on"}[role]
        lacks = f"has no split {self.split_names[wanted]!r}" + ("" if role == "train" else f" with {self.evidence}")
        rank_zero_warn(f"{self.task_name} ({self.source}) {lacks}: {does} {self.split_names[taken]!r}.")

    def report(self, splits: Mapping[str, Dataset]) -> None:
        """Warn once of texts that were cut."""
        super().report({f"texts of {name}": rows for name, rows in splits.items()})

    def _splits_of(self, role: Role) -> tuple[str, ...]:
        """The split of a role."""
        order = self.role_order[role]
        for split in order:
            found = self._texts(split)
            if found is not None and (found.judgements is not None or role in ("train", "predict")):
                return (split,)
        return order[:1]

    def _texts(self, split: str) -> JudgedTexts | None:
        """The texts of a split, read once."""
        if split not in self._known:
            if split == "train":
                texts = self.read_texts()
                self._known[split] = None if texts is None else JudgedTexts(different(texts), None)
            else:
                self._known[split] = self.read_judged(split)
        return self._known[split]


def different(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order of their first places."""
    return list(dict.fromkeys(texts))


def _stored(texts: Sequence[str]) -> Dataset:
    """Texts in the cache of the datasets library, by their content."""

    def rows() -> Iterator[dict[str, str]]:
        return ({_TEXT: text} for text in texts)

    found: Dataset = Dataset.from_generator(
        rows, features=Features({_TEXT: Value("string")}), fingerprint=Hasher.hash([_VERSION, list(texts)])
    )
    return found
