"""Recovery: a swapped encoder is trained to give the embeddings of the original again."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from papa_lightning.attention.functional import accumulation_dtype
from papa_lightning.tasks.recipe import Optimization, Schedule


@dataclass(frozen=True)
class RecoverySettings(Optimization):
    """Training of an encoder with constant heads to the embeddings of the original.

    Args:
        max_epochs: Passes over the sentences.
        batch_size: Sentences of a step.
        gram_weight: Weight of the differences of similarities in the loss, see :func:`embedding_loss`.
        learn_constants: Whether the constants learn too. They stay distributions.
        seed: Seed of the order of the batches.

    Raises:
        PapaError: If one is out of its range.

    Example:
        >>> RecoverySettings(gram_weight=-1.0)
        Traceback (most recent call last):
        ...
        papa_lightning.errors.PapaError: recovery.gram_weight is -1.0: pass a value that is at least 0.
    """

    learning_rate: float = 1e-4
    schedule: Schedule = "linear"
    warmup_share: float = 0.1
    max_epochs: int = 3
    batch_size: int = 64
    gram_weight: float = 1.0
    learn_constants: bool = False
    seed: int = 0

    prefix: ClassVar[str] = "recovery."

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("max_epochs", self.max_epochs >= 1, "at least 1")
        self._check("batch_size", self.batch_size >= 1, "at least 1")
        self._check("gram_weight", self.gram_weight >= 0, "at least 0")
        self._check("seed", 0 <= self.seed < 2**32, "a whole number from 0 to 2**32 - 1")


def embedding_loss(student: Tensor, teacher: Tensor, gram_weight: float = RecoverySettings.gram_weight) -> Tensor:
    r"""Distance of the embeddings of a batch from those of the original, by direction and by similarities.

    .. math:: \frac1B \sum_b (1 - s_b^\top t_b) + \frac{w}{B^2} \sum_{b,c} (s_b^\top s_c - t_b^\top t_c)^2

    for embeddings s and t divided by their norms: the first term keeps each embedding near that of the original, the
    second the similarities of the sentences with each other, which is what embeddings are used for.

    Args:
        student: Embeddings (B, d), with gradients.
        teacher: Embeddings (B, d) of the original.
        gram_weight: w.

    Returns:
        A tensor of one value, at least float32.

    Example:
        >>> import torch
        >>> embedding_loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 1.0)
        tensor(1.)
    """
    dtype = accumulation_dtype(student.dtype)
    own, other = F.normalize(student.to(dtype), dim=1), F.normalize(teacher.to(dtype), dim=1)
    loss = (1 - (own * other).sum(dim=1)).mean()
    if gram_weight > 0:
        loss = loss + gram_weight * (own @ own.T - other @ other.T).square().mean()
    return loss
