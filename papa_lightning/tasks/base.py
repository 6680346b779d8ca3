"""Base of all tasks: a pretrained encoder with a probe."""

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from transformers import PreTrainedModel

from papa_lightning.calibration import AttentionConstants
from papa_lightning.callbacks.distillation import Distillation
from papa_lightning.callbacks.learned_constants import LearnedConstants
from papa_lightning.checks import check_choice
from papa_lightning.either_lightning import Callback
from papa_lightning.encoders import (
    HeadSelection,
    PackedSequences,
    Packer,
    Packing,
    accepted_inputs,
    check_vocabulary,
    position_limit,
    swap_as_saved,
    swap_attention,
    swapped_layers,
)
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.errors import PapaError, UnsupportedEncoderError
from papa_lightning.lightning_project.filling import constants_in_use, log_filling
from papa_lightning.ranking import HeadRanking
from papa_lightning.tasks.batch_checks import check_inputs
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
        # A way of computing, which a checkpoint must not decide for the run that loads it.
        self.packing = Packing(packing).enabled
        self.save_hyperparameters(ignore="packing")
        # On the command line Lightning saves the configured values, not those that a subclass sets by itself.
        self.hparams.update(num_labels=num_labels, max_length=max_length, metrics=metrics, label_names=label_names)
        self._check_arguments()
        self.encoder = self.configure_encoder()
        self._encoder_inputs = accepted_inputs(self.encoder)
        self._vocabulary_checked = False
        self._callbacks: list[Callback] = []
        self.probe = self.configure_probe()
        self.loss = self.configure_loss()
        metric_collection = self.configure_metrics()
        self.scores = nn.ModuleDict({stage: StageScores(stage, metric_collection) for stage in ("val", "test")})
        self._apply_regime()
        # Encoders come in evaluation mode, and Trainer.fit keeps the modes that it finds.
        self.train()

    def _check_arguments(self) -> None:
        given = self.hparams
        check_choice("preset", given["preset"], get_args(Preset))
        _ = self.regime, self.recipe  # refuse wrong arguments of theirs
        rate = given["constants_learning_rate"]
        for name, valid, wanted in (
            ("num_labels", given["num_labels"] >= 2, "at least 2"),
            ("max_length", given["max_length"] >= 1, "at least 1"),
            ("constants_learning_rate", rate is None or rate > 0, "above 0"),
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
        if given["constants"] is None and (given["heads"] != "all" or given["ranking"] is not None):
            raise PapaError(
                f"heads is {given['heads']!r} and ranking is {given['ranking']!r}, but there is no constants file "
                "that they could choose heads for: pass constants, or give both to the callback instead."
            )

    def configure_encoder(self) -> PreTrainedModel:
        """Load the encoder, freeze it if asked, and give its heads constant attention if there are constants."""
        encoder = self.make_encoder()
        positions, max_length = position_limit(encoder), self.hparams["max_length"]
        if positions is not None and max_length > positions:
            raise PapaError(
                f"max_length is {max_length}, but encoder {self.hparams['encoder']!r} has positions for {positions} "
                f"tokens (max_position_embeddings={encoder.config.max_position_embeddings}): pass max_length="
                f"{positions} or less."
            )
        if not self.learners.encoder:
            encoder.requires_grad_(False)
        if self.hparams["constants"] is not None:
            average = AttentionConstants.load(self.hparams["constants"], max_length=max_length)
            constants = constants_in_use(average, None, self.hparams["preset"])
            log_filling(constants)
            ranking = self.hparams["ranking"]
            swap_attention(
                encoder,
                "constant",
                constants=constants,
                heads=self.hparams["heads"],
                ranking=HeadRanking.load(ranking) if ranking is not None else None,
            )
        return encoder

    def make_encoder(self) -> PreTrainedModel:
        """Load the encoder, before anything is frozen or swapped."""
        return load_encoder(self.hparams["encoder"])

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

    def train(self: Task, mode: bool = True) -> Task:
        """Switch to train mode, except for a frozen encoder in the preset ``"default"``."""
        super().train(mode)
        if self._stays_in_eval_mode:
            self.encoder.train(False)
        return self

    def configure_callbacks(self) -> list[Callback]:
        """Callbacks that learn constants and distil, as far as the arguments ask for them."""
        weight, rate = self.hparams["distillation"], self.hparams["constants_learning_rate"]
        self._callbacks = [LearnedConstants(rate, encoder="encoder")] if self.learners.constants else []
        if weight > 0:
            self._callbacks.append(Distillation(weight, teacher=self.hparams["encoder"], encoder="encoder"))
        return self._callbacks

    def teardown(self, stage: str) -> None:
        """Take the callbacks of this task out of the Trainer, whose next run may be of another module."""
        callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        callbacks[:] = [one for one in callbacks if one not in self._callbacks]

    def on_fit_start(self) -> None:
        """Put a frozen encoder into train mode, so that Lightning does not warn of it."""
        # It warns just before on_train_start, and still does of modules that are in evaluation mode by mistake.
        if self._stays_in_eval_mode:
            self.encoder.train()

    def on_train_start(self) -> None:
        """Put a frozen encoder into evaluation mode again."""
        if self._stays_in_eval_mode:
            self.encoder.train(False)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Swap the encoder for a checkpoint with constants, so that it loads without the callback that made them."""
        state = checkpoint["state_dict"]
        if any(".papa." in key for key in state) and not swapped_layers(self.encoder):
            swap_as_saved(self.encoder, state, prefix="encoder.")
            self._apply_regime()

    def encoder_inputs(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Inputs of the encoder in a calibration pass: those of the batch, before the training step masks any."""
        return batch

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

    def pack(self, inputs: Mapping[str, Tensor]) -> PackedSequences | None:
        """The real tokens of the encoder's inputs; None where it is to run over these as they are."""
        # It would be compiled anew for each shape; torch.compile keeps a module under this name.
        compiled = hasattr(self.encoder, "_orig_mod") or torch.compiler.is_compiling()
        if not self.packing or self.encoder.training or compiled or self._distils:
            return None
        with suppress(UnsupportedEncoderError):
            return Packer.of(self.encoder).pack(inputs)
        return None

    def run_encoder(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The hidden states, L+1 tensors (B, T, d), of the encoder's inputs, packed or not; see :meth:`encode`."""
        with torch.set_grad_enabled(self._encoder_learns):
            output = self.encoder(**inputs, output_hidden_states=True, return_dict=True)
        hidden_states: tuple[Tensor, ...] = output.hidden_states
        return hidden_states

    @property
    def _encoder_learns(self) -> bool:
        """Whether gradients flow into the encoder; looked at anew, because gates or constants may join it later."""
        return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.encoder.parameters())

    @property
    def _distils(self) -> bool:
        """Whether a teacher runs on the arguments of the encoder, which would not hear where tokens stood."""
        callbacks = [] if self._trainer is None else self.trainer.callbacks  # type: ignore[attr-defined]
        return self._encoder_learns and any(isinstance(one, Distillation) for one in callbacks)

    def inputs_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of the encoder in a batch, checked; see :meth:`encode`."""
        check_inputs(batch, self.hparams["max_length"])
        # Reading values waits for an accelerator; the first batch is enough to find the tokenizer of another encoder.
        if not self._vocabulary_checked or batch["input_ids"].device.type == "cpu":
            check_vocabulary(batch["input_ids"], self.encoder.config.vocab_size)
            self._vocabulary_checked = True
        return {name: batch[name] for name in self._encoder_inputs if name in batch}

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Compute the logits of the probe for a batch, from the entries that `encode` reads."""
        logits: Tensor = self.probe(self.encode(batch), batch["attention_mask"])
        return logits

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        # transformers finds out which outputs a class of models can return when it constructs one. A process that got
        # the task by pickle, as under ddp_spawn, has constructed none, and would get no hidden states.
        with torch.device("meta"):
            type(self.encoder)(copy.deepcopy(self.encoder.config))

    @property
    def _stays_in_eval_mode(self) -> bool:
        return not self.learners.encoder and bool(self.hparams["preset"] == "default")
