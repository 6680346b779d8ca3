"""Which heads of a layer are dynamic at this moment."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch


class DynamicHeads:
    """Which heads of one layer need a query and a key right now.

    The projections and the mixer of a layer share one such object, so that both change at once when
    constants arrive. A plain object, not a module: it adds nothing to the state dict. Threads share it too, so nothing
    about a single forward is kept in it.

    Args:
        num_heads: H.

    Example:
        >>> heads = DynamicHeads(3)
        >>> heads.dynamic
        (0, 1, 2)
        >>> heads.choose([1])
        >>> heads.suspended = True
        >>> heads.dynamic
        (0, 1, 2)
    """

    def __init__(self, num_heads: int) -> None:
        self.num_heads = num_heads
        self._suspended_by: int | None = None
        self._dynamic = tuple(range(num_heads))

    @property
    def suspended(self) -> bool:
        """While suspended, every head counts as dynamic: calibration looks at the attention of the original encoder.

        Only in the thread that set it: forwards of others go on as before.
        """
        return self._suspended_by is not None and runs_in(self._suspended_by)

    @suspended.setter
    def suspended(self, suspended: bool) -> None:
        self._suspended_by = threading.get_ident() if suspended else None

    @property
    def dynamic(self) -> tuple[int, ...]:
        """The heads with a query and a key, ascending."""
        return tuple(range(self.num_heads)) if self.suspended else self._dynamic

    def choose(self, heads: Sequence[int]) -> None:
        """Take ascending heads as the dynamic ones."""
        self._dynamic = tuple(heads)

    @property
    def all_dynamic(self) -> bool:
        """True when the layer is the layer of the original encoder."""
        return len(self.dynamic) == self.num_heads

    def groups(self, size: int) -> tuple[int, ...]:
        """The groups of ``size`` neighbouring heads that have a dynamic head, ascending: the key heads in use.

        Example:
            >>> heads = DynamicHeads(4)
            >>> heads.choose([0, 1])
            >>> heads.groups(2)
            (0,)
        """
        return tuple(dict.fromkeys(head // size for head in self.dynamic))


def runs_in(thread: int) -> bool:
    """Whether a thread is the one that runs now. Compiled graphs cannot ask: they hold for all threads.

    Args:
        thread: What ``threading.get_ident()`` gave.

    Example:
        >>> runs_in(threading.get_ident())
        True
    """
    return torch.compiler.is_compiling() or thread == threading.get_ident()
