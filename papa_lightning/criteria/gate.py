"""Criterion "gate": gate logits of the heads after training."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from papa_lightning.callbacks import CalibratingCallback, HeadGates
from papa_lightning.checks import whole
from papa_lightning.criteria.base import CRITERIA, HeadCriterion, RankingInputs
from papa_lightning.either_lightning import L, isolate_rng
from papa_lightning.encoders import find_encoder, gate_logits, swap_attention
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.encoder import Origin, note_origin

#: Gates move by hundredths in an epoch, visibly and far from saturation; measured in docs/rankings.md.
GATE_LEARNING_RATE = 1e-2


@CRITERIA.register("gate")
class LearnedGates(HeadCriterion):
    """Gate logits after training, ``A' = sigmoid(g) A + (1 - sigmoid(g)) C'``; see :class:`~papa_lightning.HeadGates`.

        score[l,h] = g[l,h]

    Source: Hassid et al. 2022, arXiv 2211.03495. A copy of the task is trained over the batches, in their order and
    in train mode; it shares the frozen parameters with the task, which stays as it is.

    Args:
        max_epochs: Number of passes over the batches.
        learning_rate: Learning rate of the gates; other parameters have that of the task.
        seed: Seed of dropout.

    Cost: one forward and one backward pass an epoch.
    """

    formula = "g after training, A' = sigmoid(g) A + (1 - sigmoid(g)) C'"
    source = "Hassid et al. 2022, arXiv 2211.03495"
    needs = frozenset({"constants", "batches", "task"})
    passes = 2.7
    needs_probe = True
    ordered = True

    def __init__(self, max_epochs: int = 1, learning_rate: float = GATE_LEARNING_RATE, seed: int = 0) -> None:
        whole(1)("max_epochs", max_epochs)
        self.max_epochs, self.learning_rate, self.seed = max_epochs, learning_rate, seed
        self.passes = self.passes * max_epochs

    def measure(self, inputs: RankingInputs) -> Tensor:
        """See :meth:`HeadCriterion.measure`; a task with another encoder is refused."""
        assert inputs.constants is not None
        assert inputs.task is not None
        assert inputs.batches is not None
        if find_encoder(inputs.task.encoder) is not find_encoder(inputs.encoder):
            raise PapaError(
                "task has another encoder than the one to rank: pass RankingInputs(encoder=task.encoder, ...)."
            )
        memo: dict[int, Any] = {id(one): one for one in inputs.task.parameters() if not one.requires_grad}
        if inputs.task._trainer is not None:
            memo[id(inputs.task._trainer)] = None
        task, device = copy.deepcopy(inputs.task, memo).train(), find_encoder(inputs.encoder).device
        swap_attention(task.encoder, "gated", constants=inputs.constants)
        note_origin(find_encoder(task.encoder), Origin("", "the averages that the criterion was given"))
        trainer = L.Trainer(
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            max_epochs=self.max_epochs,
            limit_val_batches=0,
            callbacks=[HeadGates(self.learning_rate, max_length=inputs.constants.max_length, save_constants=False)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            with isolate_rng():
                torch.manual_seed(self.seed)
                trainer.fit(task, _Batches(inputs.batches), val_dataloaders=[])
        finally:
            task.to(device)  # the Trainer leaves a module in main memory, and with it what it shares
        return torch.stack([gates.detach() for gates in gate_logits(task.encoder)])


class _Batches:
    """Batches for a Trainer, which takes a list for several data loaders."""

    def __init__(self, batches: Iterable[Mapping[str, Any]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.batches)

    def __len__(self) -> int:
        """Number of batches, over which the learning rate is scheduled; a TypeError where it is not known."""
        return len(self.batches)  # type: ignore[arg-type]


def gates_for(output: str, constants: str | None, configured: Sequence[CalibratingCallback]) -> HeadGates:
    """The callback that ranks by gates, from the callbacks that a run has configured.

    Args:
        output: Path of the ranking.
        constants: Path of a constants file; None keeps what is configured.
        configured: Callbacks of the run: a HeadGates is used as it is, another one gives encoder and calibration.
    """
    own = next((one for one in configured if isinstance(one, HeadGates)), None)
    if own is None:
        own = HeadGates(GATE_LEARNING_RATE, save_constants=False)
        for one in configured[:1]:
            own.max_length, own.encoder, own.batch_size = one.max_length, one.encoder, one.batch_size
            own.fill_unseen = one.fill_unseen
    own.output, own.constants = output, constants or own.constants
    return own
