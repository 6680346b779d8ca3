"""Metrics of tasks, by name."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
)
from torchmetrics.text import Perplexity

from papa_lightning.errors import PapaError
from papa_lightning.tag_schemes import Scheme
from papa_lightning.tasks.entity_f1 import EntityF1
from papa_lightning.tasks.scores import UNLABELLED


class MatthewsCorrCoef(MulticlassMatthewsCorrCoef):
    r"""Matthews correlation of predicted and true classes; 0 where it is not defined.

    With n sequences, c of them right, :math:`t_k` of true class k and :math:`p_k` predicted as k,

    .. math::
        \frac{c\, n - \sum_k t_k p_k}{\sqrt{n^2 - \sum_k p_k^2}\; \sqrt{n^2 - \sum_k t_k^2}} .

    A probe that predicts one class for everything has a denominator of 0. The GLUE benchmark scores that as 0 (by
    scikit-learn), which is what this class does; torchmetrics returns another value for two classes, 0.025 on the
    validation split of CoLA, and so would let a useless probe look better than chance.

    Args:
        num_classes: The number of classes.

    Example:
        >>> import torch
        >>> metric = MatthewsCorrCoef(num_classes=2)
        >>> metric(torch.tensor([1, 1, 1]), torch.tensor([1, 1, 0]))
        tensor(0.)
    """

    def compute(self) -> Tensor:
        """Compute the correlation from the confusion matrix.

        Returns:
            A float scalar from -1 to 1.
        """
        # Integers up to the last step: differences of squares of counts lose digits in float32.
        confusion = self.confmat
        assert isinstance(confusion, Tensor)
        true, predicted, count = confusion.sum(1), confusion.sum(0), confusion.sum()
        covariance = confusion.trace() * count - (true * predicted).sum()
        spread_true = (count**2 - (true**2).sum()).float()
        spread_predicted = (count**2 - (predicted**2).sum()).float()
        scale = spread_true.sqrt() * spread_predicted.sqrt()
        return torch.where(scale > 0, covariance.float() / scale, torch.zeros_like(scale))


def _accuracy(num_labels: int) -> Metric:
    return MulticlassAccuracy(num_classes=num_labels, average="micro")


def _f1(num_labels: int) -> Metric:
    return BinaryF1Score() if num_labels == 2 else MulticlassF1Score(num_classes=num_labels, average="macro")


def _token_accuracy(num_labels: int) -> Metric:
    return MulticlassAccuracy(num_classes=num_labels, average="micro", ignore_index=UNLABELLED)


#: Every metric takes the predicted classes (B,) and the true classes (B,).
CLASSIFICATION_METRICS: Mapping[str, Callable[[int], Metric]] = MappingProxyType(
    {"accuracy": _accuracy, "matthews_corrcoef": MatthewsCorrCoef, "f1": _f1}
)

#: The metrics of tokens; they take the predicted and the true tags, (B, T), -100 where a token has none.
TOKEN_METRICS = ("token_accuracy", "entity_f1")


class LogitPerplexity(Perplexity):
    """torchmetrics' perplexity of N tokens that are no sequence.

    Example:
        >>> metric = LogitPerplexity()
        >>> metric(torch.zeros(3, 5), torch.tensor([0, 4, 2]))
        tensor(5.)
    """

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add tokens.

        Args:
            preds: (N, V), logits.
            target: (N,), the tokens that stood there.
        """
        super().update(preds[None].float(), target[None])


def classification_metrics(names: Sequence[str], num_labels: int) -> MetricCollection:
    """Build the metrics of a classification task.

    - ``accuracy``: share of sequences whose class is right.
    - ``matthews_corrcoef``: `MatthewsCorrCoef`.
    - ``f1``: with two classes the F1 of class 1, otherwise the mean of the F1 of the classes.

    Args:
        names: Names of the metrics, each once.
        num_labels: The number of classes.

    Returns:
        The metrics under their names; each is updated with predicted classes (B,) and true classes (B,).

    Raises:
        PapaError: If there is no name, or a name is unknown or given twice.

    Example:
        >>> import torch
        >>> metrics = classification_metrics(["accuracy", "f1"], num_labels=2)
        >>> metrics(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 0, 0]))
        {'accuracy': tensor(0.7500), 'f1': tensor(0.6667)}
    """
    _check_names(names, tuple(CLASSIFICATION_METRICS))
    return MetricCollection({name: CLASSIFICATION_METRICS[name](num_labels) for name in names})


def token_metrics(
    names: Sequence[str], num_labels: int, label_names: Sequence[str] | None, scheme: Scheme | None = None
) -> MetricCollection:
    """Build the metrics of a task with one tag a token.

    - ``token_accuracy``: share of labelled tokens whose tag is right.
    - ``entity_f1``: `EntityF1`, which wants the names of the tags.

    Args:
        names: Names of the metrics, each once.
        num_labels: The number of tags.
        label_names: Names of the tags by number, or None.
        scheme: Scheme of the tags for `EntityF1`. None: recognised.

    Returns:
        The metrics under their names; each is updated with predicted and true tags (B, T), -100 where there is none.

    Raises:
        PapaError: If there is no name, or a name is unknown or given twice, or the names of the tags are missing.

    Example:
        >>> metrics = token_metrics(["entity_f1", "token_accuracy"], 3, ["O", "B-X", "I-X"])
        >>> metrics(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 2, -100]]))
        {'entity_f1': tensor(1.), 'token_accuracy': tensor(1.)}
    """
    _check_names(names, TOKEN_METRICS)
    metrics: dict[str, Metric | MetricCollection] = {}
    for name in names:
        if name == "entity_f1" and label_names is None:
            raise PapaError(
                "metrics has 'entity_f1', but label_names is None: pass the names of the tags, or a datamodule that "
                "has label_names."
            )
        metrics[name] = EntityF1(label_names or (), scheme) if name == "entity_f1" else _token_accuracy(num_labels)
    return MetricCollection(metrics)


def _check_names(names: Sequence[str], known: Sequence[str]) -> None:
    choices = ", ".join(known)
    if isinstance(names, str) or not names:
        raise PapaError(f"metrics is {names!r}, but must be a list of at least one name: choose from {choices}.")
    for name in names:
        if name not in known:
            raise PapaError(f"metrics has {name!r}, which is not a metric of this task: choose from {choices}.")
    if len(set(names)) != len(names):
        raise PapaError(f"metrics is {list(names)}, which names a metric twice: name each once.")
