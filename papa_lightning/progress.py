"""The progress bar of long work; a line a minute where no terminal shows it."""

import sys
from typing import Any

from tqdm.auto import tqdm

#: Seconds between two lines.
INTERVAL = 60.0
_IN_NOTEBOOK = any(one.__name__ == "tqdm_notebook" for one in tqdm.__mro__)


class Progress(tqdm):  # type: ignore[misc]
    """tqdm's progress bar; where stderr is no terminal, such as in a batch job, a line a minute instead.

    Takes the arguments of tqdm.

    Example:
        >>> for number in Progress([1, 2, 3], "Counting"):
        ...     pass
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.by_lines = not (_IN_NOTEBOOK or sys.stderr.isatty())
        if self.by_lines:
            options |= {"mininterval": INTERVAL, "maxinterval": INTERVAL, "delay": INTERVAL, "leave": False}
            options |= {"bar_format": "{desc}: {percentage:.0f} % after {elapsed}, {remaining} to go{postfix}"}
        super().__init__(*args, **options)

    def display(self, *args: Any, **options: Any) -> bool | None:
        """Show the bar, or print a line; without an amount of work, lines say nothing."""
        if not self.by_lines:
            return bool(super().display(*args, **options))
        if self.total and not (args or options):
            print(str(self).strip(), file=sys.stderr, flush=True)
        return False
