"""Recovery: a swapped encoder is trained to give the embeddings of the original again."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from papa_lightning.attention.functional import accumulation_dtype
from papa_lightning.attention.zero_mass import first_zero_of_diagonal
from papa_lightning.calibration.batches import checked_inputs
from papa_lightning.callbacks.learned_constants import (
    drop_unknown_gradients,
    learning_mixers,
    project_constants,
    train_constants,
)
from papa_lightning.embeddings import Embedder, EmbeddingPooling
from papa_lightning.encoders import Packing, dynamic_attention_of, find_encoder, is_calibrated, swapped_layers
from papa_lightning.errors import PapaError
from papa_lightning.lightning_project.optimizers import forget_groups
from papa_lightning.progress import Progress
from papa_lightning.tasks.recipe import Optimization, Schedule

#: Steps whose sentences are sorted by length together: batches of similar length, in an order that is still random.
_SORTED = 16


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

    learning_rate: float = 3e-4
    schedule: Schedule = "linear"
    warmup_share: float = 0.1
    max_epochs: int = 3
    batch_size: int = 32
    gram_weight: float = 10.0
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
        >>> embedding_loss(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]]), 1.0)
        tensor(1.)
    """
    dtype = accumulation_dtype(student.dtype)
    own, other = F.normalize(student.to(dtype), dim=1), F.normalize(teacher.to(dtype), dim=1)
    loss = (1 - (own * other).sum(dim=1)).mean()
    if gram_weight > 0:
        loss = loss + gram_weight * (own @ own.T - other @ other.T).square().mean()
    return loss


def distil(
    encoder: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    teacher: Tensor | None = None,
    pooling: EmbeddingPooling = "mean",
    settings: RecoverySettings | None = None,
    packing: Packing | None = None,
    progress: bool = False,
) -> None:
    """Train an encoder with constant heads, in place, to give the embeddings of the original again.

    All parameters of the encoder learn that require a gradient, except its token embeddings; see
    :func:`embedding_loss`. It learns in evaluation mode, without dropout, and is left in it. No labels are needed, and
    the same seed gives the same weights. :func:`~papa_lightning.restore_attention` does not bring the original weights
    back.

    Args:
        encoder: The encoder, swapped, with its constants.
        batches: Sentences: mappings with input_ids and attention_mask (B, t), as for :func:`~papa_lightning.calibrate`.
        teacher: Embeddings (N, d) of all sentences, in their order; None takes those that the encoder gives at the
            beginning with all heads dynamic, which are the original's where nothing was trained before.
        pooling: Vector of a sentence, see :func:`~papa_lightning.embeddings.pool`.
        settings: Settings of the training; None for the defaults.
        packing: Settings of packing; None for the defaults.
        progress: Whether to show a progress bar.

    Raises:
        PapaError: For an encoder that is not swapped or in which nothing learns, no sentences, a teacher of another
            shape, and a loss that is not finite.

    Example:
        >>> from papa_lightning import calibrate, swap_attention
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> encoder = BertModel(config, add_pooling_layer=False)
        >>> tokens = torch.arange(48).view(8, 6)
        >>> batches = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}]
        >>> constants = calibrate(encoder, batches, max_length=6)
        >>> distil(swap_attention(encoder, "constant", constants=constants), batches)
    """
    settings, embedder = settings or RecoverySettings(), Embedder(encoder, pooling, packing=packing)
    if not is_calibrated(encoder):
        raise PapaError(
            "the encoder has no constant heads, so there is nothing to recover: call swap_attention(encoder, "
            '"constant", constants=...) before distil.'
        )
    base = find_encoder(encoder)
    base.train(False)
    sentences = _Sentences.read(base, batches)
    if teacher is None:
        with dynamic_attention_of(base):
            teacher = embedder.embed_rows(map(sentences.batch, torch.split(torch.arange(len(sentences)), 256)))
    elif teacher.dim() != 2 or len(teacher) != len(sentences):
        raise PapaError(
            f"teacher is of shape {tuple(teacher.shape)}, but batches have {len(sentences)} sentences: pass one "
            "embedding for each, (N, d)."
        )
    with _learning(base, settings.learn_constants):
        _train(embedder, sentences, teacher, settings, progress)


@dataclass(frozen=True, eq=False)
class _Sentences:
    """Inputs (N, T) of an encoder by name, on the CPU, and the number of columns (N,) that each sentence needs."""

    inputs: Mapping[str, Tensor]
    columns: Tensor

    def __len__(self) -> int:
        return len(self.columns)

    @classmethod
    def read(cls, encoder: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> "_Sentences":
        """The sentences of batches, checked."""
        length = min(mixer.max_length for mixer in swapped_layers(encoder))
        read = [checked_inputs(encoder, batch, number, length)[0] for number, batch in enumerate(batches)]
        names = set.intersection(*(set(one) for one in read)) if read else set()
        if read and "input_ids" not in names:
            raise PapaError("batches has no input_ids: pass what a tokenizer makes of the sentences.")
        longest = max((one["attention_mask"].shape[1] for one in read), default=0)
        inputs = {
            name: torch.cat([F.pad(one[name].cpu(), (0, longest - one[name].shape[1])) for one in read])
            for name in sorted(names)
        }
        if not read or not bool((mask := inputs["attention_mask"] != 0).any(dim=1).all()):
            raise PapaError("batches has no sentence, or one without a real token: pass batches of texts.")
        return cls(inputs, (mask * torch.arange(1, longest + 1)).amax(dim=1))

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """The inputs of some sentences, without columns of padding at the end."""
        longest = int(self.columns[rows].max())
        return {name: held[rows, :longest] for name, held in self.inputs.items()}

    def epoch(self, size: int, generator: torch.Generator) -> list[Tensor]:
        """Rows of batches of similar length, in random order."""
        batches: list[Tensor] = []
        for some in torch.split(torch.randperm(len(self), generator=generator), size * _SORTED):
            by_length = some[self.columns[some].argsort(descending=True, stable=True)]
            batches += torch.split(by_length, size)
        return [batches[number] for number in torch.randperm(len(batches), generator=generator)]


@contextmanager
def _learning(encoder: PreTrainedModel, constants: bool) -> Iterator[None]:
    """Let constants learn, or not, and the token embeddings rest."""
    tables = [one for one in encoder.get_input_embeddings().parameters() if one.requires_grad]
    learned = [one for one in learning_mixers(encoder) if constants and not isinstance(one.constants, nn.Parameter)]
    for table in tables:
        table.requires_grad_(False)
    try:
        if constants:
            train_constants(encoder, None)
        yield
    finally:
        forget_groups(encoder)
        for table in tables:
            table.requires_grad_(True)
        for mixer in learned:
            mixer.learn_constants(False)
        for mixer in learning_mixers(encoder):
            mixer.certain_length = first_zero_of_diagonal(mixer.constants.detach())


def _train(
    embedder: Embedder, sentences: _Sentences, teacher: Tensor, settings: RecoverySettings, progress: bool
) -> None:
    """Train the parameters of the encoder that require a gradient."""
    encoder, generator = embedder.encoder, torch.Generator().manual_seed(settings.seed)
    if not any(one.requires_grad for one in encoder.parameters()):
        raise PapaError("nothing in the encoder learns: call encoder.requires_grad_(True) before it is swapped.")
    steps = settings.max_epochs * -(-len(sentences) // settings.batch_size)
    optimizer, mixers = settings.make_optimizer(encoder), learning_mixers(encoder) if settings.learn_constants else []
    schedule = settings.make_schedule(optimizer, steps)
    with Progress(total=steps, desc="Recovering", disable=not progress, dynamic_ncols=True) as bar:
        for epoch in range(settings.max_epochs):
            for rows in sentences.epoch(settings.batch_size, generator):
                found = embedder.embed(sentences.batch(rows))
                loss = embedding_loss(found, teacher[rows].to(found.device), settings.gram_weight)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                drop_unknown_gradients(mixers)
                optimizer.step()
                schedule.step()
                project_constants(mixers)
                bar.update()
            if not bool(loss.isfinite()):
                raise PapaError(
                    f"the loss of the recovery is {float(loss.detach())} after epoch {epoch + 1}: pass a smaller "
                    f"learning_rate than {settings.learning_rate}."
                )
