"""Train data of a Trainer, each sequence once over all processes."""

import copy
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain, islice
from types import GeneratorType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from papa_lightning.either_lightning import L
from papa_lightning.errors import CalibrationError

_REMEDY = "override calibration_batches of the callback, or make a constants file first and pass constants=PATH"


class TrainBatches:
    """Batches of an epoch of the train loader without DDP's repeats, in the order of the data; one on every process.

    `batch_size` is that of a single loader; several keep theirs.
    """

    def __init__(self, trainer: L.Trainer, batch_size: int | None = None) -> None:
        given, self.limit = trainer.train_dataloader, _limit(trainer)
        if isinstance(given, (dict, list, tuple)):
            # In their own sizes: by size and number of batches the loaders are gone over together, and cut.
            own = tree_map(lambda one: _once(trainer, one, None, None), given)
            combined: Any = trainer.fit_loop._combined_loader
            self.batches: Iterable[Any] = _Combined(type(combined)(own, combined._mode))
        else:
            self.batches = _once(trainer, given, batch_size, self.limit)
            self.limit = None if _has_places(given) else self.limit

    def __iter__(self) -> Iterator[Any]:
        """The batches, as the loader collates them."""
        return islice(iter(self.batches), self.limit)

    def __len__(self) -> int:
        """Number of batches of this process; a TypeError when the data does not know its length."""
        if self.limit is None or hasattr(self.batches, "__len__"):
            number = len(cast(Sized, self.batches))
            return number if self.limit is None else min(number, self.limit)
        return self.limit

    def in_random_order(self) -> "TrainBatches":
        """The same samples in random order, drawn with seed 0; as they are where data can only be iterated."""
        other = copy.copy(self)
        if _has_places(self.batches):
            other.batches = _reordered(cast("DataLoader[Any]", self.batches))
        return other


class _Combined:
    """The batches of several loaders in one."""

    def __init__(self, loaders: Any) -> None:
        self._loaders = loaders

    def __iter__(self) -> Iterator[Any]:
        for batch, _, _ in self._loaders:
            yield batch


def _limit(trainer: L.Trainer) -> int | None:
    """Batches of this process in an epoch or until training ends; None if unknown."""
    number = trainer.num_training_batches
    if number != float("inf"):
        return int(number)
    return trainer.max_steps * trainer.accumulate_grad_batches if trainer.max_steps > 0 else None


def _has_places(loader: Any) -> bool:
    """Whether a loader picks samples by index, and iterates as that of torch does."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader).__iter__ is DataLoader.__iter__
    )


def _once(trainer: L.Trainer, loader: Any, batch_size: int | None, limit: int | None) -> Any:
    """A loader of this process's share, each sample once."""
    if not _has_places(loader):
        return _as_it_is(trainer, loader)
    batches = _batches(trainer, loader)
    batches = batches if limit is None else batches[:limit]
    if loader.batch_sampler is None:
        return _over(loader, sampler=batches, batch_size=None)
    return _over(loader, batch_sampler=_resized(batches, batch_size))


def _reordered(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader of the same samples, or of the same batches where it makes none, in random order."""
    places: Any = loader.sampler if loader.batch_sampler is None else list(chain.from_iterable(loader.batch_sampler))
    drawn = torch.randperm(len(places), generator=torch.Generator().manual_seed(0)).tolist()
    order = [places[number] for number in drawn]
    if loader.batch_sampler is None:
        return _over(loader, sampler=order, batch_size=None)
    size = max(map(len, cast(Any, loader.batch_sampler)), default=1)
    return _over(loader, batch_sampler=_Chunks(order, size, drop_last=False))


def _over(loader: DataLoader[Any], **sampling: Any) -> DataLoader[Any]:
    """A loader of the same data with a sampler of its own."""
    kept = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    return DataLoader(loader.dataset, **sampling, **{name: getattr(loader, name) for name in kept})


def _as_it_is(trainer: L.Trainer, loader: Any) -> Any:
    """A loader of data that can only be iterated; refused on several processes and for one-time iterators."""
    name = type(loader.dataset if isinstance(loader, DataLoader) else loader).__name__
    if trainer.world_size > 1:
        raise CalibrationError(
            f"the train data ({name}) is iterable only, so {trainer.world_size} processes cannot share it without "
            f"repeats: {_REMEDY}."
        )
    if isinstance(loader, Iterator) or _is_used_up(getattr(loader, "dataset", None)):
        raise CalibrationError(
            f"the train data is a {name}, an iterator that can be gone over only once, so calibration would leave "
            f"nothing to train on: let each iter() of the data begin anew, or {_REMEDY}."
        )
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        vars(loader)["_iterator"] = None  # persistent workers belong to the training
    return loader


def _is_used_up(rows: Any) -> bool:
    """Whether iterable data return the same iterator again instead of a new one."""
    if not isinstance(rows, IterableDataset):
        return False
    iterator = iter(rows)
    if iterator is not rows and iterator is iter(rows):
        return True
    held = {name: one for name, one in vars(rows).items() if isinstance(one, GeneratorType)}
    if held:
        next(iter(rows), None)  # may make it anew
    return any(vars(rows).get(name) is one for name, one in held.items())


def _batches(trainer: L.Trainer, loader: DataLoader[Any]) -> Any:
    """The places of this process's samples, batch by batch; of a loader that makes no batches, one by one."""
    batching = loader.batch_sampler
    size = loader.batch_size or getattr(batching, "batch_size", None)
    if batching is not None and (type(batching) is not BatchSampler or not isinstance(size, int)):
        own = [tuple(batch) for batch in islice(batching, _limit(trainer))]
        if trainer.world_size > 1:
            own = _shared_out(trainer, own, max(map(len, own), default=1))
        return [list(batch) for batch in own]
    order = _order(trainer, loader.sampler if batching is None else batching.sampler)
    return order if batching is None else _Chunks(order, cast(int, size), batching.drop_last)


def _order(trainer: L.Trainer, sampler: Any) -> Any:
    """The places of this process's samples, each once over all processes."""
    rank, world = trainer.global_rank, trainer.world_size
    if type(sampler) is DistributedSampler:
        number = len(cast(Sized, sampler.dataset))
        used = number // sampler.num_replicas * sampler.num_replicas if sampler.drop_last else number
        return range(sampler.rank, used, sampler.num_replicas)
    inner = getattr(getattr(sampler, "dataset", None), "_sampler", None)
    if isinstance(sampler, DistributedSampler) and inner is not None:  # Lightning's wrapper of the user's sampler
        return _chosen(trainer, inner)[rank::world]
    shuffles = type(sampler) is RandomSampler and not sampler.replacement
    if type(sampler) is SequentialSampler or (shuffles and len(sampler) == len(sampler.data_source)):
        return range(rank, len(sampler), world)
    if world == 1:
        return _chosen(trainer, sampler)
    return [place for (place,) in _shared_out(trainer, [(place,) for place in sampler], 1)]


def _chosen(trainer: L.Trainer, sampler: Any) -> Any:
    """Samples that a custom sampler draws, the same on all processes; a subset in its given order."""
    if type(sampler) is SubsetRandomSampler:
        return list(sampler.indices)
    return trainer.strategy.broadcast(list(islice(sampler, _limit_of_endless(trainer, sampler))))


def _limit_of_endless(trainer: L.Trainer, sampler: Any) -> int | None:
    """Number of samples to draw from a sampler without a length; None for all."""
    try:
        len(sampler)
    except TypeError:
        batches, size = _limit(trainer), getattr(trainer.train_dataloader, "batch_size", None) or 1
        return None if batches is None else batches * trainer.world_size * size
    return None


def _shared_out(trainer: L.Trainer, own: Sequence[tuple[Any, ...]], size: int) -> list[tuple[Any, ...]]:
    """Batches of this process among those of all samplers; few repeats are padding, and stay with the first process."""
    given: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(given, list(own))
    flat = [sorted(place for batch in batches for place in batch) for batches in given]
    if all(places == flat[0] for places in flat):
        return cast("list[tuple[Any, ...]]", given[0][trainer.global_rank :: trainer.world_size])
    everything = [place for places in flat for place in places]
    if len(everything) - len(set(everything)) >= trainer.world_size * size:
        return list(own)
    seen: set[Any] = set()
    left: list[list[tuple[Any, ...]]] = [[] for _ in given]
    for rank, batches in enumerate(given):
        for batch in batches:
            first = tuple(place for place in dict.fromkeys(batch) if place not in seen)
            seen.update(first)
            if first:
                left[rank].append(first)
    return left[trainer.global_rank]


class _Chunks(Sequence[Any]):
    """A long sequence of indices in batches, made on demand."""

    def __init__(self, places: Sequence[Any], size: int, drop_last: bool) -> None:
        self.places, self.size = places, size
        self._number = len(places) // size if drop_last else -(-len(places) // size)

    def __len__(self) -> int:
        return self._number

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            stop = index.indices(len(self))[1]
            return _Chunks(self.places[: stop * self.size], self.size, drop_last=False)
        if not 0 <= index < self._number:
            raise IndexError(index)
        return list(self.places[index * self.size : (index + 1) * self.size])


def _resized(batches: Sequence[Any], size: int | None) -> Sequence[Any]:
    """Batches of another size, of the same samples in the same order."""
    if size is None:
        return batches
    if isinstance(batches, _Chunks):
        return _Chunks(batches.places[: len(batches) * batches.size], size, drop_last=False)
    return _Chunks([place for batch in batches for place in batch], size, drop_last=False)
