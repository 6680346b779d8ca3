"""Settings of a benchmark: encoders, inputs, kinds of attention, and numbers of runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import product
from typing import Any, Literal, get_args

from papa_lightning.benchmark.backends import BACKENDS, Work
from papa_lightning.benchmark.cases import kind_names
from papa_lightning.benchmark.runtimes import RUNTIMES, TORCH
from papa_lightning.checks import check_choice, refuse
from papa_lightning.errors import PapaError


@dataclass(frozen=True)
class Size:
    """One encoder with one input: hidden size d, layers L, heads H, batch B, length T and share of padding."""

    hidden: int
    layers: int
    heads: int
    batch: int
    length: int
    padding: float


def read_input(text: str) -> tuple[int, int]:
    """Batch and length of an input "BxT"."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(text).replace(" ", ""))
    if found is None:
        raise PapaError(f"inputs has {text!r}, but an input is sequences x tokens, such as 16x128.")
    return int(found[1]), int(found[2])


Dtype = Literal["float32", "bfloat16", "float16", "bf16-mixed"]
"""Dtype of the weights; ``"bf16-mixed"`` is float32 under autocast to bfloat16, as Lightning has it."""
Vary = Literal["all", "one"]
"""All combinations of the lists, or one list at a time while the others stay at their first entry."""
Placement = Literal["random", "layers", "every_layer"]
"""Placement of the constant heads: anywhere, in the lowest layers, or equally many in each layer."""

#: Fewest runs of a median.
LEAST_REPEATS = 7
#: Settings that are the same for all sections.
_COMMON = ("encoder", "sections", "study", "device", "threads", "repeats", "seed")


@dataclass(frozen=True)
class ShapeSettings:
    """Encoders with random weights.

    Args:
        type: The model_type of a supported encoder of text.
        hidden: Hidden sizes d.
        layers: Numbers of layers L.
        heads: Numbers of heads H of a layer.
    """

    type: str = "bert"
    hidden: Sequence[int] = (384,)
    layers: Sequence[int] = (12,)
    heads: Sequence[int] = (12,)

    @property
    def is_default(self) -> bool:
        """Whether all sizes are the default ones; those of a command line are lists."""
        own = ShapeSettings(self.type, *(tuple(held) for held in (self.hidden, self.layers, self.heads)))
        return own == ShapeSettings()


@dataclass(frozen=True)
class StudyTiming:
    """A study of random sentences, timed choice by choice; by default of the size of SST-2 with MiniLM-L6.

    Args:
        rows: Training rows.
        evaluated: Rows that the probes are evaluated on.
        max_length: Number of slots T of every row.
        tokens: Mean number of real tokens of a row; lengths are those of an exponential distribution.
        hidden: Hidden size d of the encoder, a BERT with random weights.
        layers: Number of layers L.
        heads: Number of heads H of a layer.
        shares: Shares of constant heads of the choices beside share 0, one after the other. What a device does once, as
            to compile kernels, falls on the first ones.
        seeds: Number of probes of a choice.
        max_epochs: Passes of a probe over the training rows.
        batch_size: Sequences of a step of a probe.

    Raises:
        PapaError: When an argument is out of its range.
    """

    rows: int = 10_000
    evaluated: int = 872
    max_length: int = 64
    tokens: int = 13
    hidden: int = 384
    layers: int = 6
    heads: int = 12
    shares: Sequence[float] = (0.5, 0.875)
    seeds: int = 3
    max_epochs: int = 8
    batch_size: int = 16

    def __post_init__(self) -> None:
        for one in fields(self):
            if one.name != "shares":
                _check_whole(f"study.{one.name}", getattr(self, one.name), 1)
        for share in _none_empty("study.shares", self.shares):
            if isinstance(share, bool) or not 0 < share <= 1:
                raise PapaError(f"study.shares has {share!r}, but a share of its heads is above 0, and up to 1.")


@dataclass(frozen=True)
class BenchmarkSettings:
    """The encoders, inputs and variants of a benchmark, and the number of runs.

    The stock encoder is always measured, under PyTorch's scaled dot-product attention, with each of `backends` and in
    each of `runtimes`. Speeds are relative to the fastest of its forms in the same mode: eager, compiled, as a CUDA
    graph, or in the same runtime.

    Args:
        encoder: Name on the hub, or a folder written by ``save_pretrained``; null makes encoders with random weights in
            the sizes of `shape`.
        shape: The sizes of encoders with random weights.
        inputs: Batches as "BxT": number of sequences x tokens.
        vary: ``"all"`` measures all combinations of `shape` and `inputs`, ``"one"`` one list at a time, the others at
            their first entry.
        kinds: Kinds of attention to swap to, all but ``"dynamic"`` of :data:`papa_lightning.attention.KINDS`;
            ``"stock"``, the encoder as it is; ``"learned"``, constant heads whose matrices are parameters; or
            ``"calibration"``, the pass that averages the attention.
        shares: Shares of constant heads, from 0 to 1, for the kinds that leave other heads dynamic.
        options: What a kind takes beside constants and heads: {"aft_local": {"window": 32}}; of ``"compact"`` the width
            of the profile, {"compact": {"width": 64}}.
        placement: Which heads these are: ``"random"`` ones, those of the lowest ``"layers"``, or equally many in
            ``"every_layer"``.
        backends: How the dynamic attention is computed: ``"eager"``, ``"sdpa"`` (where the family has it), ``"flash"``
            (PyTorch's flash kernel and no other, where there is no padding), ``"compile"`` (sdpa under torch.compile),
            ``"graph"`` (sdpa, captured once in a CUDA graph and replayed), ``"packed"`` (sdpa over the real tokens of
            all batches alone; compared with the padded stock encoder).
        runtimes: What runs the encoders: ``"torch"``, with each of `backends`; ``"onnxruntime"``, files of ONNX;
            ``"inductor"``, packages of AOTInductor. Graphs are in float32, of forwards only, and take any batch size
            and length; encoders with other attention are exported first.
        max_length: Length of the constants, for inputs up to it; null is the length of each input.
        work: What is timed: the ``"forward"`` in inference mode; ``"training"``, forward and backward for all
            parameters that learn, without dropout and without an optimizer.
        dtype: Dtype of the weights; ``"bf16-mixed"`` is float32 under autocast to bfloat16.
        device: Device of all computations; ``"auto"`` is an accelerator where there is one.
        threads: Threads of PyTorch on the CPU; null does not change them.
        padding: Share of the tokens that is padding, below a half, or a list of them; the lengths are spread evenly.
        batches: Batches of one run, over which costs that arise once in a pass, as in calibration, are spread.
        repeats: Timed runs of each variant; at least 7.
        warmup: Runs of each variant before the timed ones.
        seed: Seed of weights, tokens, constants, and random heads.
        sections: Names and settings that differ from those above, for benchmarks that are made one after the other; a
            table for each; without any, the settings above are those of one. Encoder, device, threads, repeats and seed
            are the same for all.
        study: A study to time after all else; null times none.

    Raises:
        PapaError: When an argument is out of its range.

    Example:
        >>> settings = BenchmarkSettings(inputs=["4x32"], shape=ShapeSettings(hidden=[64, 128], heads=[4]))
        >>> [(size.hidden, size.batch, size.length) for size in settings.sizes()]
        [(64, 4, 32), (128, 4, 32)]
    """

    encoder: str | None = None
    shape: ShapeSettings = field(default_factory=ShapeSettings)
    inputs: Sequence[str] = ("16x128",)
    vary: Vary = "all"
    kinds: Sequence[str] = ("constant",)
    shares: Sequence[float] = (1.0,)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    placement: Placement = "random"
    backends: Sequence[str] = ("sdpa",)
    runtimes: Sequence[str] = (TORCH,)
    max_length: int | None = None
    work: Sequence[Work] = ("forward",)
    dtype: Dtype = "float32"
    device: str = "auto"
    threads: int | None = None
    padding: float | Sequence[float] = 0.0
    batches: int = 1
    repeats: int = 11
    warmup: int = 3
    seed: int = 0
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    study: StudyTiming | None = None

    def __post_init__(self) -> None:
        check_choice("vary", self.vary, get_args(Vary))
        check_choice("placement", self.placement, get_args(Placement))
        check_choice("dtype", self.dtype, get_args(Dtype))
        _check_each("kinds", self.kinds, kind_names())
        _check_each("backends", self.backends, BACKENDS)
        _check_each("runtimes", self.runtimes, [TORCH, *RUNTIMES])
        _check_each("work", self.work, get_args(Work))
        if self.graph_runtimes and "training" in self.work:
            raise PapaError(
                f"work has 'training', but runtimes has {self.graph_runtimes[0]!r}, which computes no gradients: leave "
                "one of them out."
            )
        for name in self.options:
            check_choice("options", name, self.kinds)
        least = {"batches": 1, "repeats": LEAST_REPEATS, "warmup": 0, "seed": 0}
        least |= {name: 1 for name in ("threads", "max_length") if getattr(self, name) is not None}
        for name, lowest in least.items():
            _check_whole(name, getattr(self, name), lowest)
        for padding in self.paddings:
            if isinstance(padding, bool) or not 0 <= padding < 0.5:
                raise PapaError(f"padding is {padding!r}, but must be a share of the tokens from 0 to below 0.5.")
        for share in self.shares:
            if isinstance(share, bool) or not 0 <= share <= 1:
                raise PapaError(f"shares has {share!r}, but a share of heads is from 0 to 1.")
        if self.encoder is not None and not self.shape.is_default:
            raise PapaError(f"encoder is {self.encoder!r}, which has its own sizes: leave out encoder, or shape.")
        self.sizes()
        self.by_section()

    @property
    def with_torch(self) -> bool:
        """Whether torch is one of the runtimes."""
        return TORCH in self.runtimes

    @property
    def graph_runtimes(self) -> list[str]:
        """The runtimes beside torch."""
        return [name for name in self.runtimes if name != TORCH]

    @property
    def ways(self) -> list[str]:
        """The backends of torch, where it is a runtime, and the other runtimes."""
        return [*(self.backends if self.with_torch else ()), *self.graph_runtimes]

    @property
    def paddings(self) -> Sequence[float]:
        """The shares of padding."""
        return _none_empty("padding", self.padding) if isinstance(self.padding, Sequence) else [self.padding]

    def by_section(self) -> dict[str, "BenchmarkSettings"]:
        """The settings of each section; without sections, these alone, under an empty name.

        Example:
            >>> settings = BenchmarkSettings(inputs=["4x32"], sections={"fast": {}, "long": {"inputs": ["1x64"]}})
            >>> [(name, list(one.inputs)) for name, one in settings.by_section().items()]
            [('fast', ['4x32']), ('long', ['1x64'])]
        """
        if not self.sections:
            return {"": self}
        alone = replace(self, sections={}, study=None)
        return {name: _changed(alone, name, given) for name, given in self.sections.items()}

    def sizes(self) -> list[Size]:
        """The possible sizes in the order of their measurement; with an `encoder`, hidden, layers and heads are 0."""
        inputs: Sequence[Any] = _none_empty("inputs", [read_input(one) for one in self.inputs])
        lists: list[Sequence[Any]] = [inputs, self.paddings]
        for name in ("hidden", "layers", "heads"):
            values = getattr(self.shape, name)
            for value in values:
                _check_whole(f"shape.{name}", value, 1)
            lists.append([0] if self.encoder is not None else _none_empty(f"shape.{name}", values))
        found = [
            Size(hidden, layers, heads, batch, length, padding)
            for (batch, length), padding, hidden, layers, heads in _combinations(lists, self.vary)
        ]
        for size in found:
            if self.max_length is not None and size.length > self.max_length:
                raise PapaError(
                    f"max_length is {self.max_length}, but inputs has {size.batch}x{size.length}: pass a max_length of "
                    f"{size.length} or more, or shorter inputs."
                )
            if size.heads and size.hidden % size.heads:
                raise PapaError(
                    f"shape.heads has {size.heads}, which does not divide shape.hidden {size.hidden}: pass numbers of "
                    "heads that divide every hidden size."
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def _changed(settings: BenchmarkSettings, name: str, given: object) -> BenchmarkSettings:
    """The settings of a section, by those that differ."""
    if not isinstance(given, Mapping):
        refuse(f"sections has {name!r}, which", given, "a map of settings")
    for key in given:
        if key in _COMMON or key not in vars(settings):
            known = ", ".join(one for one in vars(settings) if one not in _COMMON)
            raise PapaError(f"sections has {name!r} with {key!r}, but a section may have {known}.")
    try:
        shape = replace(settings.shape, **given.get("shape", {}))
        return replace(settings, **{**given, "shape": shape})
    except PapaError as error:
        raise PapaError(f"sections has {name!r}: {error}") from error
    except TypeError as error:  # a field that is no list, or a size that does not exist
        raise PapaError(f"sections has {name!r}, of which something has a wrong name or type: {error}") from error


def _combinations(lists: Sequence[Sequence[Any]], vary: str) -> list[tuple[Any, ...]]:
    """All combinations, the last list running slowest; or one list at a time."""
    if vary == "one":
        first = [one[0] for one in lists]
        varied = [(*first[:i], value, *first[i + 1 :]) for i, values in enumerate(lists) for value in values]
        return list(dict.fromkeys(varied))
    return list(dict.fromkeys(one[::-1] for one in product(*reversed(lists))))


def _none_empty(name: str, values: Sequence[Any]) -> Sequence[Any]:
    if not values:
        raise PapaError(f"{name} is empty: pass at least one.")
    return values


def _check_each(name: str, values: Sequence[str], choices: Iterable[str]) -> None:
    for value in _none_empty(name, values):
        check_choice(name, value, choices)


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PapaError(f"{name} is {value!r}, but must be a whole number from {least} on.")
