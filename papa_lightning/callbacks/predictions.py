"""The callback that writes the predictions of a data set to one file."""

import io
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from datasets import Dataset
from torch import Tensor

from papa_lightning.either_lightning import BasePredictionWriter, L, rank_zero_info
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import check_output, new_part, open_part, refusing, remove_left, write_atomically
from papa_lightning.lightning_project.run import run_folder

_FORMATS = (".jsonl", ".parquet")
_NONE = -100


class PredictionWriter(BasePredictionWriter):
    """Write the predictions of `Trainer.predict`: one row for each example, in the order of the data set.

    Columns: ``example_id``, and ``label`` and ``probabilities`` of the classes, or for a label a token ``labels`` and
    ``probabilities`` with an entry for each word, null where it has no token within `max_length`, or for each predicted
    token where batches tell no words. Labels are names where the module has `label_names`, else numbers. Of embeddings
    it is ``example_id`` and ``embedding``.

    Each process writes a part beside the output, in a folder that all machines must see, and the first one joins them.
    Several data loaders have a file each, ``predictions-matched.jsonl``, named by the datamodule's `validation_names`
    if it has as many, else numbered from 0. Data without places, which can only be iterated or come in ready batches,
    have a row for each prediction, in turns over the processes. A trial run (``fast_dev_run``) writes nothing.

    Args:
        output: A ``.jsonl`` or ``.parquet`` file. None: ``predictions.jsonl`` in the logger's or the working folder.

    Attributes:
        paths: The files that were written.

    Raises:
        PapaError: For another kind of file. While predicting: when a prediction is no mapping with ``example_id``,
            ``labels`` and ``probabilities``, or ``embeddings``, as the tasks of papa_lightning give it.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[PredictionWriter("predictions.parquet")], logger=False)
    """

    def __init__(self, output: str | None = None) -> None:
        super().__init__(write_interval="batch")
        if output is not None and Path(output).suffix not in _FORMATS:
            raise PapaError(f"output is {output!r}, but must be a file that ends with {' or '.join(_FORMATS)}.")
        self.output = output
        self.paths: list[str] = []
        self._targets: list[Path] = []
        self._token = ""
        self._part: BinaryIO | None = None
        self._rows: dict[int, int] = {}  # written by this process, by loader

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse outputs that cannot be written, and open this process's part; a trial run writes nothing."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = run_folder(trainer)  # on every process
        target = Path(self.output).expanduser() if self.output is not None else (folder or Path()) / "predictions.jsonl"
        self._targets = _targets(trainer, target)
        for one in self._targets:
            check_output("output", one)
        remove_left(target.parent)
        self._token = trainer.strategy.broadcast(secrets.token_hex(6))
        with refusing("output", target):
            self._part = open_part(self._part_path(trainer.global_rank))
        self._rows = {}

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Add the rows of a batch to this process's part."""
        if self._part is None:
            return
        loaders: Any = trainer.predict_loop._combined_loader
        batching = getattr(loaders.flattened[dataloader_idx], "batch_sampler", None)
        begun = self._rows.get(dataloader_idx, 0)
        rows = prediction_rows(prediction, getattr(pl_module, "label_names", None))
        for number, row in enumerate(rows):
            if batch_indices and hasattr(batching, "seen_batch_indices"):  # else Lightning's are of another loader
                place = (batch_indices[number], 0)
            elif batching is None:  # batches come ready, and processes take turns
                place = (batch_idx * trainer.world_size + trainer.global_rank, number)
            else:
                place = ((begun + number) * trainer.world_size + trainer.global_rank, 0)
            line = "\t".join(map(str, (dataloader_idx, *place, json.dumps(row, ensure_ascii=False)))) + "\n"
            with refusing("output", self._targets[0]):
                self._part.write(line.encode())
            self._rows[dataloader_idx] = begun + number + 1

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the parts together."""
        if self._part is None:
            rank_zero_info("fast_dev_run is a trial of one or a few batches: no predictions were written.")
            return
        with refusing("output", self._targets[0]):
            self._part.flush()  # still locked, so that it is not taken for one left by a killed run
        trainer.strategy.barrier("papa: parts of predictions are written")
        self.paths = [str(target) for target in self._targets]
        if trainer.is_global_zero:
            self._merge([self._part_path(rank) for rank in range(trainer.world_size)])
        trainer.strategy.barrier("papa: predictions are written")
        self._remove_part()
        rank_zero_info(f"Predictions are in {', '.join(self.paths)}.")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Remove this process's part: the output is complete or as it was before."""
        self._remove_part()

    def _merge(self, parts: Sequence[Path]) -> None:
        lines: list[dict[tuple[int, int], str]] = [{} for _ in self._targets]
        for part in parts:
            with open(part, encoding="utf-8") as file:
                for line in file:
                    loader, place, within, row = line.split("\t", 3)
                    lines[int(loader)][int(place), int(within)] = row  # a custom sampler may repeat an example
        for target, rows in zip(self._targets, lines, strict=True):
            ordered, content = [rows[place] for place in sorted(rows)], io.BytesIO()
            if target.suffix == ".parquet":
                Dataset.from_list([json.loads(line) for line in ordered]).to_parquet(content)
            else:
                content.write("".join(ordered).encode())
            write_atomically(target, content.getvalue())

    def _part_path(self, rank: int) -> Path:
        return new_part(self._targets[0].parent, self._token, rank)

    def _remove_part(self) -> None:
        if self._part is not None:
            Path(self._part.name).unlink(missing_ok=True)
            with suppress(OSError):  # the disk may be full
                self._part.close()
            self._part = None


def _targets(trainer: L.Trainer, target: Path) -> list[Path]:
    """The file of each data loader."""
    loaders = trainer.predict_dataloaders
    count = len(loaders) if isinstance(loaders, (list, tuple, Mapping)) else 1
    if count <= 1:
        return [target]
    names = getattr(getattr(trainer, "datamodule", None), "validation_names", ())
    return [target.with_stem(f"{target.stem}-{one}") for one in (names if len(names) == count else range(count))]


def prediction_rows(prediction: Any, label_names: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """One row of Python values for each example of a prediction, with an entry for each word if it tells the words."""
    if isinstance(prediction, Mapping) and isinstance(prediction.get("embeddings"), Tensor):
        yield from _embedding_rows(prediction)
        return
    wanted = ("example_id", "labels", "probabilities")
    if not isinstance(prediction, Mapping) or not all(isinstance(prediction.get(name), Tensor) for name in wanted):
        found = ", ".join(map(str, prediction)) if isinstance(prediction, Mapping) else type(prediction).__name__
        raise PapaError(
            f"predict_step returned {found}, but PredictionWriter writes mappings with the tensors "
            f"{', '.join(wanted)}: return one, as the tasks of papa_lightning do."
        )

    def name(label: int) -> str | int:
        return label_names[label] if label_names is not None and label < len(label_names) else label

    ids, labels, probabilities = (prediction[column].cpu() for column in wanted)
    places = _word_places(prediction)
    for row, (example, label, probability) in enumerate(zip(ids.tolist(), labels, probabilities, strict=True)):
        if not bool(probability[label != _NONE].isfinite().all()):
            raise PapaError(
                f"the prediction of example_id {example} has probabilities that are not finite: look at the weights of "
                "the module, or predict in 32-bit precision."
            )
        if label.dim() == 0:
            yield {"example_id": example, "label": name(int(label)), "probabilities": probability.tolist()}
            continue
        chosen = (label != _NONE).nonzero().flatten().tolist() if places is None else places[row]
        yield {
            "example_id": example,
            "labels": [None if slot is None else name(int(label[slot])) for slot in chosen],
            "probabilities": [None if slot is None else probability[slot].tolist() for slot in chosen],
        }


def _embedding_rows(prediction: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One row for each embedding (B, d) of a prediction."""
    ids, vectors = prediction["example_id"].cpu(), prediction["embeddings"].float().cpu()
    for example, vector in zip(ids.tolist(), vectors, strict=True):
        if not bool(vector.isfinite().all()):
            raise PapaError(
                f"the embedding of example_id {example} is not finite: look at the weights of the module, or predict "
                "in 32-bit precision."
            )
        yield {"example_id": example, "embedding": vector.tolist()}


def _word_places(prediction: Mapping[str, Tensor]) -> list[list[int | None]] | None:
    """Slot of every word of every example, None for a word without one; None if the words are unknown."""
    if "word_ids" not in prediction or "num_words" not in prediction:
        return None
    found: list[list[int | None]] = [[None] * count for count in prediction["num_words"].tolist()]
    for places, words in zip(found, prediction["word_ids"].tolist(), strict=True):
        for slot, word in enumerate(words):
            if word != _NONE:
                places[word] = slot
    return found
