"""The workbench: one encoder and one task of a study, loaded."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from datasets import Dataset
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from papa_lightning.attention import ZeroMassRecord
from papa_lightning.calibration import AttentionConstants
from papa_lightning.configuration import account
from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.embedding.texts import EmbeddingDataModule
from papa_lightning.datamodules.rows.layouts import cut_padding
from papa_lightning.datamodules.tokens import TokenDataModule
from papa_lightning.embeddings import Embedder, Judgements
from papa_lightning.encoders import encoder_shape
from papa_lightning.encoders.loading import check_plain
from papa_lightning.errors import PapaError, explanation
from papa_lightning.runtime import computing_versions, find_device
from papa_lightning.study.features.rows import SplitRows
from papa_lightning.study.settings import StudySettings
from papa_lightning.study.store import digest, encoder_identity, rows_digest
from papa_lightning.study.timing import Stopwatch
from papa_lightning.tasks import SequenceClassificationTask, SimilarityTask, TokenClassificationTask
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.encoding import EncodingTask
from papa_lightning.tasks.metrics import chance_level

#: Settings of the probe that the task shares: the criterion "gate" trains a copy of the task.
_TRAINED_BY = ("learning_rate", "weight_decay", "schedule", "warmup_share", "dropout")


#: Rows that are read at once.
_READ = 1024


class RowBatches:
    """Batches (B, T) of tokenised rows in order, read without a sample of each row; every iteration begins anew."""

    def __init__(self, rows: Dataset, size: int) -> None:
        self._rows, self._size = rows.with_format("torch"), size

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self._rows) // self._size)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        """The batches."""
        return (self._rows[start : start + self._size] for start in range(0, len(self._rows), self._size))


class Bench:
    """An encoder with the probe of a task, and its tokenised rows; the first evaluation set is named "".

    Attributes:
        judgements: What embeddings of the evaluation rows are judged by; None for a task with a probe.
        units: Numbers of the pairs or queries of each evaluation set; None for all of them in the first.
        zero_mass: The watch of all its swaps.
        watch: Seconds of the work with it.
    """

    def __init__(self, settings: StudySettings, encoder: str, task: str, watch: Stopwatch | None = None) -> None:
        self.settings, self.encoder, self.name = settings.for_task(task), encoder, task
        self.watch = watch or Stopwatch()
        self._others: dict[str, tuple[str, int]] = {}
        self._looked_through: dict[int, tuple[Dataset, SplitRows]] = {}
        self._constants: tuple[Hashable, AttentionConstants] | None = None
        self.zero_mass = ZeroMassRecord()
        with self.watch.part("loading"):
            self._load(str(settings.encoders[encoder]), self.settings, task)

    def _load(self, folder: str, settings: StudySettings, task: str) -> None:
        check_plain(folder)
        self.data = make_data(task, settings.tasks[task], folder)
        self.data.setup("fit")
        self.task: EncodingTask = make_task(self.data, folder, settings).to(find_device(settings.device)).eval()
        self.train: Dataset = self.data.train_dataloader().dataset
        loaders: Any = self.data.val_dataloader()
        several = loaders if isinstance(loaders, list) else [loaders]
        names = ["", *self.data.validation_names[1:]]
        self.evaluations: dict[str, Dataset] = {name: one.dataset for name, one in zip(names, several, strict=False)}
        self.judgements: Judgements | None = None
        if isinstance(self.data, EmbeddingDataModule):
            self.judgements = self.data.judgements("validation")
        self.units: dict[str, Tensor] | None = None

    @property
    def seeds(self) -> Sequence[int]:
        """Seeds of the probes; embeddings, which have none, take the first."""
        return self.settings.seeds if self.judgements is None else self.settings.seeds[:1]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics; the first one is the score."""
        return self.data.metrics if self.judgements is None else self.judgements.metrics

    @cached_property
    def embedder(self) -> Embedder:
        """The embeddings by the encoder in its present state."""
        assert isinstance(self.task, SimilarityTask)
        return self.task.embedder

    @property
    def probed(self) -> EncoderTask:
        """The task, where it has a probe."""
        assert isinstance(self.task, EncoderTask)
        return self.task

    @cached_property
    def original(self) -> Tensor:
        """The embeddings (N, d) of the training texts with all heads dynamic, on the CPU."""
        with self.watch.part("encoder"):
            return self.embedder.embed_rows(self.batches())

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the numbers of this encoder on this task depend on."""
        return self._identity | ({} if self.judgements is None else self._judged_by)

    @property
    def _judged_by(self) -> dict[str, Any]:
        """What only the numbers of embeddings depend on."""
        units = None if self.units is None else {name: one.tolist() for name, one in self.units.items()}
        embedding = {"pooling": self.embedder.pooling, "normalize": self.embedder.normalize}
        return {"judgements": self.data.fingerprint(), "units": units, "embedding": embedding}

    @property
    def _identity(self) -> dict[str, Any]:
        return {
            "encoder": encoder_identity(self.task.encoder),
            "train": rows_digest(self.train),
            "evaluations": {name: rows_digest(rows) for name, rows in self.evaluations.items()},
            "max_length": self.data.max_length,
            "task": type(self.task).__name__,
            "labels": list(self.data.label_names),
            "metrics": list(self.metrics),
            "computed": {
                "batch_size": self.settings.calibration_batch_size,
                **self.settings.packs.noted(self.task.device),
                "device": self.task.device.type,
                "versions": computing_versions(),
            },
        }

    @property
    def seen(self) -> str:
        """Hash of everything that a calibration depends on."""
        return digest([self.identity[name] for name in ("encoder", "train", "max_length", "computed")])

    def of_task(self, task: str) -> Bench:
        """The same encoder with another task of the study; it is loaded again."""
        return Bench(self.settings, self.encoder, task, self.watch)

    def other(self, task: str) -> tuple[str, int]:
        """Hash of all that a calibration on another task of the study depends on, and the `max_length` of that task."""
        if task not in self._others:
            bench = self.of_task(task)
            self._others[task] = bench.seen, bench.data.max_length
        return self._others[task]

    def looked_through(self, rows: Dataset) -> SplitRows:
        """Rows of a split as features read them, looked through once for all choices of heads."""
        if id(rows) not in self._looked_through:
            self._looked_through[id(rows)] = rows, SplitRows(self.probed, rows)
        return self._looked_through[id(rows)][1]

    def constants(self, key: Hashable, make: Callable[[], AttentionConstants]) -> AttentionConstants:
        """Constants by their key, made where the last ones had another: several choices of heads use the same."""
        if self._constants is None or self._constants[0] != key:
            self._constants = key, make()
        return self._constants[1]

    def random_rows(self, number: int | None = None) -> Dataset:
        """Some training rows in random order, of which the first ones are the same for every number; None for all."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return self.train.select(order[:number].tolist())

    def batches(self, rows: Dataset | None = None) -> Iterable[Mapping[str, Tensor]]:
        """Batches of training rows in order, as calibration takes them; all rows by default."""
        rows = self.train if rows is None else rows
        first = self.task.inputs_of(next(iter(RowBatches(rows, 1))))
        if self.task.pack(first) is not None:  # then calibration makes batches of its own of what is read at once
            return RowBatches(rows, _READ)
        # Padding at the end can be cut without a change of the numbers.
        collate = cut_padding if self.data.layout == "plain" else default_collate
        return DataLoader(rows, batch_size=self.settings.calibration_batch_size, collate_fn=collate)

    def padded_batches(self, rows: Dataset | None = None) -> Iterable[Mapping[str, Tensor]]:
        """Batches of rows in order with all padding, as the probes of sentences take them."""
        return DataLoader(self.train if rows is None else rows, batch_size=self.settings.calibration_batch_size)

    def describe(self) -> dict[str, Any]:
        """Sizes of data and encoder, and settings of the data, for a report."""
        layers, heads = encoder_shape(self.task.encoder)
        own = self.settings.tasks[self.name].get("probe")
        return {
            **self._sizes(),
            **({"probe": dict(own)} if own else {}),
            "max_length": self.data.max_length,
            "layout": self.data.layout,
            "preset": self.data.preset,
            "data": self.data.description,
            "metric": self.metrics[0],
            "layers": layers,
            "heads": heads,
            "hidden_size": self.task.encoder.config.hidden_size,
        }

    def _sizes(self) -> dict[str, Any]:
        """Sizes of the data, and the score of a constant answer, which for embeddings only their answers know."""
        if self.judgements is None:
            rows = {name or "validation": len(rows) for name, rows in self.evaluations.items()}
            chance = chance_level(self.metrics[0], self.evaluations[""][:]["labels"], self.data.num_labels)
            return {"train_examples": len(self.train), "validation_examples": rows, "chance": chance}
        texts, embedder = len(self.evaluations[""]), self.embedder
        return {
            "calibration_texts": len(self.train),
            f"validation_{self.judgements.kind}": len(self.judgements),
            "validation_texts": texts,
            "embedding": embedder.pooling + (", normalized" if embedder.normalize else ""),
        }


def make_data(name: str, settings: Mapping[str, Any], encoder: str) -> TaskDataModule:
    """The data module of a task with the tokenizer of an encoder."""
    given = {
        "class_path": settings["class_path"],
        "init_args": {**(settings.get("init_args") or {}), "tokenizer": encoder},
    }
    data: TaskDataModule = build(TaskDataModule, f"tasks.{name}", given)
    if data.preset != "default":
        raise PapaError(
            f"tasks has {name!r} with preset={data.preset!r}, whose frozen encoder trains with dropout, but a study "
            'stores hidden states of an encoder in evaluation mode: pass preset="default", or use papa fit.'
        )
    return data


def build(base: type, argument: str, given: Mapping[str, Any]) -> Any:
    """The object that ``class_path`` and ``init_args`` describe; `argument` names them in messages."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "settings", required=True)
    try:
        return parser.instantiate(parser.parse_object({"settings": dict(given)})).settings
    except Exception as error:
        explained = explanation(error)
        if explained is not None:
            raise explained from error
        raise PapaError(account(str(error), argument)) from error


def make_task(data: TaskDataModule, encoder: str, settings: StudySettings) -> EncodingTask:
    """The task of a data module; the encoder of one with a probe is frozen."""
    if isinstance(data, EmbeddingDataModule):
        embedding = asdict(settings.embedding)
        return SimilarityTask(encoder=encoder, max_length=data.max_length, packing=settings.packing, **embedding)
    arguments: dict[str, Any] = {
        "encoder": encoder,
        "num_labels": data.num_labels,
        "max_length": data.max_length,
        "metrics": list(data.metrics),
        "label_names": list(data.label_names),
        "packing": settings.packing,
        **{name: getattr(settings.probe, name) for name in _TRAINED_BY},
    }
    if isinstance(data, TokenDataModule):
        return TokenClassificationTask(**arguments)
    return SequenceClassificationTask(**arguments, pooling=settings.pooling)
