"""Embeddings of texts: scores without a probe, and a training that keeps them near those of the original encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from papa_lightning.callbacks.distillation import Teacher
from papa_lightning.checks import as_names
from papa_lightning.embeddings import EMBEDDING_METRICS, Embedder, EmbeddingPooling, EmbeddingSettings
from papa_lightning.encoders import HeadSelection, Packing, swapped_layers
from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.tasks.encoding import EncodingTask
from papa_lightning.tasks.recipe import Schedule
from papa_lightning.tasks.recovery import RecoverySettings, embedding_loss

Stage = Literal["val", "test"]
#: Split of the data module that a stage evaluates.
_SPLITS: Mapping[Stage, str] = {"val": "validation", "test": "test"}


class RowEmbeddings(Metric):
    """Embeddings of numbered rows over all batches and processes."""

    full_state_update = False
    rows: list[Tensor]
    vectors: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("vectors", default=[], dist_reduce_fx="cat")

    def update(self, rows: Tensor, vectors: Tensor) -> None:
        """Add embeddings (B, d) and the numbers of their rows (B,)."""
        self.rows.append(rows)
        self.vectors.append(vectors.float())

    def compute(self) -> tuple[Tensor, Tensor]:
        """The numbers (N,) of all rows in ascending order, each once, and the embeddings (N, d)."""
        rows, vectors = dim_zero_cat(self.rows), dim_zero_cat(self.vectors)
        order = rows.argsort(stable=True)  # a sampler of several processes repeats rows
        first = torch.cat([torch.ones_like(order[:1]), rows[order].diff()]) != 0
        return rows[order][first], vectors[order][first]


@dataclass(frozen=True)
class _Recovery(RecoverySettings):
    """Settings of a recovery whose messages name arguments of the task."""

    prefix: ClassVar[str] = ""


class SimilarityTask(EncodingTask):
    """Embeddings of texts, judged without a probe by what the data module knows of the texts.

    A batch is a mapping of `input_ids`, `attention_mask` and, for encoders that tell segments apart, `token_type_ids`,
    each (B, T); `example_id` (B,), the numbers of the rows. There is nothing to fit: ``validate`` and ``test`` log
    every metric of the data module's `judgements` when all of its texts are embedded, such as ``val/spearman``. A
    prediction has `embeddings` (B, d).

    A fit is a recovery: the encoder, whose heads a callback or `constants` has made constant, learns to give the
    embeddings of the original encoder on the training texts, by
    :func:`~papa_lightning.tasks.recovery.embedding_loss`; its token embeddings rest, and it stays in evaluation mode,
    without dropout.

    Args:
        encoder: Name of the encoder on the hub, or a folder written by ``save_pretrained`` or by sentence-transformers.
        max_length: T, the largest number of tokens of a text.
        metrics: Names of the metrics, those of the data module; the first one gives `score_name`.
        pooling: The vector of a text: ``"mean"`` over its tokens, ``"class_token"`` or ``"last_token"``. None: as the
            sentence-transformers files of the folder say, or the mean.
        normalize: Whether embeddings have the length 1; None: as these files say, or True.
        constants: File of attention constants for `max_length`; the `heads` use them from the start, without any
            callback. They are filled, see :meth:`AttentionConstants.filled <papa_lightning.AttentionConstants.filled>`.
        heads: With `constants`: ``"all"``, a list of (layer, head), a map from layer to heads, or a share or a number
            of heads, which wants a `ranking`.
        ranking: File of a head ranking.
        learning_rate: Learning rate of AdamW, after the warm-up.
        weight_decay: Weight decay of AdamW.
        schedule: Learning rate after the warm-up: constant, or falling to 0 along a line or half a cosine.
        warmup_share: Share of all optimizer steps over which the learning rate rises from 0.
        gram_weight: Weight of the differences of similarities within a batch in the loss.
        learn_constants: Whether the constants learn too; they stay distributions.
        constants_learning_rate: Learning rate of constants that learn; None takes `learning_rate`.
        packing: Whether the encoder runs over the real tokens alone, where that gives the same embeddings.

    Raises:
        PapaError: If an argument is out of its range, the encoder or a file cannot be loaded, or the files of the
            folder name a pooling that is not known.

    Example:
        >>> import torch
        >>> from tempfile import TemporaryDirectory
        >>> from transformers import BertConfig, BertModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        >>> with TemporaryDirectory() as folder:
        ...     BertModel(BertConfig(vocab_size=30, **sizes)).save_pretrained(folder)
        ...     task = SimilarityTask(folder, max_length=8)
        >>> batch = {"input_ids": torch.ones(3, 8, dtype=torch.long), "attention_mask": torch.ones(3, 8)}
        >>> task(batch).shape, task.score_name
        (torch.Size([3, 16]), 'val/spearman')
    """

    def __init__(
        self,
        encoder: str,
        max_length: int = 64,
        metrics: Sequence[str] = ("spearman", "pearson"),
        pooling: EmbeddingPooling | None = None,
        normalize: bool | None = None,
        constants: str | None = None,
        heads: HeadSelection = "all",
        ranking: str | None = None,
        learning_rate: float = RecoverySettings.learning_rate,
        weight_decay: float = RecoverySettings.weight_decay,
        schedule: Schedule = RecoverySettings.schedule,
        warmup_share: float = RecoverySettings.warmup_share,
        gram_weight: float = RecoverySettings.gram_weight,
        learn_constants: bool = False,
        constants_learning_rate: float | None = None,
        packing: bool = True,
    ) -> None:
        super().__init__()
        # On the command line Lightning saves the configured values, not those that data decide on, and the labels that
        # other tasks take from data.
        self.save_hyperparameters(ignore=["packing", "num_labels", "label_names"])
        self.hparams.update(max_length=max_length, metrics=metrics)
        for name in as_names("metrics", metrics, fewest=1):
            if name not in EMBEDDING_METRICS:
                end = did_you_mean(name, EMBEDDING_METRICS) or "."
                raise PapaError(
                    f"metrics has {name!r}, but embeddings have {', '.join(EMBEDDING_METRICS)}: leave metrics out, and "
                    f"the data module names them{end}"
                )
        _ = self.recipe  # refuse wrong arguments of it
        self.check_encoder_arguments()
        self.embedding = EmbeddingSettings(pooling, normalize).of(encoder)
        self.set_up_encoder(packing)
        self.choose_parameters()
        self.embedded = nn.ModuleDict({stage: RowEmbeddings() for stage in _SPLITS})
        self._teacher: Teacher | None = None
        self.train()

    @property
    def trains_encoder(self) -> bool:
        """The encoder learns in a fit."""
        return True

    @property
    def trains_constants(self) -> bool:
        """Whether `learn_constants` is set."""
        return bool(self.hparams["learn_constants"])

    @property
    def learning_argument(self) -> str:
        """The argument that lets constants learn."""
        return f"learn_constants is {self.trains_constants}"

    @property
    def stays_in_eval_mode(self) -> bool:
        """The encoder gives the embeddings of the original, which dropout would change."""
        return True

    def choose_parameters(self) -> None:
        """Let the token embeddings rest, which are most of a small encoder; see `EncodingTask.choose_parameters`."""
        self.encoder.get_input_embeddings().requires_grad_(False)
        super().choose_parameters()

    @property
    def recipe(self) -> RecoverySettings:
        """Settings of a recovery; epochs and batches are those of Trainer and data module."""
        names = ("learning_rate", "weight_decay", "schedule", "warmup_share", "gram_weight", "learn_constants")
        return _Recovery(**{name: self.hparams[name] for name in names})

    @property
    def score_name(self) -> str:
        """The logged name of the first metric, for ``ModelCheckpoint(monitor=..., mode="max")``."""
        return f"val/{self.hparams['metrics'][0]}"

    @property
    def embedder(self) -> Embedder:
        """Embeddings by the encoder, with the attention that it has at this moment."""
        return self._embedder_of(self.encoder)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Embed a batch: (B, d)."""
        return self.embedder.embed(self.inputs_of(batch))

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        """Compute and log the distance of the embeddings of a batch from those of the original encoder, a scalar."""
        if not swapped_layers(self.encoder):
            raise PapaError(
                "the encoder has no constant heads, so there is nothing to recover: add the callback "
                "ConstantAttention, or pass constants; for scores alone, test or validate instead of fit."
            )
        teacher = self._original()
        with torch.no_grad():
            wanted = self._embedder_of(teacher.encoder).embed(self.inputs_of(batch))
        loss = embedding_loss(self(batch), wanted, self.hparams["gram_weight"])
        self.log("train/loss", loss, prog_bar=True, batch_size=len(wanted))
        return loss

    def on_validation_start(self) -> None:
        """Forget what a validation that failed has embedded."""
        self._embedded("val").reset()

    def on_test_start(self) -> None:
        """Forget what a test that failed has embedded."""
        self._embedded("test").reset()

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Embed a batch, for the scores at the end."""
        self._embed("val", batch)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        """Embed a batch, for the scores at the end."""
        self._embed("test", batch)

    def predict_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Embed a batch: its `example_id` (B,), and `embeddings` (B, d)."""
        return {"example_id": _rows(batch), "embeddings": self(batch)}

    def on_validation_epoch_end(self) -> None:
        """Log the scores."""
        self._judge("val")

    def on_test_epoch_end(self) -> None:
        """Log the scores."""
        self._judge("test")

    def teardown(self, stage: str) -> None:
        """Let go of the original encoder; see `EncodingTask.teardown`."""
        super().teardown(stage)
        self._teacher = None

    def _embedder_of(self, encoder: nn.Module) -> Embedder:
        return Embedder(encoder, self.embedding.pooling or "mean", bool(self.embedding.normalize), Packing(self.packs))

    def _original(self) -> Teacher:
        """The original encoder, loaded at the first training step: other runs that begin like a fit need none."""
        if self._teacher is None:
            self._teacher = Teacher(self.make_encoder())
            self._teacher.move_to(self.encoder, self.device)
        return self._teacher

    def _embed(self, stage: Stage, batch: Mapping[str, Tensor]) -> None:
        self._embedded(stage).update(_rows(batch), self(batch))

    def _embedded(self, stage: Stage) -> RowEmbeddings:
        return cast(RowEmbeddings, self.embedded[stage])

    def _judge(self, stage: Stage) -> None:
        """Log every metric by name; a trial run embeds too few texts for one."""
        rows, vectors = self._embedded(stage).compute()
        self._embedded(stage).reset()
        if self.trainer.sanity_checking or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "judgements"):
            raise PapaError(
                f"the data of {_SPLITS[stage]} have no judgements, by which embeddings could be scored: run the task "
                "with a SimilarityDataModule or RetrievalDataModule, or predict."
            )
        judgements = datamodule.judgements(_SPLITS[stage])
        if len(rows) < judgements.num_texts:
            raise PapaError(
                f"{len(rows)} of {judgements.num_texts} texts were embedded, but their scores need all: leave "
                f"limit_{stage}_batches out, and pass max_eval_examples to the data module for fewer."
            )
        scores = judgements.answers(vectors).scores()
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, sync_dist=True)


def _rows(batch: Mapping[str, Any]) -> Tensor:
    """The numbers of the rows of a batch."""
    if "example_id" not in batch:
        raise PapaError(
            f"a batch has no example_id, only {', '.join(map(str, batch))}, so that embeddings could not be put in "
            "order: let the data module number its rows."
        )
    rows: Tensor = batch["example_id"]
    return rows
