"""Several processes evaluate one data set: each example counts once."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DistributedSampler

from papa_lightning.either_lightning import is_a


def nth_loader(loaders: Any, index: int) -> Any:
    """One of the data loaders that a Trainer evaluates one after the other.

    Args:
        loaders: What ``trainer.val_dataloaders`` holds: one loader, or a list, mapping or CombinedLoader of them.
        index: Which.

    Example:
        >>> nth_loader({"matched": "first", "mismatched": "second"}, 1)
        'second'
    """
    if is_a(loaders, "CombinedLoader"):
        return loaders.flattened[index]
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    return loaders[index] if isinstance(loaders, Sequence) else loaders


def unrepeated_rows(loader: Any, batch_idx: int, rows: int) -> int:
    """How many leading rows of a batch are not there for the second time.

    torch's DistributedSampler gives all processes equally many examples, by repeating the first ones at the end of
    the last shares; Lightning uses it to validate and test, whoever made the loader. With one batch more or less on
    some process collectives would wait for ever, so the repeated row is computed, and then left out. With n examples
    and W processes, process r holds the places r, r + W, ...; at most its last place is n or beyond, a repeat.

    Args:
        loader: The data loader of this process, as the Trainer uses it.
        batch_idx: Number of the batch in it.
        rows: Rows of the batch.

    Returns:
        `rows`, or one less for the last batch of a process whose last example is a repeat.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> def loader(rank):
        ...     sampler = DistributedSampler(range(7), num_replicas=2, rank=rank, shuffle=False)
        ...     return DataLoader(range(7), batch_size=3, sampler=sampler)
        >>> [unrepeated_rows(loader(0), 1, rows=1), unrepeated_rows(loader(1), 0, rows=3), list(loader(1))[1].tolist()]
        [1, 3, [0]]
        >>> unrepeated_rows(loader(1), 1, rows=1)
        0
    """
    batches = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None) or getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last or batch_idx < len(loader) - 1:
        return rows
    last = sampler.rank + sampler.num_replicas * (sampler.num_samples - 1)
    if last < len(sampler.dataset):  # type: ignore[arg-type]
        return rows
    size = getattr(batches, "batch_size", None)
    if getattr(batches, "drop_last", False) and size and sampler.num_samples % size:
        return rows  # the repeat was in the batch that the loader dropped
    return rows - 1
