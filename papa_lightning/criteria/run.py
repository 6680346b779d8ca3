"""The run behind ``papa rank``: rank the heads of a task's encoder over its train data, and write the ranking."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from textwrap import shorten
from typing import Any

from papa_lightning.calibration import AttentionConstants, eval_mode
from papa_lightning.callbacks import CalibratingCallback, calibrate_in, discover_encoder
from papa_lightning.criteria.base import RankingInputs, criterion_from, rank_heads
from papa_lightning.criteria.embedding import check_for_embeddings, embedding_inputs
from papa_lightning.either_lightning import Callback, L, rank_zero_info
from papa_lightning.embeddings import Embedder
from papa_lightning.encoders import Packing, restore_attention
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.sequences import CalibrationBatches
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.checkpoints import read_checkpoint
from papa_lightning.tasks.similarity import SimilarityTask
from papa_lightning.text import Blocks, Table


class RankingRun(Callback):
    """Rank the heads by a criterion, write the file, and end ``fit``: before it trains, or where it would have ended.

    Args:
        criterion: Text of the criterion.
        output: Path of the ranking.
        calibration: Callback that names the encoder, its max_length and the calibration data.
        constants: Path of a constants file; None calibrates, where the criterion needs constants.
        train_first: Whether to rank after the training, for a criterion that needs a trained probe.
    """

    def __init__(
        self, criterion: str, output: str, calibration: CalibratingCallback, constants: str | None, train_first: bool
    ) -> None:
        self.criterion, self.needs = criterion, criterion_from(criterion).needs
        self.output, self.calibration, self.train_first = output, calibration, train_first
        self.constants = None if constants is None else AttentionConstants.load(constants)
        #: The ranking, after :meth:`rank`.
        self.ranking: HeadRanking | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rank, unless the probe is trained first."""
        if not self.train_first:
            self.rank(trainer, pl_module)
            trainer.should_stop = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rank by the probe that was trained."""
        if self.train_first:
            self.rank(trainer, pl_module)

    def rank(self, trainer: L.Trainer, pl_module: L.LightningModule) -> HeadRanking:
        """Rank with the train data of a Trainer, and write the file, except in a fast_dev_run."""
        encoder = discover_encoder(pl_module, self.calibration.encoder)
        batches = self.calibration.calibration_batches(trainer, pl_module)
        constants, packing = self.constants, self.calibration.packing_in(pl_module)
        if constants is None and "constants" in self.needs:
            length = self.calibration.length(trainer, encoder, None)
            constants = calibrate_in(trainer, encoder, batches, length, packing)
        if constants is not None:  # criteria compare with what will be swapped in
            constants = self.calibration.in_use(trainer, pl_module, constants)
        if isinstance(batches, CalibrationBatches):
            if isinstance(pl_module, EncoderTask) and criterion_from(self.criterion).ordered:
                batches = batches.in_random_order()
            batches = batches if batches.read else batches.recorded()
        if isinstance(pl_module, (EncoderTask, SimilarityTask)):
            inputs = replace(task_inputs(pl_module, constants, batches), packing=packing)
        else:
            embed = Embedder(encoder, packing=packing).embed
            inputs = RankingInputs(encoder, constants, batches, packing=packing, embed=embed)
        with eval_mode(pl_module), trainer.precision_plugin.forward_context():
            self.ranking = rank_heads(self.criterion, inputs)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_info(f"fast_dev_run is a trial of one or a few batches: nothing was written to {self.output}.")
            return self.ranking
        self.ranking.save(self.output)
        rank_zero_info(f"The ranking of the heads is in {self.output}.")
        return self.ranking


def task_inputs(
    task: EncoderTask | SimilarityTask, constants: AttentionConstants | None, batches: Iterable[Mapping[str, Any]]
) -> RankingInputs:
    """Inputs of criteria from a task, with batches that have labels if it has a probe; it should be in evaluation mode.

    The embeddings of a task with a probe are the means of the last hidden states over real tokens.
    """
    if isinstance(task, SimilarityTask):
        return embedding_inputs(task.encoder, constants, batches, task.embedder.embed)
    embed = Embedder(task.encoder, packing=Packing(task.packing)).embed
    return RankingInputs(task.encoder, constants, batches, lambda batch: task.score(batch, 0).loss, task, embed=embed)


def trains_first(criterion: str, module: L.LightningModule, ckpt_path: str | None) -> bool:
    """Whether a module is trained before its heads are ranked; PapaError for a criterion that it cannot have."""
    if isinstance(module, SimilarityTask):
        check_for_embeddings(criterion)
        return False
    return "loss" in criterion_from(criterion).needs and ckpt_path is None


def load_trained(module: L.LightningModule, ckpt_path: str, encoder: str | None = None) -> None:
    """Load the parameters of a checkpoint, and restore the dynamic attention of the encoder.

    Args:
        module: Module with the configuration of the checkpoint.
        ckpt_path: A checkpoint of Lightning.
        encoder: Attribute that holds the encoder, when the module has several.

    Raises:
        PapaError: When the file is no checkpoint of this module.
    """
    checkpoint = read_checkpoint(ckpt_path)
    try:
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except PapaError:
        raise
    except Exception as error:  # modules raise all sorts of errors for keys of others
        raise PapaError(
            f"ckpt_path is {ckpt_path!r}, which is not a checkpoint of this {type(module).__name__} "
            f"({shorten(str(error), 200, placeholder=' …')}): pass one that `papa fit` wrote with the same "
            "configuration."
        ) from error
    restore_attention(discover_encoder(module, encoder))


def list_ranking(ranking: HeadRanking, path: str, count: int = 5, layer: int | None = None) -> Blocks:
    """A ranking for the terminal: the heads at both ends and the place of every head, or the heads of one layer.

    Args:
        ranking: The ranking.
        path: Path of its file.
        count: Number of heads of each end.
        layer: Layer whose heads are listed instead, the one that matters most first.

    Raises:
        PapaError: When the ranking has no such layer.

    Example:
        >>> ranking = HeadRanking([(0, 1), (1, 0), (0, 0)], [0.25, 1.5, 3.0], "output")
        >>> print(list_ranking(ranking, "ranking.json", count=1))
        criterion  output, 3 heads
        ranking    ranking.json
        table      ranking.csv
        <BLANKLINE>
        constant  layer  head  score
        first         0     1   0.25
        last          0     0      3
        <BLANKLINE>
        place of each head: 1 becomes constant first, 3 matters most
        layer  head 0  1
        0           3  1
        1           2  -
        >>> print(list_ranking(ranking, "ranking.json", layer=0).parts[1])
        heads of layer 0, the one that matters most first
        head  score  place of 3
        0         3           3
        1      0.25           1
    """
    named = (f"criterion  {ranking.criterion}, {len(ranking.heads)} heads", f"ranking    {path}")
    head = "\n".join([*named, f"table      {table_path(path)}"])
    if layer is None:
        return Blocks([head, _both_ends(ranking, count), _places(ranking)])
    check_layer(layer, max((layer for layer, _ in ranking.heads), default=-1) + 1)
    own = ranking.table().loc[layer].sort_values("place", ascending=False)
    rows = [(str(number), f"{one['score']:.4g}", f"{one['place']:.0f}") for number, one in own.iterrows()]
    title = f"heads of layer {layer}, the one that matters most first"
    return Blocks([head, Table(("head", "score", f"place of {len(ranking.heads)}"), rows, title=title)])


def table_path(path: str) -> Path:
    """Path of the table that `papa rank` writes beside a ranking."""
    return Path(path).with_suffix(".csv")


def check_layer(layer: int, layers: int) -> None:
    """Refuse a layer that an encoder does not have."""
    if not 0 <= layer < layers:
        raise PapaError(f"layer is {layer}, but the encoder has the layers 0 to {layers - 1}.")


def _both_ends(ranking: HeadRanking, count: int) -> Table:
    """The heads that become constant first and last."""
    scores = ranking.scores or [float("nan")] * len(ranking.heads)
    pairs = zip(ranking.heads, scores, strict=True)
    rows = [("", str(layer), str(head), f"{score:.4g}") for (layer, head), score in pairs]
    count = min(count, len(rows) // 2)
    shown = [*rows[:count], *rows[len(rows) - count :]]
    for place, word in ((0, "first"), (-1, "last")) if shown else ():
        shown[place] = (word, *shown[place][1:])
    return Table(("constant", "layer", "head", "score"), shown)


def _places(ranking: HeadRanking) -> Table:
    """The place of every head: a row for each layer, a column for each head."""
    places = ranking.table()["place"].unstack()
    rows = [(str(layer), *("-" if one != one else f"{one:.0f}" for one in row)) for layer, row in places.iterrows()]
    columns = ["layer", *map(str, places.columns)]
    columns[1] = f"head {columns[1]}"
    title = f"place of each head: 1 becomes constant first, {len(ranking.heads)} matters most"
    return Table(columns, rows, title=title)
