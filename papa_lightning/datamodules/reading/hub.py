"""Data sets of the hub."""

from collections.abc import Mapping

from datasets import Dataset, load_dataset

from papa_lightning.datamodules.reading.files import first_line
from papa_lightning.errors import DataError

PARQUET = "refs/convert/parquet"
"""Revision under which the hub keeps a copy in Parquet of many data sets that came with a loading script. The datasets
library runs no loading scripts from version 4 on."""


def load_hub(path: str, config: str | None, revision: str | None, remedy: str) -> Mapping[str, Dataset]:
    """Load all splits of a data set: from the library's cache after the first time.

    Args:
        path: Name of the data set.
        config: Its configuration, None for the only one.
        revision: Branch, tag or commit.
        remedy: What to do where the hub does not help, for the message.

    Returns:
        The rows by name of the split, memory-mapped.

    Raises:
        DataError: The hub cannot be reached, or has no such data set that loads without a script.
    """
    try:
        splits: Mapping[str, Dataset] = load_dataset(path, config, revision=revision)
    except Exception as error:  # network, hub and file readers raise errors of their own
        name = repr(path) if config is None else f"{path!r} ({config})"
        check = "Check the network and the revision"
        if "scripts are no longer supported" in str(error):
            check = f"Try revision={PARQUET!r}, the hub's own copy without a script"
        raise DataError(
            f"the data set {name} cannot be loaded from the hub: {first_line(error)}. {check}, or {remedy}."
        ) from error
    return splits
