"""Backends: how an encoder runs over the batches that are timed: op by op, compiled, packed, or in another runtime."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from papa_lightning.benchmark.runtimes import RUNTIMES, pass_of
from papa_lightning.encoders import PackedSequences, Packer, Packing
from papa_lightning.errors import PapaError

Batches: TypeAlias = Sequence[Mapping[str, Tensor]]
Mode = Literal["eager", "compile", "graph", "packed"]
"""How torch brings the operations of a pass to the device; times of one mode are compared with each other."""
Work = Literal["forward", "training"]
"""What is timed: the forward in inference mode, or forward and backward."""


@dataclass(frozen=True)
class Backend:
    """A way to compute attention: its name in transformers, the mode of a pass, and a context around every pass.

    The mode is one of :data:`Mode`, or the name of another runtime.
    """

    implementation: str
    mode: str = "eager"
    kernel: Callable[[], AbstractContextManager[Any]] = nullcontext

    @property
    def is_torch(self) -> bool:
        """Whether modules are run, and no graph of another runtime."""
        return self.mode in get_args(Mode)

    @property
    def compared(self) -> str:
        """Mode of the stock encoder that its times are compared with; nothing packs for a stock encoder."""
        return "eager" if self.mode == "packed" else self.mode


BACKENDS: dict[str, Backend] = {
    "eager": Backend("eager"),
    "sdpa": Backend("sdpa"),
    "flash": Backend("sdpa", kernel=lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)),
    "compile": Backend("sdpa", "compile"),
    "graph": Backend("sdpa", "graph"),
    "packed": Backend("sdpa", "packed"),
}
#: Backend of the stock encoder that is always measured.
REFERENCE = "sdpa"


def backend_of(name: str) -> Backend:
    """A backend, or a runtime with the attention that its graphs are made with: "onnxruntime", "onnxruntime/eager"."""
    if name in BACKENDS:
        return BACKENDS[name]
    runtime, _, attention = name.partition("/")
    return Backend(attention or RUNTIMES[runtime].stock_attention[0], runtime)


def stock_forms(name: str) -> list[str]:
    """The backends that the stock encoder is measured with beside one, so that the fastest of them is found."""
    if backend_of(name).is_torch:
        return [name]
    others = RUNTIMES[name].stock_attention[1:]
    return [name, *(f"{name}/{other}" for other in others)]


def use_backend(encoder: PreTrainedModel, backend: str) -> None:
    """Let an encoder compute its attention with a backend; a family without sdpa keeps its own attention."""
    if encoder._supports_sdpa:
        encoder.set_attn_implementation(backend_of(backend).implementation)


def check_backend(backend: str, dtype: str, device: torch.device, padded: bool) -> None:
    """Refuse a backend that cannot run with these inputs; `padded` means that all of them have padding."""
    if backend == "flash" and padded:
        raise PapaError("backends has 'flash', whose kernel cannot mask padding: pass padding 0, or leave it out.")
    if backend == "flash" and device.type == "cuda" and dtype == "float32":
        raise PapaError("backends has 'flash', which is for half precision on CUDA: pass dtype bfloat16 or float16.")
    if backend == "graph" and device.type != "cuda":
        raise PapaError(f"backends has 'graph', a CUDA graph, but device is {device.type}: leave it out.")


def check_runtime(runtime: str, dtype: str, device: torch.device) -> None:
    """Refuse a runtime beside torch that is not installed, or cannot run with this dtype and device."""
    if dtype != "float32":
        raise PapaError(f"runtimes has {runtime!r}, whose graphs are in float32, but dtype is {dtype}: leave one out.")
    RUNTIMES[runtime].check(device)


@contextmanager
def compiling(backends: Iterable[Backend]) -> Iterator[None]:
    """Raise the limit of graphs of torch.compile for a while where a backend compiles; refuse one that cannot."""
    if not any(backend.mode == "compile" for backend in backends):
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


@dataclass(frozen=True)
class Way:
    """How an encoder is run: with a backend, forward or in training, with autocast to bfloat16 or not."""

    backend: Backend
    batches: Batches
    work: Work = "forward"
    autocast: bool = False

    def pass_of(self, encoder: PreTrainedModel) -> Callable[[], object]:
        """One pass over all batches; packed ones are made here, as the others were before."""
        mode = self.backend.mode
        if not self.backend.is_torch:
            return pass_of(RUNTIMES[mode], encoder, self.batches)
        model = torch.compile(encoder) if mode == "compile" else encoder
        inputs = packed(encoder, self.batches) if mode == "packed" else padded(self.batches)
        train = partial(_train, encoder) if self.work == "training" else _infer
        run = partial(train, model, inputs, partial(self._context, encoder.device))
        if mode != "graph":
            return run
        if self.work == "forward":  # as a served encoder is: a graph takes kept rows of frozen weights
            encoder.requires_grad_(False)
        return Captured(run, encoder.device)

    @contextmanager
    def _context(self, device: torch.device) -> Iterator[None]:
        with self.backend.kernel(), torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            yield


#: The arguments of an encoder for each batch, inside a ``with`` block.
_Inputs: TypeAlias = Sequence[Callable[[], AbstractContextManager[Mapping[str, Any]]]]
_Context: TypeAlias = Callable[[], AbstractContextManager[None]]


def _infer(model: Callable[..., Any], inputs: _Inputs, context: _Context) -> None:
    with torch.inference_mode(), context():
        for batch in inputs:
            with batch() as arguments:
                model(**arguments)


def _train(encoder: PreTrainedModel, model: Callable[..., Any], inputs: _Inputs, context: _Context) -> None:
    """Forward and backward of each batch; the loss is the sum of the squares of the last hidden states."""
    for batch in inputs:
        with context(), batch() as arguments:
            states = model(**arguments).last_hidden_state
        states.float().square().sum().backward()
    encoder.zero_grad()


def padded(batches: Batches) -> _Inputs:
    """The batches as they are."""
    return [partial(_as_it_is, batch) for batch in batches]


@contextmanager
def _as_it_is(batch: Mapping[str, Tensor]) -> Iterator[Mapping[str, Any]]:
    yield batch


def packed(encoder: PreTrainedModel, batches: Batches) -> _Inputs:
    """The real tokens of all batches together, as a calibration packs them.

    Raises:
        PapaError: When the encoder would compute other states for them.
    """
    parts = [Packer.of(encoder).pack(batch) for batch in batches]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        raise PapaError(f"backends has 'packed', but batches of a {encoder.config.model_type} are not: leave it out.")
    joined, device = PackedSequences.join(found), encoder.device
    return [partial(joined.batch(group).prepared, device) for group in joined.groups(Packing().tokens(device))]


class Captured:
    """A function without arguments as a CUDA graph: the first call captures it, all others replay the graph.

    Args:
        run: The function.
        device: The GPU that it runs on.
    """

    #: Calls before the capture: kernels are compiled and chosen in the first ones.
    WARMUP = 3

    def __init__(self, run: Callable[[], object], device: torch.device) -> None:
        self._run, self._device = run, device
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Capture the graph, or replay it."""
        with torch.cuda.device(self._device):  # of which streams and graphs are
            if self._graph is None:
                self._graph = self._capture()
            else:
                self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        beside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(self.WARMUP):
                self._run()
        torch.cuda.current_stream().wait_stream(beside)
        with torch.cuda.graph(graph):
            self._run()
        return graph
