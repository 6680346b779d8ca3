"""Repeated runs of an encoder over the same batch, in which layers that cannot have changed are not run again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from papa_lightning.attention import runs_in
from papa_lightning.encoders.finding import SupportedEncoder

#: What a module has in its ``__dict__`` where its forward was replaced.
_FORWARD = "forward"


@dataclass(frozen=True, eq=False)
class _Run:
    """One call of an encoder: the tensors that its first layer got, and what each layer gave."""

    given: list[Tensor]
    outputs: list[Any] = field(default_factory=list)


class LayerReplay:
    """The layers of an encoder, of which the lower ones can give what they gave in the runs before.

    What is kept belongs to one batch, which may take several calls of the encoder. A call whose first layer gets other
    tensors than the kept one is computed as a whole, and so is every call of an encoder whose layers cannot be told
    apart: layers that share their weights, a compiled encoder, a layer whose forward another library replaced.

    Args:
        found: The encoder. Its layers must not change the hidden states that they get in place.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(num_hidden_layers=2, num_attention_heads=2, hidden_size=8, intermediate_size=8)
        >>> encoder, tokens = BertModel(config).eval(), torch.tensor([[1, 2, 3]])
        >>> replay = LayerReplay(SupportedEncoder.find(encoder))
        >>> with replay.watching():
        ...     replay.keep()
        ...     before = encoder(tokens).last_hidden_state
        ...     replay.reuse(1)
        ...     torch.equal(encoder(tokens).last_hidden_state, before), replay.reused
        (True, 1)
    """

    def __init__(self, found: SupportedEncoder) -> None:
        self._blocks = _blocks(found)
        self._runs: list[_Run] = []
        self._kept = True
        self._below = self._next = self._thread = 0
        self._current: _Run | None = None
        #: Number of layers that were not run, of all calls together.
        self.reused = 0

    @contextmanager
    def watching(self) -> Iterator[LayerReplay]:
        """Watch the layers, in this thread."""
        self._thread = threading.get_ident()
        try:
            for number, block in enumerate(self._blocks):
                vars(block)[_FORWARD] = partial(self._forward, number, block.forward)
            yield self
        finally:
            for block in self._blocks:
                vars(block).pop(_FORWARD, None)
            self._runs, self._current = [], None

    def keep(self) -> None:
        """Forget the batch before, and keep what all layers give in the calls that follow."""
        self._runs, self._kept, self._below = [], True, 0

    def reuse(self, layers: int) -> None:
        """Let the lowest layers give what they gave to the same batch, in as many calls as were kept."""
        self._next, self._kept, self._below = 0, False, layers

    def _forward(self, number: int, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not runs_in(self._thread):
            return forward(*args, **kwargs)
        if number == 0:
            self._begin(_tensors([*args, *kwargs.values()]))
        run = self._current
        if run is not None and not self._kept and number < self._below:
            self.reused += 1
            return run.outputs[number]
        output = forward(*args, **kwargs)
        if run is not None and self._kept:
            run.outputs.append(output)
        return output

    def _begin(self, given: list[Tensor]) -> None:
        """Begin a call whose first layer gets these tensors."""
        if self._kept:
            self._current = _Run(given)
            self._runs.append(self._current)
            return
        kept = self._runs[self._next] if self._next < len(self._runs) else None
        self._next += 1
        self._current = kept if kept is not None and _equal(kept.given, given) else None


def _blocks(found: SupportedEncoder) -> list[nn.Module]:
    """The modules of a list in an encoder that are its layers, each with the self-attention of its own; or none."""
    attentions = found.modules
    if len(found.distinct_modules) < len(attentions) or found.model._compiled_call_impl is not None:
        return []
    for held in found.model.modules():
        blocks = list(held) if isinstance(held, nn.ModuleList) and len(held) == len(attentions) else []
        if blocks and all(one in block.modules() for one, block in zip(attentions, blocks, strict=True)):
            changed = any(_FORWARD in vars(block) or block._compiled_call_impl is not None for block in blocks)
            return [] if changed else blocks
    return []


def _tensors(given: Any) -> list[Tensor]:
    """The tensors among arguments, also in tuples of them."""
    if isinstance(given, Tensor):
        return [given]
    return [one for part in given for one in _tensors(part)] if isinstance(given, (list, tuple)) else []


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(
        own is its or torch.equal(own, its) for own, its in zip(one, other, strict=True)
    )
