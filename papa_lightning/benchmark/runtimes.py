"""Runtimes beside torch: what runs graphs of encoders. A new one is a class that is registered here."""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes
from transformers import PreTrainedModel

from papa_lightning.encoders import SupportedEncoder, accepted_inputs
from papa_lightning.errors import PapaError
from papa_lightning.export import export_aot, export_encoder, export_onnx, load_exported_encoder
from papa_lightning.export.aot import PACKAGE, check_aot, compile_program
from papa_lightning.export.facts import GRAPH
from papa_lightning.export.graphs import HiddenStates, quiet
from papa_lightning.export.onnx.write import check_onnx
from papa_lightning.registry import Registry

Batch: TypeAlias = Mapping[str, Tensor]

#: The runtime without graphs: modules of Python, with one of the backends.
TORCH = "torch"


@dataclass(frozen=True)
class Graph:
    """A forward without Python code of the encoder: names of its inputs, and the function that takes them by name."""

    inputs: Sequence[str]
    run: Callable[[Mapping[str, Any]], object]


class Runtime(ABC):
    """Something that runs graphs of encoders."""

    #: Attention that graphs of the stock encoder are made with; times are compared with the fastest of them.
    stock_attention: ClassVar[Sequence[str]] = ("sdpa",)

    @classmethod
    @abstractmethod
    def check(cls, device: torch.device) -> None:
        """Refuse to begin where the runtime is not installed, or not for a device."""

    @classmethod
    @abstractmethod
    def load(cls, encoder: PreTrainedModel, folder: Path) -> Graph:
        """The graph of an encoder; files that are needed while it is made go to a folder."""

    @classmethod
    def argument(cls, held: Tensor) -> Any:
        """An input as the graph takes it."""
        return held


def is_swapped(encoder: PreTrainedModel) -> bool:
    """Whether an encoder has other attention than the stock one."""
    return bool(SupportedEncoder.find(encoder).mixers)


def pass_of(runtime: type[Runtime], encoder: PreTrainedModel, batches: Sequence[Batch]) -> Callable[[], object]:
    """One pass over all batches; a swapped encoder is exported first, as it would be served."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        if is_swapped(encoder):
            loaded = load_exported_encoder(export_encoder(encoder, folder / "exported"))
            encoder = torch.nn.Module.to(loaded, encoder.device)
        graph = runtime.load(encoder, folder)
    given = [{"token_type_ids": torch.zeros_like(batch["input_ids"]), **batch} for batch in batches]
    return partial(_over, graph.run, [{key: runtime.argument(one[key]) for key in graph.inputs} for one in given])


def _over(run: Callable[[Mapping[str, Any]], object], batches: Sequence[Mapping[str, Any]]) -> None:
    for batch in batches:
        run(batch)


RUNTIMES = Registry[type[Runtime]]("runtime", lambda part: isinstance(part, type) and issubclass(part, Runtime))


@RUNTIMES.register("onnxruntime")
class OnnxRuntime(Runtime):
    """Files of ONNX in onnxruntime, on the CPU."""

    stock_attention = ("sdpa", "eager")

    @classmethod
    def check(cls, device: torch.device) -> None:
        """Refuse a device, and missing packages."""
        if importlib.util.find_spec("onnxruntime") is None:
            raise PapaError(
                "runtimes has 'onnxruntime', which is not installed: pip install onnxruntime, or leave it out."
            )
        if device.type != "cpu":
            raise PapaError(
                f"runtimes has 'onnxruntime', which is timed on the CPU, but device is {device.type}: pass device cpu, "
                "or leave it out."
            )
        check_onnx()

    @classmethod
    def load(cls, encoder: PreTrainedModel, folder: Path) -> Graph:
        """The session of an encoder."""
        path = (export_onnx if is_swapped(encoder) else stock_onnx)(encoder, folder / GRAPH)
        session = onnx_session(path)
        return Graph([one.name for one in session.get_inputs()], partial(session.run, None))

    @classmethod
    def argument(cls, held: Tensor) -> Any:
        """An array."""
        return held.numpy()


@RUNTIMES.register("inductor")
class Inductor(Runtime):
    """Packages of AOTInductor, which a C++ compiler makes."""

    @classmethod
    def check(cls, device: torch.device) -> None:
        """Refuse to begin without a compiler."""
        check_aot("runtimes has 'inductor'")

    @classmethod
    def load(cls, encoder: PreTrainedModel, folder: Path) -> Graph:
        """The compiled package of an encoder."""
        from torch._inductor import aoti_load_package  # takes seconds, which the other runtimes need not wait

        path = folder / PACKAGE
        export_aot(encoder, path) if is_swapped(encoder) else compile_program(stock_program(encoder), path)
        package, inputs = aoti_load_package(str(path)), list(stock_inputs(encoder))
        return Graph(inputs, lambda given: package(**given))


def onnx_session(path: str | Path) -> Any:
    """A session of onnxruntime on the CPU, with as many threads as torch has.

    Its threads stop when a run is over: by default they keep a core busy for a while, which what runs next would pay.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def stock_inputs(encoder: PreTrainedModel) -> dict[str, Tensor]:
    """An example of the inputs of a graph of an encoder of text, by the names that export_program has."""
    names = set(accepted_inputs(encoder))
    example = torch.ones(2, 7, dtype=torch.int64, device=encoder.device)
    order = ("input_ids", "attention_mask", "token_type_ids")
    return {name: example * (name != "token_type_ids") for name in order if name in names}


def stock_onnx(encoder: PreTrainedModel, path: Path) -> Path:
    """Write the ONNX file of an encoder as transformers has it, for any batch size and length."""
    inputs = stock_inputs(encoder)
    names = {name: {0: "batch", 1: "length"} for name in inputs}
    options: Any = {"input_names": list(inputs), "output_names": ["last_hidden_state"], "verbose": False}
    with quiet():
        program = torch.onnx.export(
            HiddenStates(encoder), (), kwargs=inputs, dynamo=True, dynamic_shapes=names, **options
        )
    assert program is not None
    program.save(str(path))
    return path


def stock_program(encoder: PreTrainedModel) -> torch.export.ExportedProgram:
    """The graph of torch.export of an encoder as transformers has it, for any batch size and length."""
    inputs = stock_inputs(encoder)
    sizes = {name: {axis: torch.export.Dim.DYNAMIC(min=1 + axis) for axis in (0, 1)} for name in inputs}
    with quiet(), shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(HiddenStates(encoder), (), kwargs=inputs, dynamic_shapes=sizes, strict=False)
