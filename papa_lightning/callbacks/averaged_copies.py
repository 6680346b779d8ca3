"""Copies of a module in which Lightning's callbacks average its weights.

They pair the parameters of the copy and of the module by their order alone, and save the copy's state in the place of
the module's. So what happens to the module must happen to the copy, which such a callback makes in its ``setup``,
before ours or after it, as the user listed them.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from papa_lightning.either_lightning import L, is_a


def averaged_copies(trainer: L.Trainer, module: L.LightningModule) -> Iterator[L.LightningModule]:
    """The copies of a module that callbacks of its Trainer average.

    Args:
        trainer: The Trainer.
        module: The module that it fits.

    Yields:
        Modules of the same class. None before the callback's own ``setup``, whose copy is of what ours left then.
    """
    names = ("WeightAveraging", "StochasticWeightAveraging")
    averaging = (one for one in trainer.callbacks if is_a(one, *names))  # type: ignore[attr-defined]
    for callback in averaging:
        for held in vars(callback).values():
            parts = held.modules() if isinstance(held, nn.Module) else ()
            yield from (part for part in parts if type(part) is type(module) and part is not module)
