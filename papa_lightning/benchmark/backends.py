"""How the dynamic attention of an encoder is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

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
