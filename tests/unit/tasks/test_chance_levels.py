"""Chance levels, against the metrics themselves."""

import pytest
import torch
from torchmetrics.classification import MulticlassRecall

from papa_lightning.errors import PapaError
from papa_lightning.tasks.metrics import METRICS, TaskMetric, chance_level, classification_metrics, token_metrics

LABELS = torch.tensor([0, 1, 1, 0, 1, 1, 1])


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_corrcoef"])
def test_it_is_the_best_score_of_one_answer_for_everything(metric: str) -> None:
    scores = [classification_metrics([metric], 2)(torch.full_like(LABELS, k), LABELS)[metric] for k in (0, 1)]
    assert chance_level(metric, LABELS, 2) == pytest.approx(float(max(scores)))


def test_words_without_label_do_not_count() -> None:
    labels = torch.tensor([[2, 2, -100], [1, -100, -100]])
    metric = token_metrics(["token_accuracy"], 3, None)
    assert chance_level("token_accuracy", labels, 3) == pytest.approx(
        float(metric(torch.full_like(labels, 2), labels)["token_accuracy"])
    )


def test_nothing_is_claimed_of_other_metrics() -> None:
    assert chance_level("perplexity", LABELS, 2) is None
    assert chance_level("f1", torch.tensor([0, 1, 2]), 3) is None


def test_classes_that_no_example_has_count() -> None:
    """The mean over three classes is known of none, whatever the examples."""
    assert chance_level("f1", LABELS, 3) is None
    assert chance_level("accuracy", LABELS, 3) == pytest.approx(5 / 7)


def test_a_registered_metric_is_known_to_tasks_of_its_level(monkeypatch: pytest.MonkeyPatch) -> None:
    recall = TaskMetric("sequence", lambda labels: MulticlassRecall(labels.number, average="macro"), lambda shares: 0.5)
    monkeypatch.setitem(METRICS, "recall", recall)
    assert classification_metrics(["recall"], 2)(LABELS, LABELS)["recall"] == 1
    assert chance_level("recall", LABELS, 2) == 0.5
    with pytest.raises(PapaError, match="metrics has 'recall', which is not a metric of this task"):
        token_metrics(["recall"], 2, None)
