"""Where the time of a study goes: seconds of its parts."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

from papa_lightning.text import Table

Part = Literal["loading", "encoder", "storing", "probes", "recovery", "judging", "other"]
"""What time is spent on."""

#: What the parts are, in the order in which they are shown.
_PARTS: Mapping[Part, str] = {
    "loading": "loading (encoders, data, tokenising)",
    "encoder": "encoder (calibration, rankings, hidden states)",
    "storing": "storing hidden states",
    "probes": "probes (training, evaluation)",
    "recovery": "recovery (training of encoders with constant heads)",
    "judging": "judging embeddings",
    "other": "other",
}


class Stopwatch:
    """Seconds of the parts of some work. While an inner part runs, the outer one stands still: nothing counts twice.

    A part that works on a GPU must end by reading a result, or the next one would pay for its work.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.part("storing"):
        ...     with watch.part("encoder"):
        ...         pass
        >>> sorted(watch.take()), watch.take()
        (['encoder', 'storing'], {})
    """

    def __init__(self) -> None:
        self._seconds: dict[Part, float] = defaultdict(float)
        self._running: list[Part] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Count the time inside a ``with`` block."""
        self._count()
        self._running.append(name)
        try:
            yield
        finally:
            self._count()
            self._running.pop()

    def add(self, seconds: Mapping[Part, float]) -> None:
        """Add the seconds of work that was measured elsewhere."""
        for part, number in seconds.items():
            self._seconds[part] += number

    def take(self) -> dict[Part, float]:
        """The seconds of every part since the last call; parts that have not ended go on."""
        self._count()
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken

    def _count(self) -> None:
        """Give the time since the last change to the part that is running."""
        now = time.perf_counter()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now


def time_table(seconds: Mapping[Part, float], wall: float, num_workers: int = 1) -> Table:
    """Seconds of every part and its share of their sum, for the terminal.

    Args:
        seconds: Seconds by part, summed over the workers.
        wall: Seconds from beginning to end.
        num_workers: Number of workers.
    """
    total = sum(seconds.values())
    # Probes and embeddings have parts of their own, of which those that were not met are left out.
    own: set[Part] = {"recovery", *(("storing", "probes") if "judging" in seconds else ("judging",))}
    rows = [
        (text, f"{seconds.get(part, 0.0):.1f}", f"{100 * seconds.get(part, 0.0) / total:.0f} %")
        for part, text in _PARTS.items()
        if part in seconds or part not in own
    ]
    summed = f"; its parts are summed over {num_workers} workers" if num_workers > 1 else ""
    return Table(("part", "seconds", "share"), rows, title=f"Time: {wall:.1f} s{summed}")
