"""Base of the data modules of tasks: from files or the hub to batches of rows of one length."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from datasets import Dataset, List, Value
from torch.utils.data import DataLoader, default_collate
from transformers import PreTrainedTokenizerBase

from papa_lightning.checks import as_text, check_choice, check_processes, maybe, whole
from papa_lightning.datamodules.parts import ROLES, Role, batch_loader
from papa_lightning.datamodules.reading.files import find_split_files, load_hub, missing_split, read_split
from papa_lightning.datamodules.reading.formats import READERS
from papa_lightning.datamodules.rows.checks import class_names, is_labelled, named
from papa_lightning.datamodules.rows.layouts import Layout, Padding, Preset, check_padding, cut_padding
from papa_lightning.datamodules.rows.reports import COUNTERS, report_labels, report_missing_splits, report_truncation
from papa_lightning.datamodules.rows.stored import data_fingerprint, encode_rows
from papa_lightning.datamodules.rows.tokenizing import load_tokenizer
from papa_lightning.either_lightning import LightningDataModule
from papa_lightning.errors import DataError

Loader = DataLoader[dict[str, torch.Tensor]]


class TaskDataModule(LightningDataModule, ABC):
    """Base of the data modules of tasks; derive from `TextDataModule` or `TokenDataModule`.

    Batches are mappings of int64 tensors, B = `batch_size`, T = `max_length`:
    `input_ids` (B, T), `attention_mask` (B, T), `token_type_ids` (B, T) if the tokenizer makes them, `labels` if the
    split has them, `example_id` (B,): the row's `idx` or `id` if that is a whole number, else its place in the split,
    from 0. With padding="longest" T is the longest row of the batch.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        data_dir: Folder with one file per split (`train`, `validation`, `test`; .jsonl, .json, .csv, .tsv or
            .parquet). None: the data set of the hub.
        max_length: Number of slots T of every row.
        batch_size: Rows per training batch.
        eval_batch_size: Rows per batch of validation, test and prediction. None: `batch_size`.
        layout: "segment": segments and separators on fixed slots. "plain": padding at the end.
        preset: "reference" repeats the published code, "default" departs from it where that is better.
        num_workers: Number of processes that load batches, per dataloader. 0: only the main one.
        max_train_examples: Number of training rows, from the start of the split. None: all.
        max_eval_examples: Number of rows of each other split. None: all.
        revision: Revision of the data set on the hub. None: the one that is known to work.
        tokenizer_revision: Revision of the tokenizer on the hub.
        padding: "max_length": all rows have T slots. "longest": as many as the longest row of the batch, only with
            layout="plain".
        num_proc: Number of processes that tokenise. None: the main one.

    Raises:
        PapaError: An argument is out of range. `prepare_data` and `setup` raise a DataError for data or tokenizers
            that are missing, unreadable or not what the task expects.
    """

    task_name: str
    """Short name of the task, for metadata and messages."""
    hub_path: str | None = None
    """Name of the data set on the hub. None: only local files."""
    hub_config: str | None = None
    """Configuration of the data set on the hub."""
    hub_revision: str | None = None
    """Default of `revision`."""
    hub_remedy: str = "pass data_dir, a folder of local files"
    """Alternative to the hub, for messages."""
    split_names: Mapping[str, str] = {"train": "train", "validation": "validation", "test": "test"}
    """Name of every split, on the hub and as the stem of a file."""
    role_splits: Mapping[str, tuple[str, ...]] = {"train": ("train",), "validation": ("validation",), "test": ("test",)}
    """Keys of `split_names` by role; only the first of a role must exist."""
    validation_names: tuple[str, ...] = ()
    """Names of the validation and test dataloaders, in order, where there are several."""
    suffixes: tuple[str, ...] = tuple(READERS)
    """Suffixes of readable files."""
    label_column: str = "label"
    """Column of the label or labels."""
    label_names: tuple[str, ...]
    """Names of the labels, by number."""
    optional_columns: tuple[str, ...] = ()
    """Columns that `encode` reads too where the rows have them."""
    skip_labels: tuple[str, ...] = ()
    """Labels, as text, whose rows are left out: "-" in SNLI, where annotators disagreed."""
    metrics: tuple[str, ...] = ("accuracy",)
    """Names of the task's metrics; the first one is the score."""

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
        padding: Padding = "max_length",
        num_proc: int | None = None,
    ) -> None:
        super().__init__()
        tokenizer = as_text("tokenizer", tokenizer)
        data_dir = None if data_dir is None else as_text("data_dir", data_dir)
        # Not logged: the Trainer refuses names that model and data share with different values, such as `preset`.
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
        self.revision = self.hub_revision if revision is None else revision
        self.tokenizer_revision = tokenizer_revision
        self.padding: Padding = padding
        self.num_proc = num_proc
        self._check_arguments()
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._rows: dict[str, Dataset] = {}
        self._splits: dict[Role, tuple[str, ...]] = {}

    @property
    def num_labels(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @property
    def fewest_slots(self) -> int:
        """Smallest number of slots that leaves one for the text: CLS x | SEP, where "reference" gives it half."""
        return 4

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at the first use."""
        if self._tokenizer is None:
            self._tokenizer = self.load_tokenizer()
        return self._tokenizer

    @property
    def folder(self) -> Path | None:
        """Folder of the splits, None for the hub."""
        return None if self.data_dir is None else Path(self.data_dir).expanduser()

    @property
    def source(self) -> str:
        """Source of the data, without paths: metadata travel with constants files."""
        if self.folder is not None:
            return f"data_dir {self.folder.resolve().name}"
        names = ", ".join(name for name in (self.hub_path, self.hub_config) if name)
        return f"hub {names}" + (f", revision {self.revision}" if self.revision else "")

    @property
    def description(self) -> str:
        """Short description of the training data, for metadata: `sst2 train (hub nyu-mll/glue, sst2)`."""
        limit = "" if self.max_train_examples is None else f", first {self.max_train_examples} examples"
        return f"{self.task_name} {self.split_names['train']} ({self.source}{limit})"

    def fingerprint(self) -> str:
        """Identity of the data by content, not arguments: 64 hexadecimal digits, of files or of the rows of the hub."""
        return data_fingerprint(self)

    @abstractmethod
    def needed_columns(self, labelled: bool) -> list[str]:
        """Names of the columns that `encode` reads."""

    @abstractmethod
    def encode(self, columns: Mapping[str, Sequence[Any]], rows: Sequence[int], where: str) -> dict[str, list[Any]]:
        """Check n rows and turn them into columns of numbers.

        Args:
            columns: The columns of the data set, n values each.
            rows: Number of each row in its split, from 0.
            where: Source of the rows, for messages.

        Returns:
            The columns of `features`, with `labels` only if there is a column of labels.

        Raises:
            DataError: A value is missing or not what the task expects.
        """

    def features(self, labelled: bool) -> dict[str, Any]:
        """Types in which the columns of `encode` are stored; batches hold int64."""
        row = List(Value("int32"), length=self.max_length)
        types = {"input_ids": row, "attention_mask": row, "truncated": Value("bool"), "example_id": Value("int64")}
        if "token_type_ids" in self.tokenizer.model_input_names:
            types["token_type_ids"] = row
        return types | ({"labels": Value("int64")} if labelled else {})

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer and check that it can make rows of the layout."""
        return load_tokenizer(self.tokenizer_name, self.tokenizer_revision, self.max_length, self.layout)

    def load_split(self, split: str) -> Dataset | None:
        """Load the rows of one split as they are.

        Args:
            split: Key of the split in `split_names`.

        Returns:
            The rows, or None if the data set has no such split.

        Raises:
            DataError: They cannot be read.
        """
        if self.folder is not None:
            file = self.split_file(split)
            return None if file is None else self.read_file(file)
        if self.hub_path is None:
            raise DataError(f"data_dir is None, but {self.task_name} is on no hub: pass a folder of local files.")
        return load_hub(self.hub_path, self.hub_config, self.revision, self.hub_remedy).get(self.split_names[split])

    def rows_of(self, split: str) -> Dataset:
        """Rows of a split that must exist, up to the limit, as `encode` reads them."""
        rows = self.load_split(split)
        if rows is None:
            name = self.split_names[split]
            if self.folder is not None:
                raise missing_split(self.folder, name, self.suffixes)
            raise DataError(f"{self.source} has no split {name!r}: pass another revision, or data_dir.")
        if len(rows) == 0:
            raise DataError(f"{self._where(split)} holds no rows: it needs at least one.")
        limit = self.max_train_examples if split == "train" else self.max_eval_examples
        return rows if limit is None or limit >= len(rows) else rows.select(range(limit))

    def split_file(self, split: str) -> Path | None:
        """Path of the file of a split in `data_dir`, None if there is none."""
        assert self.folder is not None
        name = self.split_names[split]
        return find_split_files(self.folder, [name], self.suffixes).get(name)

    def read_file(self, path: Path) -> Dataset:
        """Read the file of one split."""
        return read_split(path)

    def prepare_data(self) -> None:
        """Download and tokenise once per machine, into the cache that `setup` reads. Keeps no state."""
        stage = None if self.trainer is None or self.trainer.state.fn is None else self.trainer.state.fn.value
        for split in dict.fromkeys(split for splits in self._resolve(stage).values() for split in splits):
            self._tokenized(split)

    def setup(self, stage: str | None = None) -> None:
        """Load the rows of a stage ("fit", "validate", "test", "predict", or None for all) that are not loaded yet."""
        roles = self._resolve(stage)
        for role, used in roles.items():
            if role not in self._splits:
                self.report_role(role, used)
        splits = dict.fromkeys(split for splits in roles.values() for split in splits)
        new = {split: self._tokenized(split) for split in splits if not self._is_ready(split)}
        self._rows.update(new)
        self._splits.update(roles)
        self.report({self._file(split): rows for split, rows in new.items()})
        if "train" in roles and not new.keys().isdisjoint([*roles["train"], *roles["validation"]]):
            train, others = ({self._file(split): self._rows[split] for split in roles[r]} for r in ROLES["fit"])
            if all("labels" in rows.column_names for rows in [*train.values(), *others.values()]):
                report_labels(self.task_name, train, others, self.label_names, self.label_column)

    def report_role(self, role: Role, used: Sequence[str]) -> None:
        """Warn of a role whose splits, by their keys, are others than its own, or fewer."""
        report_missing_splits(f"{self.task_name} ({self.source})", role, self.role_splits, self.split_names, used)

    def report(self, splits: Mapping[str, Dataset]) -> None:
        """Warn once of the losses in new splits: tokenised rows by name of their file."""
        setting = f"max_length={self.max_length} in layout={self.layout!r}, preset={self.preset!r}"
        report_truncation(self.task_name, splits, setting)

    def train_dataloader(self) -> Loader:
        """Dataloader of the training split, shuffled."""
        return self._loaders("train")[0]

    def val_dataloader(self) -> Loader | list[Loader]:
        """Dataloader of the validation split, or a list in the order of `validation_names`."""
        return self._one_or_all("validation")

    def test_dataloader(self) -> Loader | list[Loader]:
        """Dataloaders of the test split, or of the validation split if no test split has labels."""
        return self._one_or_all("test")

    def predict_dataloader(self) -> Loader | list[Loader]:
        """Dataloaders of the test split, or of the validation split if there is none; labels may be missing."""
        return self._one_or_all("predict")

    def _check_arguments(self) -> None:
        """Refuse arguments that are out of range."""
        whole(self.fewest_slots)("max_length", self.max_length)
        for name in ("batch_size", "eval_batch_size"):
            whole(1)(name, getattr(self, name))
        for name in ("max_train_examples", "max_eval_examples"):
            maybe(whole(1))(name, getattr(self, name))
        check_processes("num_workers", self.num_workers, 0)
        if self.num_proc is not None:
            check_processes("num_proc", self.num_proc, 1)
        for name, choices in (("layout", Layout), ("preset", Preset), ("padding", Padding)):
            check_choice(name, getattr(self, name), get_args(choices))
        check_padding(self.padding, self.layout)

    def _resolve(self, stage: str | None) -> dict[Role, tuple[str, ...]]:
        """Splits of every role of a stage."""
        check_choice("stage", stage, tuple(ROLES))
        return {role: self._splits_of(role) for role in ROLES[stage]}

    def _splits_of(self, role: Role) -> tuple[str, ...]:
        """Splits of a role; without a (labelled) test split, those of validation."""
        if role in ("test", "predict"):
            tests = {split: rows for split in self.role_splits["test"] if (rows := self.load_split(split)) is not None}
            if tests and (role == "predict" or all(map(self.is_labelled, tests.values()))):
                return tuple(tests)
            role = "validation"
        first, *others = self.role_splits[role]
        return (first, *(split for split in others if self.load_split(split) is not None))

    def is_labelled(self, rows: Dataset) -> bool:
        """Whether rows have labels; a test split may have none, or hidden ones."""
        return self.label_column in rows.column_names and self.has_labels(
            named(rows[self.label_column], class_names(rows.features[self.label_column], self.label_names))
        )

    def needs_labels(self, split: str) -> bool:
        """Whether a split must have labels: not for testing or predicting, or if module or callback has it as False."""
        return split not in self.role_splits["test"] and not self._predicts and self._reads_labels

    @property
    def _predicts(self) -> bool:
        return self.trainer is not None and self.trainer.state.fn == "predict"

    @property
    def _reads_labels(self) -> bool:
        runs = [] if self.trainer is None else [self.trainer.lightning_module, *getattr(self.trainer, "callbacks", ())]
        return all(getattr(one, "needs_labels", True) for one in runs)

    def has_labels(self, values: Sequence[Any]) -> bool:
        """Whether the values of the label column hold any label."""
        return is_labelled(values, self.label_names)

    def _tokenized(self, split: str) -> Dataset:
        """Load, check and tokenise a split, with the cache of the datasets library."""
        rows = self.rows_of(split)
        labelled = self.needs_labels(split) or (self._reads_labels and self.is_labelled(rows))
        try:
            return encode_rows(self, rows, labelled, self._where(split))
        except DataError:
            if not (labelled and self._predicts):
                raise
            return encode_rows(self, rows, False, self._where(split))  # predict despite missing or wrong labels

    def _is_ready(self, split: str) -> bool:
        """Whether a split is tokenised, with labels if they are needed now."""
        if split not in self._rows or "labels" in self._rows[split].column_names or not self._reads_labels:
            return split in self._rows
        return not self.needs_labels(split) and not self.is_labelled(self.rows_of(split))

    def _where(self, split: str) -> str:
        """Source of a split, for messages about its rows."""
        if self.folder is None:
            return f"{self.source}, split {self.split_names[split]!r}"
        return repr(str(self.split_file(split)))

    def _file(self, split: str) -> str:
        """Short name of a split: of its file, or on the hub."""
        file = None if self.folder is None else self.split_file(split)
        return self.split_names[split] if file is None else file.name

    def _one_or_all(self, role: Role) -> Loader | list[Loader]:
        """The dataloader of a role, or all where there may be several."""
        loaders = self._loaders(role)
        return loaders if self.validation_names else loaders[0]

    def _loaders(self, role: Role) -> list[Loader]:
        """The dataloaders of a role."""
        if role not in self._splits:
            raise DataError(f"the {role} data are not set up: call setup() of the data module first.")
        left_out = set(COUNTERS) - ({"num_words"} if role == "predict" else set())
        splits = [self._rows[split] for split in self._splits[role]]
        kept = [[name for name in rows.column_names if name not in left_out] for rows in splits]
        formatted = [rows.with_format("torch", columns=own) for rows, own in zip(splits, kept, strict=True)]
        collate = cut_padding if self.padding == "longest" else default_collate
        return [batch_loader(self, rows, role == "train", collate_fn=collate) for rows in formatted]
