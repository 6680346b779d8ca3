"""F1 of named entities."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from papa_lightning.exceptions import PapaError
from papa_lightning.tasks.losses import UNLABELLED


class EntityF1(Metric):
    r"""F1 of entities in the scheme IOB2, read strictly.

    An entity is a word tagged ``B-X`` with all directly following words tagged ``I-X``; an ``I-X`` that follows neither
    ``B-X`` nor ``I-X`` of an entity is none. A predicted entity is right if its type, its first and its last word are:

    .. math:: F_1 = 2\, TP / (\text{predicted} + \text{actual}),

    and 0 if there are none at all. The same as ``seqeval.metrics.f1_score(..., mode="strict", scheme=IOB2)``.
    Source: Tjong Kim Sang and De Meulder 2003, CoNLL-2003 shared task (micro-averaged over types). The counts are sums,
    so any number of batches and processes gives the value of all sentences together.

    Args:
        label_names: Names of the tags by number: ``"O"``, ``"B-X"`` and ``"I-X"``.

    Raises:
        PapaError: If a name is not of that form.

    Example:
        >>> metric = EntityF1(["O", "B-PER", "I-PER"])
        >>> metric(torch.tensor([[1, 2, 0, 1]]), torch.tensor([[1, 2, 0, 0]]))
        tensor(0.6667)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    true_positives: Tensor
    predicted: Tensor
    actual: Tensor
    beginning: Tensor
    inside: Tensor
    types: Tensor

    def __init__(self, label_names: Sequence[str]) -> None:
        super().__init__()
        for name in label_names:
            if name != "O" and (name[:2] not in ("B-", "I-") or len(name) < 3):
                raise PapaError(
                    f"label_names has {name!r}, but entity_f1 reads the scheme IOB2, whose tags are 'O', 'B-X' and "
                    "'I-X': rename the tags, or use the metric token_accuracy."
                )
        kinds = sorted({name[2:] for name in label_names})
        tables = {
            "beginning": torch.tensor([name.startswith("B-") for name in label_names]),
            "inside": torch.tensor([name.startswith("I-") for name in label_names]),
            "types": torch.tensor([kinds.index(name[2:]) for name in label_names]),
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        for name in ("true_positives", "predicted", "actual"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count the entities of sentences.

        Args:
            predicted: (B, T), the predicted tags.
            labels: (B, T), the true tags, -100 at what is no word: it is left out of both, and what stands on either
                side of it is neighbours.
        """
        words = labels != UNLABELLED
        sentences = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[words]
        begins, lengths = self._entities(predicted[words], sentences)
        true_begins, true_lengths = self._entities(labels[words], sentences)
        same_type = self.types[predicted[words]] == self.types[labels[words]]
        self.true_positives = self.true_positives + (begins & true_begins & (lengths == true_lengths) & same_type).sum()
        self.predicted = self.predicted + begins.sum()
        self.actual = self.actual + true_begins.sum()

    def compute(self) -> Tensor:
        """Compute the F1.

        Returns:
            A float scalar from 0 to 1.
        """
        return 2 * self.true_positives / (self.predicted + self.actual).clamp_min(1)

    def _entities(self, tags: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """Find entities in the words of all sentences, one after the other.

        Args:
            tags: (N,).
            sentences: (N,), the number of the sentence of each word.

        Returns:
            (N,) true where an entity begins, and (N,) how many words the run of each word has.
        """
        # A run is a word with all the I- words of its type behind it; it is an entity if it begins with B-.
        follows = torch.zeros_like(tags, dtype=torch.bool)
        outside = ~self.beginning[tags] & ~self.inside[tags]
        follows[1:] = (
            self.inside[tags[1:]]
            & ~outside[:-1]
            & (self.types[tags[1:]] == self.types[tags[:-1]])
            & (sentences[1:] == sentences[:-1])
        )
        runs = (~follows).cumsum(dim=0) - 1
        return self.beginning[tags] & ~follows, torch.bincount(runs)[runs]
