"""What is measured beside the stock encoder: one entry for each kind of attention."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from papa_lightning.attention import KINDS, mixer_class
from papa_lightning.benchmark.bound import Block
from papa_lightning.calibration import AttentionConstants, CompactConstants, gather
from papa_lightning.encoders import find_encoder, swap_attention
from papa_lightning.errors import PapaError

Batches: TypeAlias = Sequence[Mapping[str, Tensor]]
#: Goes over all batches once.
Pass: TypeAlias = Callable[[Batches], object]


@dataclass(frozen=True)
class Backend:
    """How the attention of dynamic heads is computed.

    Args:
        implementation: The name that transformers has for it.
        kernel: Around every pass.
        compiled: Whether the model goes through torch.compile.
    """

    implementation: str
    kernel: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiled: bool = False

    def forward(self, encoder: PreTrainedModel) -> Pass:
        """The pass of an encoder."""
        model = cast(Callable[..., object], torch.compile(encoder) if self.compiled else encoder)

        def run(batches: Batches) -> None:
            with self.kernel():
                for batch in batches:
                    model(**batch)

        return run


BACKENDS: dict[str, Backend] = {
    "eager": Backend("eager"),
    "sdpa": Backend("sdpa"),
    "flash": Backend("sdpa", lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)),
    "compile": Backend("sdpa", compiled=True),
}
#: What every speed is relative to.
REFERENCE = "sdpa"


def use_backend(encoder: PreTrainedModel, backend: str) -> None:
    """Let an encoder compute its attention with a backend; a family without sdpa keeps its own attention."""
    if encoder._supports_sdpa:
        encoder.set_attn_implementation(BACKENDS[backend].implementation)


@contextmanager
def compiling(backends: Iterable[Backend]) -> Iterator[None]:
    """Room for what torch.compile makes, where a backend compiles.

    Raises:
        PapaError: When it does not work on this machine.
    """
    if not any(backend.compiled for backend in backends):
        yield
        return
    import torch._dynamo.config as dynamo  # takes a second, which the other backends need not wait

    torch.compiler.reset()
    try:
        # The same forward is compiled anew for each variant; beyond the usual 8 it would run as it is, without a word.
        with dynamo.patch(recompile_limit=256):
            yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).split())[:200]
            raise PapaError(f"backends has 'compile', but torch.compile does not work here: {reason}") from error
        raise


def check_backend(backend: str, dtype: torch.dtype, device: torch.device, padded: bool) -> None:
    """Refuse a backend that cannot run with these inputs.

    Raises:
        PapaError: Says what would do.
    """
    if backend == "flash" and padded:
        raise PapaError("backends has 'flash', whose kernel knows no padding: pass padding 0, or leave it out.")
    if backend == "flash" and device.type == "cuda" and dtype == torch.float32:
        raise PapaError("backends has 'flash', which is for half precision on CUDA: pass dtype bfloat16 or float16.")


#: Compact constants are fitted to matrices of this length, and extended: a long matrix would only cost memory.
_FITTED = 256


@dataclass(frozen=True)
class Case:
    """What a kind is set up with.

    Args:
        heads: The heads that become constant, for kinds that leave others dynamic.
        length: T.
        options: Of the kind.
        constants: Makes constants of so many tokens for an encoder; with True, the same matrix for all heads.
    """

    heads: Sequence[tuple[int, int]]
    length: int
    options: Mapping[str, Any]
    constants: Callable[[PreTrainedModel, int, bool], AttentionConstants]


@dataclass(frozen=True)
class Kind:
    """How a kind of attention is made from a stock encoder, and what the arithmetic says of it.

    Args:
        prepare: Changes a copy of the stock encoder in place, and gives what is timed.
        saves: Multiply-accumulates per token and channel that a layer saves when a share of its heads is of this kind;
            None where no bound is known.
        by_share: Whether other heads stay dynamic, so that it is measured at each share.
        by_backend: Whether it computes dynamic attention, so that it is measured with each backend.
    """

    prepare: Callable[[PreTrainedModel, Case, Backend], Pass]
    saves: Callable[[Block, float, Mapping[str, Any]], float] | None = None
    by_share: bool = False
    by_backend: bool = True


def _stock(encoder: PreTrainedModel, case: Case, backend: Backend) -> Pass:
    return backend.forward(encoder)


def _constant(encoder: PreTrainedModel, case: Case, backend: Backend) -> Pass:
    swap_attention(encoder, "constant", constants=case.constants(encoder, case.length, False), heads=case.heads)
    return backend.forward(encoder)


def _compact(encoder: PreTrainedModel, case: Case, backend: Backend) -> Pass:
    matrices = case.constants(encoder, min(case.length, _FITTED), False)
    constants = CompactConstants.fit(matrices, width=_width(case.options)).extend(case.length)
    swap_attention(encoder, "compact", constants=constants, heads=case.heads)
    return backend.forward(encoder)


def _width(options: Mapping[str, Any]) -> int:
    return int(options.get("width", 64))


def _compact_saves(block: Block, share: float, options: Mapping[str, Any]) -> float:
    """Scores and products with the values go; the profile of 2 w + 1 and one sum over the columns come."""
    width = min(_width(options), block.length - 1)
    return share * (block.queries + block.length - (2 * width + 2))


def _folded(encoder: PreTrainedModel, case: Case, backend: Backend) -> Pass:
    swap_attention(encoder, "folded", constants=case.constants(encoder, case.length, True))
    return backend.forward(encoder)


def _calibration(encoder: PreTrainedModel, case: Case, backend: Backend) -> Pass:
    base = find_encoder(encoder)

    def run(batches: Batches) -> object:
        return gather(base, batches, case.length)

    return run


def _any(name: str) -> Kind:
    """A kind of :data:`papa_lightning.attention.KINDS` for all heads, of which no more is known here."""

    def prepare(encoder: PreTrainedModel, case: Case, backend: Backend) -> Pass:
        needed = mixer_class(name).needs_constants(case.options)
        found = case.constants(encoder, case.length, False) if needed else None
        swap_attention(encoder, name, constants=found, max_length=case.length, options=dict(case.options) or None)
        return backend.forward(encoder)

    return Kind(prepare)


_TABLE: dict[str, Kind] = {
    "stock": Kind(_stock, lambda block, share, options: 0),
    "constant": Kind(_constant, lambda block, share, options: share * block.queries, by_share=True),
    "gated": Kind(_any("gated").prepare, lambda block, share, options: -block.length),
    "compact": Kind(_compact, _compact_saves, by_share=True),
    # One (d x d) matrix in the place of four, and one product with the values.
    "folded": Kind(_folded, lambda block, share, options: block.queries + block.hidden, by_backend=False),
    "calibration": Kind(_calibration, by_backend=False),
}


def kind_names() -> list[str]:
    """The kinds that can be measured.

    Example:
        >>> kind_names()[:3]
        ['stock', 'constant', 'gated']
    """
    return list(dict.fromkeys([*_TABLE, *(name for name in KINDS if name != "dynamic")]))


def kind_of(name: str) -> Kind:
    """How a kind is made and bounded."""
    return _TABLE.get(name) or _any(name)
