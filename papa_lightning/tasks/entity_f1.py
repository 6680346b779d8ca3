"""F1 of named entities."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from papa_lightning.errors import PapaError
from papa_lightning.tag_schemes import OUTSIDE, RULES, Scheme, is_tag, matches, scheme_of
from papa_lightning.tasks.scores import UNLABELLED


class EntityF1(Metric):
    r"""F1 of entities, in the scheme of their tags, read strictly.

    In the scheme IOB2 an entity is a word tagged ``B-X`` with all directly following words tagged ``I-X``; an ``I-X``
    that follows neither ``B-X`` nor ``I-X`` of an entity is none. For the other schemes see
    :data:`papa_lightning.tag_schemes.RULES`. A predicted entity is right if its type, its first and its last word are:

    .. math:: F_1 = 2\, TP / (\text{predicted} + \text{actual}),

    and 0 if there are none at all. The same as ``seqeval.metrics.f1_score(..., mode="strict", scheme=...)``.
    Source: Tjong Kim Sang and De Meulder 2003, CoNLL-2003 shared task (micro-averaged over types). The counts are sums,
    so any number of batches and processes gives the value of all sentences together.

    Args:
        label_names: Names of the tags by number: ``"O"``, ``"B-X"``, ``"I-X"`` and so on.
        scheme: Scheme of the tags. None: recognised by the names, where full sets of ``B-X`` and ``I-X`` are IOB2.

    Raises:
        PapaError: If the names are of no scheme, or not of this one.

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
    starts: Tensor
    goes_on: Tensor
    ends: Tensor
    types: Tensor

    def __init__(self, label_names: Sequence[str], scheme: Scheme | None = None) -> None:
        super().__init__()
        rules = RULES[_checked_scheme(label_names, scheme)]
        kinds = sorted({name[2:] for name in label_names})
        names = [*label_names, OUTSIDE]  # the last one stands before and behind every sentence
        tables = {
            name: torch.tensor([[matches(patterns, before, tag) for tag in names] for before in names])
            for name, patterns in (("starts", rules.starts), ("goes_on", rules.goes_on), ("ends", rules.ends))
        }
        tables["types"] = torch.tensor([kinds.index(name[2:]) for name in label_names])
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        for name in ("true_positives", "predicted", "actual"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Count the entities of predicted and true tags (B, T); places labelled -100 are left out, as if not there."""
        true_positives, found, actual = self.count(predicted, labels).sum(dim=0)
        self.true_positives = self.true_positives + true_positives
        self.predicted = self.predicted + found
        self.actual = self.actual + actual

    def count(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """The right, predicted and true entities (B, 3) of each sentence, int64; see `update`."""
        words = labels != UNLABELLED
        sentences = torch.arange(len(labels), device=labels.device)[:, None].expand_as(labels)[words]
        begins, lengths = self._entities(predicted[words], sentences)
        true_begins, true_lengths = self._entities(labels[words], sentences)
        same_type = self.types[predicted[words]] == self.types[labels[words]]
        right = begins & true_begins & (lengths == true_lengths) & same_type
        each = torch.stack([right, begins, true_begins], dim=1).long()
        return each.new_zeros(len(labels), 3).index_add_(0, sentences, each)

    def compute(self) -> Tensor:
        """Compute the F1, a float scalar from 0 to 1."""
        return 2 * self.true_positives / (self.predicted + self.actual).clamp_min(1)

    def _entities(self, tags: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) true where an entity begins, and (N,) words of each word's run, from tags and sentence numbers (N,)."""
        edge = tags.new_full((1,), len(self.types))
        same = sentences[1:] == sentences[:-1]
        before = torch.cat([edge, torch.where(same, tags[:-1], edge)])
        after = torch.cat([torch.where(same, tags[1:], edge), edge])
        starts, goes_on = self.starts[before, tags], self.goes_on[before, tags]
        # What goes on with an entity that has just started does not start one.
        starts[1:] = starts[1:] & ~(goes_on[1:] & starts[:-1])
        # A run is a word with all the words that go on with it; it is an entity if it starts as one and is complete.
        runs = (starts | ~goes_on).cumsum(dim=0) - 1
        lengths = torch.bincount(runs)[runs]
        last = torch.arange(len(tags), device=tags.device) + lengths - 1
        ends = self.ends[tags, after]
        return starts & ends[last.clamp(max=max(len(tags) - 1, 0))], lengths


def _checked_scheme(label_names: Sequence[str], scheme: Scheme | None) -> Scheme:
    """The scheme of tags, recognised if it is not given."""
    if scheme is not None and scheme not in RULES:
        raise PapaError(f"scheme is {scheme!r}: choose from {', '.join(RULES)}, or None to recognise it.")
    marks = "BIESLU" if scheme is None else RULES[scheme].marks
    for name in label_names:
        if not is_tag(name, marks):
            raise PapaError(
                f"label_names has {name!r}, but entity_f1 reads tags in the scheme {scheme or ' or '.join(RULES)}, "
                f"which are 'O' and marks of {'-, '.join(marks)}- before a kind: rename the tags, or use the metric "
                "token_accuracy."
            )
    found = scheme or scheme_of(label_names)
    if found is None:
        raise PapaError(
            f"label_names is {list(label_names)!r}, whose marks are those of no scheme (the scheme IOB2 has B- for "
            f"each kind; the others are {', '.join(list(RULES)[1:])}): mend the names, pass scheme, or use the metric "
            "token_accuracy."
        )
    return found
