"""The rows by which heads are chosen, and the others by which the choice is confirmed."""

from __future__ import annotations

import torch
from datasets import Dataset

from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.errors import StudyError
from papa_lightning.study.budget.settings import ENCODER, TASK, BudgetSettings
from papa_lightning.study.workbench import Bench

#: The evaluation set that no choice has seen. The one by which heads are chosen is the first one, without a name.
HELD_OUT = "held_out"


def open_split_bench(settings: BudgetSettings) -> tuple[Bench, str]:
    """Load encoder and task, with the selection rows and the held-out rows as evaluation sets.

    A labelled test split is held out, and the validation rows select. Without one the validation rows are halved at
    random. Of a task with several validation sets the first one counts.

    Args:
        settings: Encoder and task.

    Returns:
        The bench, and in words where the held-out rows come from.

    Raises:
        PapaError: When encoder or data cannot be loaded, or there are fewer than two rows to halve.
    """
    bench = Bench(settings.study(), ENCODER, TASK)
    validation, test = bench.evaluations[""], _labelled_test(bench.data)
    if test is not None:
        bench.evaluations = {"": validation, HELD_OUT: test}
        return bench, "the test split"
    selection, held_out = halves(validation, settings.split_seed)
    bench.evaluations = {"": selection, HELD_OUT: held_out}
    return bench, f"half of the validation split, drawn with seed {settings.split_seed}"


def halves(rows: Dataset, seed: int) -> tuple[Dataset, Dataset]:
    """Two halves of rows, drawn at random, each in the order of the rows; of an odd number the second has one more.

    Args:
        rows: At least two.
        seed: Of the draw.

    Raises:
        StudyError: When there are fewer.
    """
    if len(rows) < 2:
        raise StudyError(
            f"task has {len(rows)} validation rows, but a choice of heads and its confirmation need rows of their own: "
            "pass at least two (max_eval_examples?), or a labelled test split."
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    middle = len(rows) // 2
    return rows.select(sorted(order[:middle])), rows.select(sorted(order[middle:]))


def _labelled_test(data: TaskDataModule) -> Dataset | None:
    """The rows of the test split, if there is one and it has labels: the data module would take those of validation."""
    found = [rows for rows in map(data.load_split, data.role_splits["test"]) if rows is not None]
    if not found or not all(map(data.is_labelled, found)):
        return None
    data.setup("test")
    loaders = data.test_dataloader()
    rows: Dataset = (loaders[0] if isinstance(loaders, list) else loaders).dataset
    return rows
