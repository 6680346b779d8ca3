import pytest
import torch
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)

from papa_lightning.errors import PapaError
from papa_lightning.tasks.metrics import MatthewsCorrCoef, classification_metrics

NAMES = ("accuracy", "matthews_corrcoef", "f1")


@pytest.mark.parametrize("num_labels", [2, 3])
def test_equal_to_torchmetrics_on_all_data(num_labels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randint(0, num_labels, (50,), generator=generator)
    labels = torch.randint(0, num_labels, (50,), generator=generator)
    metrics = classification_metrics(NAMES, num_labels)
    for rows in torch.arange(50).split(7):
        metrics.update(predicted[rows], labels[rows])
    actual = metrics.compute()
    f1 = (
        binary_f1_score(predicted, labels)
        if num_labels == 2
        else multiclass_f1_score(predicted, labels, num_labels, average="macro")
    )
    expected = {
        "accuracy": multiclass_accuracy(predicted, labels, num_labels, average="micro"),
        "matthews_corrcoef": multiclass_matthews_corrcoef(predicted, labels, num_labels),
        "f1": f1,
    }
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name)


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize(("predicted", "true"), [(1, [1] * 7 + [0] * 3), (0, [1] * 7 + [0] * 3), (1, [1] * 10)])
def test_one_class_for_everything_scores_zero(num_labels: int, predicted: int, true: list[int]) -> None:
    metric = MatthewsCorrCoef(num_labels)
    metric.update(torch.full((10,), predicted), torch.tensor(true))
    assert metric.compute() == torch.tensor(0.0)


@pytest.mark.parametrize(("flip", "expected"), [(False, 1.0), (True, -1.0)])
def test_extremes_of_the_correlation(flip: bool, expected: float) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1])
    metric = MatthewsCorrCoef(2)
    metric.update(1 - labels if flip else labels, labels)
    assert metric.compute() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["precision"],
            r"'precision', which is not a metric of this task: choose from accuracy, matthews_corrcoef, f1",
        ),
        ([], "at least one name"),
        ("accuracy", "must be a list"),
        (["f1", "f1"], "names a metric twice"),
    ],
)
def test_bad_names(names: list[str], message: str) -> None:
    with pytest.raises(PapaError, match=message):
        classification_metrics(names, 2)
