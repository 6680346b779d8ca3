"""The base of all data modules: from task files or the hub to batches of rows of one length."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from datasets import Dataset, Features, List, Value, load_dataset
from datasets.fingerprint import Hasher
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from papa_lightning.datamodules.files import find_split_files, first_line, missing_split, read_split
from papa_lightning.datamodules.layouts import Layout, Preset
from papa_lightning.datamodules.rows import check_columns, check_texts, is_labelled, label_ids
from papa_lightning.datamodules.tokenizing import fingerprint, load_tokenizer, tokenize
from papa_lightning.exceptions import DataError

Split = Literal["train", "validation", "test"]
"""A part of a data set."""

Role = Literal["train", "validation", "test", "predict"]
"""What a dataloader is for."""

ROLES: Mapping[str | None, tuple[Role, ...]] = {
    "fit": ("train", "validation"),
    "validate": ("validation",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "validation", "test", "predict"),
}
"""What every stage of the Trainer needs."""

# Part of the identity of stored rows: raise it when `TextDataModule.encode` or what it calls gives other rows, or
# rows of before would be read from the cache.
ROWS_VERSION = 1


class TextDataModule(LightningDataModule):
    """Base of the data modules whose rows are one or two texts with one label.

    A subclass states the facts of its task as class attributes: a short file, see `CoLADataModule`. A task with
    other columns (one label per word) overrides `features`, `needed_columns` and `encode`.

    Batches are mappings of int64 tensors, B = `batch_size`, T = `max_length`:
    `input_ids` (B, T), `attention_mask` (B, T), `token_type_ids` (B, T) if the tokenizer makes them, `labels` (B,) if
    the split has them, `example_id` (B,): the row's `idx` if that is a number, else its place in the split, from 0.

    Args:
        tokenizer: Name on the hub, or local folder. Use the encoder's.
        data_dir: Folder that holds one file per split (`train`, `validation`, `test`; .jsonl, .csv, .tsv or .parquet).
            None: the data set is taken from the hub.
        max_length: Number of slots T of every row.
        batch_size: Rows per training batch.
        eval_batch_size: Rows per batch of validation, test and prediction. None: as `batch_size`.
        layout: "segment": segments and separators on fixed slots. "plain": padding at the end.
        preset: "reference" repeats the published code, "default" does the better thing where the two differ.
        num_workers: Processes that load batches, per dataloader. 0: none besides the main one.
        max_train_examples: Take so many training rows from the start of the split. None: all.
        max_eval_examples: The same for the other splits.
        revision: Revision of the data set on the hub.
        tokenizer_revision: Revision of the tokenizer on the hub.

    Raises:
        DataError: An argument is out of range. `prepare_data` and `setup` raise it for data or tokenizers that are
            missing, unreadable or not what the task expects.
    """

    task_name: ClassVar[str]
    """Short name of the task, for metadata and messages."""
    hub_path: ClassVar[str | None] = None
    """Name of the data set on the hub. None: it is on no hub."""
    hub_config: ClassVar[str | None] = None
    """Configuration of the data set on the hub."""
    split_names: ClassVar[Mapping[Split, str]] = {"train": "train", "validation": "validation", "test": "test"}
    """Name of every split, on the hub and as the stem of a file."""
    text_columns: ClassVar[tuple[str, ...]]
    """One column, or two for a pair of texts."""
    label_column: ClassVar[str] = "label"
    """Column of the label."""
    label_names: ClassVar[tuple[str, ...]]
    """Names of the labels, by number."""
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)
    """Names of the task's metrics; the first one is its score."""

    def __init__(
        self,
        tokenizer: str,
        data_dir: str | None = None,
        max_length: int = 64,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        layout: Layout = "segment",
        preset: Preset = "default",
        num_workers: int = 0,
        max_train_examples: int | None = None,
        max_eval_examples: int | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
    ) -> None:
        super().__init__()
        tokenizer = _as_text("tokenizer", tokenizer)
        data_dir = None if data_dir is None else _as_text("data_dir", data_dir)
        # The Trainer refuses to log a name that model and data share with different values, such as `preset`.
        self.save_hyperparameters(logger=False)
        self.tokenizer_name = tokenizer
        self.data_dir = data_dir
        self.max_length = max_length
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.layout: Layout = layout
        self.preset: Preset = preset
        self.num_workers = num_workers
        self.max_train_examples = max_train_examples
        self.max_eval_examples = max_eval_examples
        self.revision = revision
        self.tokenizer_revision = tokenizer_revision
        self._check_arguments()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: dict[Split, Dataset] = {}
        self._splits: dict[Role, Split] = {}

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at the first use."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.tokenizer_name, self.tokenizer_revision, self.max_length, self.layout)
        return self._tokenizer

    @property
    def folder(self) -> Path | None:
        """Folder that the splits are read from, None for the hub."""
        return None if self.data_dir is None else Path(self.data_dir).expanduser()

    @property
    def source(self) -> str:
        """Where the data come from, without any path: metadata travel with constants files."""
        if self.folder is not None:
            return f"data_dir {self.folder.resolve().name}"
        names = ", ".join(name for name in (self.hub_path, self.hub_config) if name)
        return f"hub {names}" + (f", revision {self.revision}" if self.revision else "")

    @property
    def description(self) -> str:
        """The training data in a few words, for metadata: `sst2 train (hub nyu-mll/glue, sst2)`."""
        limit = "" if self.max_train_examples is None else f", first {self.max_train_examples} examples"
        return f"{self.task_name} {self.split_names['train']} ({self.source}{limit})"

    def prepare_data(self) -> None:
        """Download and tokenise once per machine: `setup` finds the rows in the cache. Keeps no state."""
        stage = None if self.trainer is None or self.trainer.state.fn is None else self.trainer.state.fn.value
        for split in set(self._resolve(stage).values()):
            self._tokenized(split)

    def setup(self, stage: str | None = None) -> None:
        """Make the rows of a stage ready; what is ready already stays.

        Args:
            stage: "fit", "validate", "test", "predict", or None for all of them.

        Raises:
            DataError: See the class.
        """
        splits = self._resolve(stage)
        if splits.get("test") == "validation" and "test" not in self._splits:
            rank_zero_warn(
                f"{self.task_name} ({self.source}) has no test split with labels: testing on the validation split."
            )
        new = {split: self._tokenized(split) for split in splits.values() if split not in self._rows}
        self._rows.update(new)
        self._splits.update(splits)
        self._report_truncation(new)

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return the training batches, shuffled."""
        return self._dataloader("train")

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return the validation batches."""
        return self._dataloader("validation")

    def test_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return the batches of the test split, of the validation split if no test split has labels."""
        return self._dataloader("test")

    def predict_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Return the batches of the test split, of the validation split if there is none; labels may be missing."""
        return self._dataloader("predict")

    def load_split(self, split: Split) -> Dataset | None:
        """Load the rows of one split as they are.

        Args:
            split: Name of the split.

        Returns:
            The rows, or None if the data set has no such split.

        Raises:
            DataError: They cannot be read.
        """
        name = self.split_names[split]
        if self.folder is not None:
            files = find_split_files(self.folder, [name])
            return read_split(files[name]) if name in files else None
        return self._load_hub().get(name)

    def needed_columns(self, labelled: bool) -> list[str]:
        """Name the columns that `encode` reads."""
        return [*self.text_columns, *([self.label_column] if labelled else [])]

    def features(self, labelled: bool) -> dict[str, Any]:
        """Return the types in which the columns of `encode` are stored; batches hold int64 whatever they are."""
        row = List(Value("int32"), length=self.max_length)
        types = {"input_ids": row, "attention_mask": row, "truncated": Value("bool"), "example_id": Value("int64")}
        if "token_type_ids" in self.tokenizer.model_input_names:
            types["token_type_ids"] = row
        return types | ({"labels": Value("int64")} if labelled else {})

    def encode(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], where: str) -> dict[str, list[Any]]:
        """Check n rows and turn them into columns of numbers.

        Args:
            columns: The columns of the data set, n values each.
            rows: Number of each row in its split, from 0.
            where: Name of what is read, for messages.

        Returns:
            The columns of a batch as in `features`, `labels` only if there is a column of labels.

        Raises:
            DataError: A text or label is missing or not what the task expects.
        """
        texts = [check_texts(columns[name], rows, name, where) for name in self.text_columns]
        encoded = tokenize(self.tokenizer, texts, self.max_length, self.layout, self.preset)
        if self.label_column in columns:
            values = columns[self.label_column]
            encoded["labels"] = label_ids(values, rows, self.label_names, self.label_column, where)
        return encoded

    def _load_hub(self) -> Mapping[str, Dataset]:
        """Load all splits of the hub's data set: from its cache after the first time."""
        if self.hub_path is None:
            raise DataError(f"data_dir is None, but {self.task_name} is on no hub: pass a folder of local files.")
        try:
            splits: Mapping[str, Dataset] = load_dataset(self.hub_path, self.hub_config, revision=self.revision)
        except Exception as error:  # network, hub and file readers raise errors of their own
            raise DataError(
                f"the data set {self.hub_path!r} ({self.hub_config}) cannot be loaded from the hub: "
                f"{first_line(error)}. Check the network and the revision, or pass data_dir, a folder of local files."
            ) from error
        return splits

    def _check_arguments(self) -> None:
        """Refuse arguments that are out of range."""
        # Fewest slots that hold a token of every segment beside CLS and separators: CLS x | SEP, where "reference"
        # gives the text half of them, and CLS x - | SEP SEP x SEP.
        _check_at_least("max_length", self.max_length, 7 if len(self.text_columns) == 2 else 4)
        for name in ("batch_size", "eval_batch_size"):
            _check_at_least(name, getattr(self, name), 1)
        for name in ("max_train_examples", "max_eval_examples"):
            if getattr(self, name) is not None:
                _check_at_least(name, getattr(self, name), 1)
        _check_at_least("num_workers", self.num_workers, 0)
        _check_choice("layout", self.layout, get_args(Layout))
        _check_choice("preset", self.preset, get_args(Preset))

    def _resolve(self, stage: str | None) -> dict[Role, Split]:
        """Say which split serves every role of a stage."""
        _check_choice("stage", stage, tuple(ROLES))
        return {role: self._split_of(role) for role in ROLES[stage]}

    def _split_of(self, role: Role) -> Split:
        """Say which split serves a role: without a (labelled) test split, the validation split does."""
        if role == "train" or role == "validation":
            return role
        rows = self.load_split("test")
        usable = rows is not None and (role == "predict" or self._is_labelled(rows))
        return "test" if usable else "validation"

    def _is_labelled(self, rows: Dataset) -> bool:
        """Tell whether rows have labels; a test split may have none, or hidden ones."""
        return self.label_column in rows.column_names and is_labelled(rows[self.label_column])

    def _tokenized(self, split: Split) -> Dataset:
        """Load, check and tokenise a split; the result lies in the cache of the datasets library."""
        rows = self._load_rows(split)
        labelled = split != "test" or self._is_labelled(rows)
        where, kept = self._where(split), self.needed_columns(labelled)
        check_columns(rows.column_names, kept, where)
        has_idx = "idx" in rows.column_names and "int" in str(getattr(rows.features["idx"], "dtype", ""))
        types = self.features(labelled)

        def encode(columns: Mapping[str, Sequence[Any]], numbers: Sequence[int]) -> dict[str, list[Any]]:
            encoded = self.encode({name: columns[name] for name in kept}, numbers, where)
            return encoded | {"example_id": list(columns["idx"] if has_idx else numbers)}

        cls = type(self)
        identity = [ROWS_VERSION, cls.__module__, cls.__qualname__, cls.encode.__code__, rows._fingerprint]
        facts = [self.max_length, self.layout, self.preset, kept, self.label_names, has_idx, str(types)]
        # The library would hash `encode` with everything it refers to, which differs from process to process.
        return rows.map(
            encode,
            batched=True,
            with_indices=True,
            remove_columns=rows.column_names,
            features=Features(types),
            new_fingerprint=Hasher.hash([*identity, *facts, fingerprint(self.tokenizer)]),
            desc=f"Tokenising {self.task_name} {split}",
        )

    def _load_rows(self, split: Split) -> Dataset:
        """Load the rows of a split that must exist, as many as the limits allow."""
        rows = self.load_split(split)
        if rows is None:
            name = self.split_names[split]
            if self.folder is not None:
                raise missing_split(self.folder, name)
            raise DataError(f"{self.source} has no split {name!r}: pass another revision, or data_dir.")
        limit = self.max_train_examples if split == "train" else self.max_eval_examples
        return rows if limit is None or limit >= len(rows) else rows.select(range(limit))

    def _where(self, split: Split) -> str:
        """Name what a split is read from, for messages about its rows."""
        name = self.split_names[split]
        if self.folder is None:
            return f"{self.source}, split {name!r}"
        return repr(str(find_split_files(self.folder, [name])[name]))

    def _report_truncation(self, splits: Mapping[Split, Dataset]) -> None:
        """Say once for all new splits how many texts did not fit."""
        counts = {split: sum(rows["truncated"]) for split, rows in splits.items()}
        cut, total = sum(counts.values()), sum(len(rows) for rows in splits.values())
        if cut:
            parts = ", ".join(f"{split} {counts[split]} of {len(rows)}" for split, rows in splits.items())
            rank_zero_warn(
                f"{self.task_name}: {cut} of {total} examples ({cut / total:.1%}) do not fit "
                f"max_length={self.max_length} in layout={self.layout!r}, preset={self.preset!r} "
                f"and were cut ({parts}): raise max_length to keep them."
            )

    def _dataloader(self, role: Role) -> DataLoader[dict[str, torch.Tensor]]:
        """Make the dataloader of a role."""
        if role not in self._splits:
            raise DataError(f"the {role} data are not set up: call setup() of the data module first.")
        rows = self._rows[self._splits[role]]
        columns = [name for name in rows.column_names if name != "truncated"]
        device = "cpu" if self.trainer is None else self.trainer.strategy.root_device.type
        return DataLoader(
            rows.with_format("torch", columns=columns),
            batch_size=self.batch_size if role == "train" else self.eval_batch_size,
            shuffle=role == "train",
            num_workers=self.num_workers,
            pin_memory=device in ("cuda", "xpu"),  # elsewhere it costs a copy, or a warning, for nothing
            persistent_workers=self.num_workers > 0,
        )


def _check_at_least(name: str, value: int, minimum: int) -> None:
    """Refuse an argument that is not a whole number from `minimum` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise DataError(f"{name} is {value!r}, but must be a whole number, at least {minimum}.")


def _check_choice(name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    """Refuse an argument that is none of the choices."""
    if value not in choices:
        raise DataError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")


def _as_text(name: str, value: Any) -> str:
    """Return the name or path as text: hyperparameters travel in checkpoints, which hold no path objects."""
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{name} is {value!r}, but must be a name or the path of a folder.")
    return text
