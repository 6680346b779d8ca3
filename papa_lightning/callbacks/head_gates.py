"""The callback that learns a gate for every head and ranks the heads."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from papa_lightning.attention import GatedHeads, TokenMixer
from papa_lightning.callbacks.calibrating import CalibratingCallback, refuse_sharding
from papa_lightning.either_lightning import L, rank_zero_info, rank_zero_warn
from papa_lightning.encoders import gate_logits, is_calibrated, swap_attention, swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.files.writing import check_output
from papa_lightning.lightning_project.encoder import discover_encoder
from papa_lightning.lightning_project.run import new_file, on_first
from papa_lightning.ranking import HeadRanking


class HeadGates(CalibratingCallback):
    """Learn a gate for every head beside whatever else a run trains, and rank the heads by their gates.

        A' = sigmoid(g) A + (1 - sigmoid(g)) C_normalised        g: (L, H), starts at 0

    Source: Hassid et al. 2022, arXiv 2211.03495. Works on any LightningModule with a supported transformers encoder,
    frozen or not, and gets the constants C as :class:`~papa_lightning.ConstantAttention` does. The gates are a
    parameter group of their own, without weight decay. The fit ends with the ranking, the lowest gate of all first.

    Args:
        learning_rate: Learning rate of the gates, scheduled in proportion. None takes that of the optimizer's first
            group, as published; at the probe's 2e-5 gates move by ten-thousandths (docs/rankings.md compares rates).
        output: Path of the ranking file; None takes ``ranking.json`` in the logger's folder, if there is one
            (``ranking.NAME.json`` for an encoder that is named). A trial run (``fast_dev_run``) writes none.
        max_length: T, the longest sequence; as in :class:`~papa_lightning.ConstantAttention`.
        constants: Path of a constants file to use instead of calibrating.
        encoder: Attribute that holds the encoder, when the module has several.
        batch_size: Sequences a batch of the calibration pass; None takes that of the train loader.
        save_constants: Write the average to ``constants.safetensors`` in the logger's folder.
        fill_unseen: Whether constants are filled; as in :class:`~papa_lightning.ConstantAttention`.
        packing: Whether the pass runs the encoder over the real tokens alone, where that is exact.

    Attributes:
        ranking: After a fit, the :class:`~papa_lightning.HeadRanking`; its scores are the gate logits g.
        ranking_path: After a fit, where it was written, or None.

    Raises:
        PapaError: For invalid arguments, and, during the fit, for gates that cannot learn.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[HeadGates(max_length=64, learning_rate=0.01)], logger=False)
    """

    def __init__(
        self,
        learning_rate: float | None = None,
        output: str | None = None,
        max_length: int | None = None,
        constants: str | None = None,
        encoder: str | None = None,
        batch_size: int | None = None,
        save_constants: bool = True,
        fill_unseen: bool | None = None,
        packing: bool = True,
    ) -> None:
        super().__init__(
            max_length,
            constants,
            encoder,
            batch_size,
            save_constants,
            learning_rate,
            fill_unseen=fill_unseen,
            packing=packing,
        )
        self.output = output
        self.ranking: HeadRanking | None = None
        self.ranking_path: str | None = None
        self._trained = False
        self._reached: bool | None = None  # by a backward pass of this fit

    def swap(self, encoder: PreTrainedModel, max_length: int) -> None:
        """Swap to kind "gated"; see :meth:`CalibratingCallback.swap`."""
        layers = swapped_layers(encoder)
        if not layers or not all(isinstance(one, GatedHeads) and one.max_length == max_length for one in layers):
            swap_attention(encoder, "gated", max_length=max_length)

    def outcome(self, encoder: PreTrainedModel) -> str:
        """Number of gates; see :meth:`CalibratingCallback.outcome`."""
        return f"{sum(gates.numel() for gates in gate_logits(encoder))} heads have a gate from now on."

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Swap the encoder; refuse strategies that would shard the gates."""
        remedy = "train gates on one device or with strategy ddp, then use the ranking file"
        refuse_sharding(trainer, "the gates with the encoder", remedy)
        self._trained = False
        if stage == "fit" and self.output is not None:
            check_output("output", self.output)
        super().setup(trainer, pl_module, stage)

    def own_parameters(self, layer: TokenMixer) -> Iterable[str]:
        """The gates; see :meth:`CalibratingCallback.own_parameters`."""
        return ("gate_logits",)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Calibrate, unless there are constants already, and refuse gates frozen after ``setup``."""
        output = self.output
        if output is not None:
            on_first(trainer, lambda: check_output("output", output))
        super().on_train_start(trainer, pl_module)
        if not all(gates.requires_grad for gates in self.gates(pl_module)):
            raise PapaError(
                "the gates were frozen after setup, so they cannot learn: freeze the encoder in __init__ of the "
                "module, before the gates join it, or leave parameters with .papa. in their name out."
            )
        self._reached = None

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note whether a loss has reached any gate: one of several may not, and some layers may be unused."""
        self._reached = self._reached or any(gates.grad is not None for gates in self.gates(pl_module))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Refuse, before the first step, a loss that reaches no gate; by hand an epoch may have several losses."""
        if pl_module.automatic_optimization:
            self._refuse_unreached()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse losses that have reached no gate in all of the epoch."""
        self._refuse_unreached()

    def _refuse_unreached(self) -> None:
        if self._reached is False:
            raise PapaError(
                "the loss has no gradient for the gates: the module runs its encoder under torch.no_grad(), or "
                "detaches what comes out. A frozen encoder needs neither: requires_grad=False of its parameters does."
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that there is something to rank: a fit may end without a step."""
        self._trained = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Rank the heads and write the ranking, by the gates that stay: averages replace them when training ends."""
        encoder = discover_encoder(pl_module, self.encoder)
        if not self._trained or not is_calibrated(encoder):
            return
        self.ranking = ranking_of_gates(encoder)
        if not any(bool(gates.any()) for gates in self.gates(pl_module)):
            rank_zero_warn(
                "no gate has moved from 0, so that the heads are ranked by layer and head: look at the learning rate "
                "of the gates at every step, which a schedule scales in proportion."
            )
        path = new_file(trainer, "ranking.json", self.encoder) if self.output is None else self.output
        if path is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self.ranking_path = path
        if trainer.is_global_zero:
            self.ranking.save(path)
        rank_zero_info(f"The ranking of the heads is in {path}.")

    def gates(self, pl_module: L.LightningModule) -> list[nn.Parameter]:
        """The gate logits of the module's encoder, one (H,) parameter a layer."""
        return gate_logits(discover_encoder(pl_module, self.encoder))


def ranking_of_gates(encoder: nn.Module) -> HeadRanking:
    """Rank the heads of an encoder of kind "gated": the lowest gate logit becomes constant first.

    Raises:
        PapaError: When it has no gates, or gates that are not finite.
    """
    gates = torch.stack([layer.detach().double().cpu() for layer in gate_logits(encoder)])
    if not bool(gates.isfinite().all()):
        raise PapaError("the gates are not finite: their learning rate is too high, or the loss is not finite.")
    return HeadRanking.from_scores(gates.tolist(), criterion="gate")
