"""Kinds of attention, the stock encoder and the calibration pass, prepared to be timed with a backend."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from papa_lightning.attention import KINDS, Block, UntouchedLayer
from papa_lightning.calibration import AttentionConstants, CompactConstants, gather
from papa_lightning.encoders import HeadSelection, Packing, find_encoder, swap_attention
from papa_lightning.errors import PapaError

Batches: TypeAlias = Sequence[Mapping[str, Tensor]]
#: One pass over all batches.
Pass: TypeAlias = Callable[[Batches], object]


@dataclass(frozen=True)
class Backend:
    """A way to compute attention: its name in transformers, a context around every pass, and torch.compile or not."""

    implementation: str
    kernel: Callable[[], AbstractContextManager[Any]] = nullcontext
    compiled: bool = False

    def forward(self, encoder: PreTrainedModel) -> Pass:
        """The pass to time."""
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
#: Backend of the stock encoder that every speed is relative to.
REFERENCE = "sdpa"


def use_backend(encoder: PreTrainedModel, backend: str) -> None:
    """Let an encoder compute its attention with a backend; a family without sdpa keeps its own attention."""
    if encoder._supports_sdpa:
        encoder.set_attn_implementation(BACKENDS[backend].implementation)


@contextmanager
def compiling(backends: Iterable[Backend]) -> Iterator[None]:
    """Raise the limit of graphs of torch.compile for a while where a backend compiles; refuse one that cannot."""
    if not any(backend.compiled for backend in backends):
        yield
        return
    import torch._dynamo.config as dynamo  # takes a second, which the other backends need not wait

    torch.compiler.reset()
    try:
        # The same forward is compiled anew for each variant; beyond the usual 8 it would silently run uncompiled.
        with dynamo.patch(recompile_limit=256):
            yield
    except Exception as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = " ".join(str(error).split())[:200]
            raise PapaError(f"backends has 'compile', but torch.compile does not work here: {reason}") from error
        raise


def check_backend(backend: str, dtype: torch.dtype, device: torch.device, padded: bool) -> None:
    """Refuse a backend that cannot run with these inputs."""
    if backend == "flash" and padded:
        raise PapaError("backends has 'flash', whose kernel cannot mask padding: pass padding 0, or leave it out.")
    if backend == "flash" and device.type == "cuda" and dtype == torch.float32:
        raise PapaError("backends has 'flash', which is for half precision on CUDA: pass dtype bfloat16 or float16.")


#: Compact constants are fitted to matrices of this length, and extended: a long matrix would only cost memory.
_FITTED = 256


@dataclass(frozen=True)
class Case:
    """Set-up of a kind: heads that become constant, T tokens, options; `constants` makes those of an encoder."""

    heads: Sequence[tuple[int, int]]
    length: int
    options: Mapping[str, Any]
    constants: Callable[[PreTrainedModel, int, bool], AttentionConstants]


@dataclass(frozen=True)
class Kind:
    """A variant to time: `prepare` changes a copy of the encoder, `saves` are multiply-adds per token and channel."""

    prepare: Callable[[PreTrainedModel, Case, Backend], Pass]
    saves: Callable[[Block, float, Mapping[str, Any]], float | None]  # by sizes, share of replaced heads, options
    by_share: bool = False
    by_backend: bool = True


def _calibration(encoder: PreTrainedModel, case: Case, backend: Backend) -> Pass:
    base = find_encoder(encoder)
    return lambda batches: gather(base, batches, case.length, packing=Packing(enabled=False))


def _swapped(encoder: PreTrainedModel, case: Case, backend: Backend, name: str) -> Pass:
    mixer = KINDS[name]
    options = {**mixer.example_options(case.length), **case.options}
    constants: AttentionConstants | CompactConstants | None = None
    if mixer.constants_form == "compact":
        width = {"width": int(options.pop("width"))} if "width" in options else {}
        fitted = CompactConstants.fit(case.constants(encoder, min(case.length, _FITTED), False), **width)
        constants = fitted.extend(case.length)
    elif mixer.needs_constants(options):
        constants = case.constants(encoder, case.length, mixer.constants_form == "equal_matrices")
    heads: HeadSelection = "all" if mixer.whole_layer else case.heads
    swap_attention(encoder, name, heads=heads, constants=constants, max_length=case.length, options=options or None)
    return backend.forward(encoder)


#: Variants beside the kinds of attention.
_OTHERS = {
    "stock": Kind(lambda encoder, case, backend: backend.forward(encoder), lambda block, share, options: 0.0),
    "calibration": Kind(_calibration, lambda block, share, options: None, by_backend=False),
}


def kind_names() -> list[str]:
    """Names of what can be timed: all kinds of attention, the stock encoder, and the calibration pass.

    Example:
        >>> {"stock", "calibration", "constant", "aft_local"} <= set(kind_names())
        True
    """
    first, *last = _OTHERS
    return [first, *(name for name in KINDS if KINDS[name] is not UntouchedLayer), *last]


def kind_of(name: str) -> Kind:
    """The variant of one of :func:`kind_names`; all but two come from :data:`~papa_lightning.attention.KINDS`."""
    if name in _OTHERS:
        return _OTHERS[name]
    mixer = KINDS[name]
    by_share = not mixer.whole_layer
    return Kind(partial(_swapped, name=name), mixer.saved_operations, by_share, mixer.depends_on_backend)
