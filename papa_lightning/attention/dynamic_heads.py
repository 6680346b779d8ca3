"""Which heads of a layer are dynamic at this moment."""

from __future__ import annotations

from collections.abc import Sequence


class DynamicHeads:
    """Which heads of one layer need a query and a key right now.

    The projections and the mixer of a layer share one such object, so that both change at once when
    constants arrive. A plain object, not a module: it adds nothing to the state dict.

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
        #: While suspended, every head counts as dynamic: calibration looks at the attention of the original encoder.
        self.suspended = False
        self._dynamic = tuple(range(num_heads))

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


class Turn:
    """Which of the layers that share one module runs now (ALBERT); 0 for ever where no module is shared.

    Args:
        number: Counted from 0 in each pass of the encoder.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number


class HeadsInTurn(DynamicHeads):
    """The dynamic heads of the layer that runs now, among those that share one module.

    Args:
        layers: The dynamic heads of these layers, in the order in which they run.
        turn: Says which layer runs.
    """

    def __init__(self, layers: Sequence[DynamicHeads], turn: Turn) -> None:
        super().__init__(layers[0].num_heads)
        self.layers, self.turn = tuple(layers), turn

    @property
    def dynamic(self) -> tuple[int, ...]:
        """Those of the layer that runs now."""
        return self.layers[self.turn.number].dynamic
