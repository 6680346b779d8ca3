"""Measurement of the variants of encoders, one size after the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from papa_lightning.benchmark import cases
from papa_lightning.benchmark.bound import block_of
from papa_lightning.benchmark.encoders import choose_heads, copy_of, make_batches, make_stock, random_constants
from papa_lightning.benchmark.results import BenchmarkResult, Measurement
from papa_lightning.benchmark.settings import BenchmarkSettings, Size
from papa_lightning.benchmark.timing import Spread, interleaved_times, synchronizer
from papa_lightning.calibration import without_path
from papa_lightning.encoders import encoder_shape
from papa_lightning.runtime import find_device, held_bytes, machine_facts, peak_bytes, threads_of_torch


@dataclass(frozen=True)
class Variant:
    """One way for an encoder to compute its attention; the share is None for a kind without shares."""

    kind: str
    share: float | None
    backend: str

    def __str__(self) -> str:
        share = "" if self.share is None else f" {100 * self.share:g} %"
        return f"{self.kind}{share}, {self.backend}"


STOCK = Variant("stock", None, cases.REFERENCE)


def variants(settings: BenchmarkSettings) -> list[Variant]:
    """The variants that are measured at each size, the reference first."""
    found = [STOCK, *(Variant("stock", None, backend) for backend in settings.backends)]
    for name in settings.kinds:
        kind = cases.kind_of(name)
        for share in settings.shares if kind.by_share else [None]:
            for backend in settings.backends if kind.by_backend else [cases.REFERENCE]:
                found.append(Variant(name, None if share is None else float(share), backend))
    return list(dict.fromkeys(found))


def run_benchmark(settings: BenchmarkSettings, progress: bool = True) -> BenchmarkResult:
    """Measure all variants of all sizes.

    At each size every variant is made from the same stock encoder, whose parameters all share. The memory of its first
    pass is measured (of a compiled variant, of its second). Then all run in turn, first to warm up and then for their
    times, in evaluation mode without gradients and without garbage collection.

    Args:
        settings: Settings of the benchmark.
        progress: Whether to show a progress bar.

    Raises:
        PapaError: For an encoder, a device or a backend that cannot be used.
    """
    device, dtype = find_device(settings.device), getattr(torch, settings.dtype)
    for backend in settings.backends:
        cases.check_backend(backend, dtype, device, padded=settings.padding > 0)
    sizes, rows = settings.sizes(), list[Measurement]()
    with threads_of_torch(settings.threads), torch.random.fork_rng():
        for size in tqdm(sizes, "Benchmark", unit="size", disable=not progress, dynamic_ncols=True):
            rows += _measure(settings, size, device)
        about = machine_facts(device) | {name: getattr(settings, name) for name in ("dtype", "seed", "repeats")}
    encoder = None if settings.encoder is None else without_path(settings.encoder)
    return BenchmarkResult(rows, settings.as_dict() | {"encoder": encoder}, about)


def _measure(settings: BenchmarkSettings, size: Size, device: torch.device) -> list[Measurement]:
    """The variants of one size."""
    stock = make_stock(settings, size, device)
    cases.use_backend(stock, cases.REFERENCE)
    batches = make_batches(settings, size, device, int(stock.config.vocab_size))
    encoders = {variant: copy_of(stock) for variant in variants(settings)}
    runs = {variant: _prepared(settings, size, variant, encoder, batches) for variant, encoder in encoders.items()}
    memory: dict[Variant, int | None] = {}
    with torch.inference_mode(), cases.compiling([cases.BACKENDS[variant.backend] for variant in runs]):
        stock(**batches[0])  # memory that a device takes once belongs to no variant
        for variant, run in runs.items():
            if cases.BACKENDS[variant.backend].compiled:
                run()  # torch.compile compiles here, which takes memory of its own
            memory[variant] = peak_bytes(run, device)
        times = interleaved_times(runs, settings.repeats, settings.warmup, synchronizer(device))
    held = {variant: held_bytes(encoder, without=stock) for variant, encoder in encoders.items()}
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return [
        _measurement(settings, size, stock, variant, times, (memory[variant], held[variant]), tokens)
        for variant in runs
    ]


def _prepared(
    settings: BenchmarkSettings, size: Size, variant: Variant, encoder: PreTrainedModel, batches: cases.Batches
) -> Callable[[], object]:
    """Turn a copy of the stock encoder into a variant, and return the pass that is timed."""
    cases.use_backend(encoder, variant.backend)
    case = cases.Case(
        choose_heads(encoder, settings, variant.share or 0.0),
        size.length,
        settings.options.get(variant.kind, {}),
        partial(random_constants, seed=settings.seed),
    )
    return partial(cases.kind_of(variant.kind).prepare(encoder, case, cases.BACKENDS[variant.backend]), batches)


def _measurement(
    settings: BenchmarkSettings,
    size: Size,
    stock: PreTrainedModel,
    variant: Variant,
    times: Mapping[Variant, Sequence[float]],
    memory: tuple[int | None, int],
    tokens: int,
) -> Measurement:
    own, reference = Spread.of(times[variant]), Spread.of(times[STOCK])
    quotients = Spread.of([one / other for one, other in zip(times[STOCK], times[variant], strict=True)])
    layers, heads = encoder_shape(stock)
    return Measurement(
        encoder=without_path(settings.encoder) if settings.encoder is not None else settings.shape.type,
        hidden=int(stock.config.hidden_size),
        layers=layers,
        heads=heads,
        batch=size.batch,
        length=size.length,
        **asdict(variant),
        seconds=own.median / settings.batches,
        low=own.low / settings.batches,
        high=own.high / settings.batches,
        sequences_per_second=size.batch * settings.batches / own.median,
        tokens_per_second=tokens / own.median,
        peak_bytes=memory[0],
        held_bytes=memory[1],
        speed=reference.median / own.median,
        speed_low=quotients.low,
        speed_high=quotients.high,
        bound=_bound(settings, size, stock, variant),
    )


def _bound(settings: BenchmarkSettings, size: Size, stock: PreTrainedModel, variant: Variant) -> float | None:
    block, saves = block_of(stock.config, size.length), cases.kind_of(variant.kind).saves
    if block is None:
        return None
    layers, heads = encoder_shape(stock)
    # A share is rounded to whole heads.
    share = len(choose_heads(stock, settings, variant.share or 0.0)) / (layers * heads)
    saved = saves(block, share, settings.options.get(variant.kind, {}))
    return None if saved is None else block.speed(saved)
