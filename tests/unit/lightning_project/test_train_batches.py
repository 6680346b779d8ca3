"""Samples of the train data in random order."""

from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from papa_lightning.lightning_project.train_batches import TrainBatches

ORDER = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()


class Stream(IterableDataset[int]):
    def __iter__(self) -> Any:
        return iter(range(10))


def of(loader: Any, batches: float = float("inf"), batch_size: int | None = None) -> TrainBatches:
    trainer: Any = SimpleNamespace(
        train_dataloader=loader, num_training_batches=batches, max_steps=-1, global_rank=0, world_size=1
    )
    return TrainBatches(trainer, batch_size)


def samples(batches: TrainBatches) -> list[list[int]]:
    return [torch.as_tensor(batch).view(-1).tolist() for batch in batches]


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_same_samples_in_an_order_that_does_not_hang_on_the_loader(shuffle: bool) -> None:
    data = list(range(10))
    for batches in (of(DataLoader(data, 4, shuffle=shuffle)), of(DataLoader(data, 3), batch_size=4)):
        assert samples(batches.in_random_order()) == [ORDER[:4], ORDER[4:8], ORDER[8:]]
        assert samples(batches) == [data[:4], data[4:8], data[8:]]
    single = of(DataLoader(data, batch_size=None)).in_random_order()
    assert samples(single) == [[one] for one in ORDER]
    few = list(chain.from_iterable(samples(of(DataLoader(data, 2), batches=3).in_random_order())))
    assert sorted(few) == data[:6]
    assert few != data[:6]


def test_what_can_only_be_iterated_keeps_its_order() -> None:
    assert samples(of(DataLoader(Stream(), 5)).in_random_order()) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
