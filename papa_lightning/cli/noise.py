"""What libraries print while a command works: nothing that a user cannot act on, and every warning once."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from textwrap import shorten

from papa_lightning.cli.errors import LIBRARIES, PACKAGE
from papa_lightning.text import printable

#: Categories that are meant for those who write a library.
_FOR_AUTHORS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
#: Advice of Lightning that is wrong or of no use here, by the beginnings of its warnings.
_ADVICE = re.compile(
    r"The number of training batches \(|The '\w+' does not have many workers|The dirpath has changed from|"
    r"`max_epochs` was not set|Checkpoint directory .* exists and is not empty"
)
#: Loggers through which Lightning tells of itself, under both names of the package.
_LOGGERS = tuple(
    f"{package}.utilities.{name}"
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    for name in ("rank_zero", "seed")
)
#: Variables that turn bars of libraries off: of downloads and of loaded weights; of data sets.
_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep libraries quiet: no advertisements, no warnings for authors; bars only in a terminal; a warning once.

    For a process that is a command; everything is as before at the end. With PAPA_DEBUG=1 nothing changes.
    """
    if os.environ.get("PAPA_DEBUG") == "1":
        yield
        return
    shown, before = _Shown(), {name: os.environ.get(name) for name in _BARS}
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    for logger in loggers:
        logger.addFilter(_is_ours)
    if not sys.stderr.isatty():
        os.environ |= {name: "1" for name, value in before.items() if value is None}
    try:
        with warnings.catch_warnings():
            warnings.showwarning = shown.show
            yield
    finally:
        shown.count_others()
        for logger in loggers:
            logger.removeFilter(_is_ours)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record is more than a library's information about itself."""
    return record.levelno > logging.INFO or not record.pathname.startswith(LIBRARIES)


class _Shown:
    """Prints every warning once, on one line; those that differ in numbers only are counted."""

    def __init__(self) -> None:
        self.alike: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def show(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: object = None,
        line: str | None = None,
    ) -> None:
        """Print a warning, in place of :func:`warnings.showwarning`."""
        text = " ".join(str(message).split())
        in_library = filename.startswith(LIBRARIES) and not filename.startswith(PACKAGE)
        if in_library and (issubclass(category, _FOR_AUTHORS) or _ADVICE.match(text)):
            return
        sort = re.sub(r"[\d.,]+", "#", text)
        self.alike[sort] += text != self.first.setdefault(sort, text)
        if self.first[sort] is text:
            place = "" if filename.startswith((PACKAGE, *LIBRARIES)) else f"{os.path.relpath(filename)}:{lineno}: "
            _say(f"papa: warning: {place}{text}")

    def count_others(self) -> None:
        """Say how many warnings were not printed."""
        for sort, number in self.alike.items():
            if number:
                _say(f"papa: warning: {number} more like {shorten(self.first[sort], 60, placeholder=' …')!r}")


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be closed, or full
        print(printable(text), file=sys.stderr, flush=True)
