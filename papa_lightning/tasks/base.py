"""Base of all tasks: a pretrained encoder with a probe."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from papa_lightning.callbacks.distillation import Distillation
from papa_lightning.checks import check_choice
from papa_lightning.either_lightning import Callback
from papa_lightning.encoders import (
    HeadSelection,
    Packing,
)
from papa_lightning.errors import PapaError
from papa_lightning.tasks.evaluation import EvaluatedTask
from papa_lightning.tasks.recipe import Recipe, Schedule
from papa_lightning.tasks.regimes import LearningTask, Regime
from papa_lightning.tasks.scores import LabelledCrossEntropy, StageScores

Task = TypeVar("Task", bound="EncoderTask")
Preset = Literal["default", "reference"]


class EncoderTask(LearningTask, EvaluatedTask):
    """A pretrained encoder, frozen or not, with a probe that learns a task from its hidden states.

    A subclass implements `configure_probe`, `configure_metrics`, `score` and `predict`. Every part is built from
    primitive arguments, so that a task can be written in YAML and rebuilt from a checkpoint.

    The defaults are those of the published code for a sentence task with a base-size encoder (Hassid et al. 2022, arXiv
    2211.03495); it trains 15 epochs with a batch size of 16, which Trainer and datamodule set.

    The argument `regime` selects the parameters that learn:

    ========================= ======= ========= =================================================
    regime                    probe   encoder   constants of its heads
    ========================= ======= ========= =================================================
    ``"probe"``               learns  frozen    frozen
    ``"fine_tune"``           learns  learns    frozen
    ``"fine_tune_constants"`` learns  learns    learn
    ``"probe_constants"``     learns  frozen    learn
    ``"constants"``           frozen  frozen    learn; start from a trained probe's checkpoint
    ========================= ======= ========= =================================================

    Constants that learn stay distributions: the task adds :class:`~papa_lightning.LearnedConstants` to the Trainer.

    Args:
        encoder: Name of the encoder on the hub, or a folder written by ``save_pretrained``.
        num_labels: The number of classes.
        max_length: T, the number of tokens to which sequences are padded.
        metrics: Names of the metrics; the first one gives `score_name`.
        freeze_encoder: Without a `regime`: True means ``"probe"``, False ``"fine_tune"``.
        preset: Mode of a frozen encoder while the probe trains. ``"default"``: evaluation mode, so that its features
            are the same in every epoch. ``"reference"``: train mode with dropout, like the published code. Callbacks
            fill constants in the preset ``"default"`` only.
        learning_rate: Learning rate of AdamW, after the warm-up.
        weight_decay: Weight decay of AdamW.
        schedule: Learning rate after the warm-up: constant, or falling to 0 along a line or half a cosine.
        warmup_share: Share of all optimizer steps over which the learning rate rises from 0.
        dropout: Dropout of the probe.
        constants: File of attention constants for `max_length`; the `heads` use them from the start, without any
            callback. In the preset ``"default"`` they are filled, see :meth:`AttentionConstants.filled
            <papa_lightning.AttentionConstants.filled>`.
        heads: With `constants`: ``"all"``, a list of (layer, head), a map from layer to heads, or a share or a number
            of heads, which wants a `ranking`.
        ranking: File of a head ranking.
        regime: Selection of what learns; None leaves it to `freeze_encoder`.
        constants_learning_rate: Learning rate of constants that learn, whose entries are of the order 1/T; None takes
            `learning_rate`.
        label_names: Names of the classes by number, for predictions and entities.
        distillation: Weight in the loss of the mean squared error between the hidden states of the encoder, whose
            attention a callback has swapped, and those of the original; above 0 the task adds
            :class:`~papa_lightning.Distillation` to the Trainer.
        packing: Whether an encoder in evaluation mode runs over the real tokens alone, where that gives the same hidden
            states.

    Attributes:
        encoder: The encoder.
        probe: The probe.
        loss: The loss.

    Raises:
        PapaError: If an argument is out of its range, or the encoder or a file cannot be loaded.
    """

    def __init__(
        self,
        encoder: str,
        num_labels: int,
        max_length: int = 64,
        metrics: Sequence[str] = ("accuracy",),
        freeze_encoder: bool = True,
        preset: Preset = "default",
        learning_rate: float = Recipe.learning_rate,
        weight_decay: float = Recipe.weight_decay,
        schedule: Schedule = Recipe.schedule,
        warmup_share: float = Recipe.warmup_share,
        dropout: float = Recipe.dropout,
        constants: str | None = None,
        heads: HeadSelection = "all",
        ranking: str | None = None,
        regime: Regime | None = None,
        constants_learning_rate: float | None = None,
        label_names: Sequence[str] | None = None,
        distillation: float = 0.0,
        packing: bool = True,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="packing")
        # On the command line Lightning saves the configured values, not those that a subclass sets by itself.
        self.hparams.update(num_labels=num_labels, max_length=max_length, metrics=metrics, label_names=label_names)
        self._check_arguments()
        self.set_up_encoder(packing)
        self.probe = self.configure_probe()
        self.loss = self.configure_loss()
        metric_collection = self.configure_metrics()
        self.scores = nn.ModuleDict({stage: StageScores(stage, metric_collection) for stage in ("val", "test")})
        self.choose_parameters()
        # Encoders come in evaluation mode, and Trainer.fit keeps the modes that it finds.
        self.train()

    def _check_arguments(self) -> None:
        given = self.hparams
        check_choice("preset", given["preset"], get_args(Preset))
        _ = self.regime, self.recipe  # refuse wrong arguments of theirs
        for name, valid, wanted in (
            ("num_labels", given["num_labels"] >= 2, "at least 2"),
            ("distillation", given["distillation"] >= 0, "at least 0"),
        ):
            if not valid:
                raise PapaError(f"{name} is {given[name]!r}: pass a value that is {wanted}.")
        if given["distillation"] > 0 and given["encoder"] is None:
            raise PapaError(
                f"distillation is {given['distillation']}, but encoder is None, so there is no original to stay near: "
                "pass an encoder, or distillation=0."
            )
        names = given["label_names"]
        if names is not None and (isinstance(names, str) or len(names) != given["num_labels"]):
            raise PapaError(
                f"label_names is {names!r}, but num_labels is {given['num_labels']}: pass one name for each class, or "
                "None."
            )
        self.check_encoder_arguments()

    @property
    def probe_sizes(self) -> dict[str, Any]:
        """Arguments that all probes take: d, C and dropout."""
        given = {name: self.hparams[name] for name in ("num_labels", "dropout")}
        return {"hidden_size": self.encoder.config.hidden_size, **given}

    @property
    def num_levels(self) -> int:
        """L+1, the number of hidden states of the encoder: the embeddings and every layer."""
        return int(self.encoder.config.num_hidden_layers) + 1

    @abstractmethod
    def configure_probe(self) -> nn.Module:
        """Build the probe, called with hidden states, L+1 of (B, T, d), and mask (B, T); `encoder` exists by then."""

    def configure_loss(self) -> nn.Module:
        """Build the loss, a module that takes the logits (..., C) and the labels (...)."""
        return LabelledCrossEntropy()

    @abstractmethod
    def configure_metrics(self) -> MetricCollection:
        """Build the metrics named by the argument `metrics`; validation and test get copies of them."""

    @property
    def label_names(self) -> Sequence[str] | None:
        """Names of the classes by number, or None."""
        return cast("Sequence[str] | None", self.hparams["label_names"])

    @property
    def score_name(self) -> str:
        """The logged name of the first metric, for ``ModelCheckpoint(monitor=..., mode="max")``."""
        return f"val/{self.hparams['metrics'][0]}"

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks that learn constants and distil, as far as the arguments ask for them."""
        callbacks, weight = super().configure_callbacks(), self.hparams["distillation"]
        if weight > 0:
            callbacks.append(Distillation(weight, teacher=self.hparams["encoder"], encoder="encoder"))
        return callbacks

    def encode(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Run the encoder.

        Args:
            batch: `input_ids`, `attention_mask` and, for encoders that tell segments apart, `token_type_ids`, (B, T).

        Returns:
            The hidden states: L+1 tensors (B, T, d), the embeddings first. Those of padding mean nothing, and are 0
            where the batch was packed.

        Raises:
            PapaError: If the batch lacks an input, or has sequences too long or tokens that the encoder does not know.
        """
        inputs = self.inputs_of(batch)
        packed = self.pack(inputs)
        if packed is None:
            return self.run_encoder(inputs)
        # A criterion that follows gradients through the encoder, or a callback, counts on one run a batch.
        whole = torch.arange(len(packed.counts), device=packed.counts.device)
        groups = [whole] if self._encoder_learns else packed.groups(Packing().tokens(self.device))
        levels: list[Tensor] = []
        for group in groups:
            part = packed.batch(group)
            with part.prepared(self.device) as arguments:
                states = self.run_encoder(arguments)
            levels = levels or [level.new_zeros(*batch["input_ids"].shape, level.shape[-1]) for level in states]
            for own, level in zip(states, levels, strict=True):
                part.put(own, level)
        return tuple(levels)

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits of the probe for a batch, from the entries that `encode` reads."""
        logits: Tensor = self.probe(self.encode(batch), batch["attention_mask"])
        return logits
