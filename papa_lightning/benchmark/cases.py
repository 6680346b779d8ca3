"""Kinds of attention, the stock encoder and the calibration pass, prepared to be timed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from papa_lightning.attention import KINDS, Block, UntouchedLayer
from papa_lightning.benchmark.backends import Way
from papa_lightning.calibration import AttentionAverages, AttentionConstants, CompactConstants, gather
from papa_lightning.encoders import HeadSelection, Packing, find_encoder, learn_constants, swap_attention

#: Compact constants are fitted to matrices of this length, and extended: a long matrix would only cost memory.
_FITTED = 256


@dataclass(frozen=True)
class Case:
    """Set-up of a kind: heads that become constant, T tokens, options; `constants` makes those of a length."""

    heads: Sequence[tuple[int, int]]
    length: int
    options: Mapping[str, Any]
    constants: Callable[[int, bool], AttentionConstants]


@dataclass(frozen=True)
class Kind:
    """A variant to time: `prepare` changes a copy of the encoder, `saves` are multiply-adds per token and channel.

    The pass that `prepare` returns may return sums, which are no memory of the pass itself.
    """

    prepare: Callable[[PreTrainedModel, Case, Way], Callable[[], object]]
    saves: Callable[[Block, float, Mapping[str, Any]], float | None]  # by sizes, share of replaced heads, options
    by_share: bool = False
    by_backend: bool = True  # whether it has dynamic attention, so that the kernel for that makes a difference
    has_way: bool = True  # whether it is a pass of the encoder that can be compiled, captured, packed and trained


def _calibration(encoder: PreTrainedModel, case: Case, way: Way) -> Callable[[], object]:
    base, packing = find_encoder(encoder), Packing(enabled=False)
    return lambda: gather(base, way.batches, case.length, packing=packing)


def sums_bytes(returned: object) -> int:
    """Bytes of the sums that a calibration pass returns; 0 for what other passes return."""
    if not isinstance(returned, AttentionAverages):
        return 0
    return sum(one.nbytes for one in vars(returned).values() if isinstance(one, Tensor))


def _swapped(encoder: PreTrainedModel, case: Case, way: Way, name: str) -> Callable[[], object]:
    mixer = KINDS[name]
    options = {**mixer.example_options(case.length), **case.options}
    constants: AttentionConstants | CompactConstants | None = None
    if mixer.constants_form == "compact":
        width = {"width": int(options.pop("width"))} if "width" in options else {}
        average = case.constants(min(case.length, _FITTED), False)
        on_cpu = AttentionConstants(average.values.cpu(), average.pair_counts.cpu())  # a fit has many small steps
        constants = CompactConstants.fit(on_cpu, **width).extend(case.length)
    elif mixer.needs_constants(options):
        constants = case.constants(case.length, mixer.constants_form == "equal_matrices")
    heads: HeadSelection = "all" if mixer.whole_layer else case.heads
    swap_attention(encoder, name, heads=heads, constants=constants, max_length=case.length, options=options or None)
    return way.pass_of(encoder)


def _learned(encoder: PreTrainedModel, case: Case, way: Way) -> Callable[[], object]:
    constants = case.constants(case.length, False)
    swap_attention(encoder, "constant", heads=case.heads, constants=constants)
    learn_constants(encoder)
    return way.pass_of(encoder)


#: Variants beside the kinds of attention.
_OTHERS = {
    "stock": Kind(lambda encoder, case, way: way.pass_of(encoder), lambda block, share, options: 0.0),
    "learned": Kind(_learned, KINDS["constant"].saved_operations, by_share=True),
    "calibration": Kind(_calibration, lambda block, share, options: None, by_backend=False, has_way=False),
}


def kind_names() -> list[str]:
    """Names of what can be timed: all kinds of attention, the stock encoder, constants that learn, and calibration.

    Example:
        >>> {"stock", "calibration", "learned", "constant", "aft_local"} <= set(kind_names())
        True
    """
    first, *last = _OTHERS
    return [first, *(name for name in KINDS if KINDS[name] is not UntouchedLayer), *last]


def kind_of(name: str) -> Kind:
    """The variant of one of :func:`kind_names`; all but three come from :data:`~papa_lightning.attention.KINDS`."""
    if name in _OTHERS:
        return _OTHERS[name]
    mixer = KINDS[name]
    by_share = not mixer.whole_layer
    by_backend = mixer.depends_on_backend and mixer.uses_scores
    return Kind(partial(_swapped, name=name), mixer.saved_operations, by_share, by_backend)
