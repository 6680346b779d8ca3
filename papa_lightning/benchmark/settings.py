"""Settings of a benchmark: encoders, inputs, kinds of attention, and numbers of runs."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any, Literal, get_args

from papa_lightning.benchmark.cases import BACKENDS, kind_names
from papa_lightning.checks import check_choice
from papa_lightning.errors import PapaError


@dataclass(frozen=True)
class Size:
    """One encoder with one input: hidden size d, layers L, heads H, batch B and length T."""

    hidden: int
    layers: int
    heads: int
    batch: int
    length: int


def read_input(text: str) -> tuple[int, int]:
    """Batch and length of an input "BxT"."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(text).replace(" ", ""))
    if found is None:
        raise PapaError(f"inputs has {text!r}, but an input is sequences x tokens, such as 16x128.")
    return int(found[1]), int(found[2])


Dtype = Literal["float32", "bfloat16", "float16"]
Vary = Literal["all", "one"]
"""All combinations of the lists, or one list at a time while the others stay at their first entry."""
Placement = Literal["random", "layers", "every_layer"]
"""Placement of the constant heads: anywhere, in the lowest layers, or equally many in each layer."""

#: Fewest runs of a median.
LEAST_REPEATS = 7


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


@dataclass(frozen=True)
class BenchmarkSettings:
    """The encoders, inputs and variants of a benchmark, and the number of runs.

    The stock encoder under PyTorch's scaled dot-product attention is always measured: speeds are relative to it.

    Args:
        encoder: Name on the hub, or a folder written by ``save_pretrained``; null makes encoders with random weights in
            the sizes of `shape`.
        shape: The sizes of encoders with random weights.
        inputs: Batches as "BxT": number of sequences x tokens.
        vary: ``"all"`` measures all combinations of `shape` and `inputs`, ``"one"`` one list at a time, the others at
            their first entry.
        kinds: Kinds of attention to swap to, all but ``"dynamic"`` of :data:`papa_lightning.attention.KINDS`;
            ``"stock"``, the encoder as it is; or ``"calibration"``, the pass that averages the attention.
        shares: Shares of constant heads, from 0 to 1, for the kinds that leave other heads dynamic.
        options: What a kind takes beside constants and heads: {"aft_local": {"window": 32}}; of ``"compact"`` the width
            of the profile, {"compact": {"width": 64}}.
        placement: Which heads these are: ``"random"`` ones, those of the lowest ``"layers"``, or equally many in
            ``"every_layer"``.
        backends: How the dynamic attention is computed: ``"eager"``, ``"sdpa"`` (where the family has it), ``"flash"``
            (PyTorch's flash kernel and no other), ``"compile"`` (sdpa under torch.compile).
        dtype: Dtype of the weights.
        device: Device of all computations; ``"auto"`` is an accelerator where there is one.
        threads: Threads of PyTorch on the CPU; null does not change them.
        padding: Share of the tokens that is padding, below a half; the lengths are spread evenly.
        batches: Batches of one run, over which costs that arise once in a pass, as in calibration, are spread.
        repeats: Timed runs of each variant; at least 7.
        warmup: Runs of each variant before the timed ones.
        seed: Seed of weights, tokens, constants, and random heads.

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
    dtype: Dtype = "float32"
    device: str = "auto"
    threads: int | None = None
    padding: float = 0.0
    batches: int = 1
    repeats: int = 11
    warmup: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("vary", self.vary, get_args(Vary))
        check_choice("placement", self.placement, get_args(Placement))
        check_choice("dtype", self.dtype, get_args(Dtype))
        _check_each("kinds", self.kinds, kind_names())
        _check_each("backends", self.backends, BACKENDS)
        for name in self.options:
            check_choice("options", name, self.kinds)
        least = {"batches": 1, "repeats": LEAST_REPEATS, "warmup": 0, "seed": 0}
        if self.threads is not None:
            least["threads"] = 1
        for name, lowest in least.items():
            _check_whole(name, getattr(self, name), lowest)
        if not 0 <= self.padding < 0.5:
            raise PapaError(f"padding is {self.padding!r}, but must be a share of the tokens from 0 to below 0.5.")
        for share in self.shares:
            if isinstance(share, bool) or not 0 <= share <= 1:
                raise PapaError(f"shares has {share!r}, but a share of heads is from 0 to 1.")
        if self.encoder is not None and self.shape != ShapeSettings():
            raise PapaError(f"encoder is {self.encoder!r}, which has its own sizes: leave out encoder, or shape.")
        self.sizes()

    def sizes(self) -> list[Size]:
        """The possible sizes in the order of their measurement; with an `encoder`, hidden, layers and heads are 0."""
        lists: list[Sequence[Any]] = [_none_empty("inputs", [read_input(one) for one in self.inputs])]
        for name in ("hidden", "layers", "heads"):
            values = getattr(self.shape, name)
            for value in values:
                _check_whole(f"shape.{name}", value, 1)
            lists.append([0] if self.encoder is not None else _none_empty(f"shape.{name}", values))
        found = [Size(*numbers, *pair) for pair, *numbers in _combinations(lists, self.vary)]
        for size in found:
            if size.heads and size.hidden % size.heads:
                raise PapaError(
                    f"shape.heads has {size.heads}, which does not divide shape.hidden {size.hidden}: pass numbers of "
                    "heads that divide every hidden size."
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


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
