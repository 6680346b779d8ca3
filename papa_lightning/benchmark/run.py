"""Measurement of the variants of encoders, one size after the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache

import torch
from transformers import PreTrainedModel

from papa_lightning.benchmark.backends import (
    REFERENCE,
    Way,
    Work,
    backend_of,
    check_backend,
    check_runtime,
    compiling,
    stock_forms,
    use_backend,
)
from papa_lightning.benchmark.bound import block_of
from papa_lightning.benchmark.cases import Case, kind_of, sums_bytes
from papa_lightning.benchmark.encoders import choose_heads, copy_of, make_batches, make_stock, random_constants
from papa_lightning.benchmark.results import BenchmarkResult, Measurement, StudyTime
from papa_lightning.benchmark.settings import BenchmarkSettings, Size
from papa_lightning.benchmark.study_times import time_study
from papa_lightning.benchmark.timing import Spread, interleaved_times, nothing, settle, synchronizer
from papa_lightning.calibration import AttentionConstants, without_path
from papa_lightning.encoders import encoder_shape
from papa_lightning.progress import Progress
from papa_lightning.runtime import find_device, held_bytes, machine_facts, peak_bytes, threads_of_torch


@dataclass(frozen=True)
class Variant:
    """One way for an encoder to compute its attention; the share is None for a kind without shares."""

    kind: str
    share: float | None
    backend: str
    work: Work


def variants(settings: BenchmarkSettings, size: Size) -> list[Variant]:
    """The variants that are measured at a size, for each kind of work the reference first."""
    backends = [name for name in settings.ways if not (name == "flash" and size.padding)]
    reference = [REFERENCE] if settings.with_torch else []
    # What has no dynamic attention is the same with any kernel for that.
    modes = [*reference, *(name for name in backends if backend_of(name).mode != "eager")]
    forms = [form for name in [*reference, *backends] for form in stock_forms(name)]
    found = [Variant("stock", None, backend, work) for work in settings.work for backend in forms]
    for name in settings.kinds:
        kind = kind_of(name)
        shares = [float(share) for share in settings.shares] if kind.by_share else [None]
        ways = [(work, backend) for work in settings.work for backend in (backends if kind.by_backend else modes)]
        if not kind.has_way:
            ways = [("forward", REFERENCE)]
            found.append(Variant("stock", None, REFERENCE, "forward"))
        found += [Variant(name, share, backend, work) for share in shares for work, backend in ways]
    return list(dict.fromkeys(found))


def run_benchmark(
    settings: BenchmarkSettings, progress: bool = True, keep: Callable[[BenchmarkResult], object] | None = None
) -> BenchmarkResult:
    """Measure all variants of all sizes, section by section, and then the study if there is one.

    At each size every variant is made from the same stock encoder, whose parameters all share. The memory of its first
    pass is measured (of a compiled variant, of its second). Then all run in turn, first to warm up and then for their
    times, in evaluation mode and without garbage collection.

    Args:
        settings: Settings of the benchmark.
        progress: Whether to show a progress bar.
        keep: Function that gets what is finished after each size, to save it; None for none.

    Raises:
        PapaError: For an encoder, a device, a backend or a runtime that cannot be used.
    """
    device, sections, rows = find_device(settings.device), settings.by_section(), list[Measurement]()
    for own in sections.values():
        for backend in own.backends:
            check_backend(backend, own.dtype, device, padded=min(own.paddings) > 0)
        for runtime in own.graph_runtimes:
            check_runtime(runtime, own.dtype, device)
    work = [(name, own, size) for name, own in sections.items() for size in own.sizes()]
    encoder = None if settings.encoder is None else without_path(settings.encoder)

    def finished(study: Sequence[StudyTime] = ()) -> BenchmarkResult:
        about = machine_facts(device) | {name: getattr(settings, name) for name in ("dtype", "seed", "repeats")}
        return BenchmarkResult(rows, settings.as_dict() | {"encoder": encoder}, about, study)

    with threads_of_torch(settings.threads), torch.random.fork_rng():
        for name, own, size in Progress(work, "Benchmark", unit="size", disable=not progress, dynamic_ncols=True):
            rows += [replace(row, section=name) for row in _measure(own, size, device)]
            if keep is not None:
                keep(finished())
        return finished([] if settings.study is None else time_study(settings.study, device, settings.seed))


def _measure(settings: BenchmarkSettings, size: Size, device: torch.device) -> list[Measurement]:
    """The variants of one size."""
    stock = make_stock(settings, size, device)
    use_backend(stock, REFERENCE)
    batches = make_batches(settings, size, device, int(stock.config.vocab_size))
    encoders = {variant: copy_of(stock) for variant in variants(settings, size)}

    @cache
    def constants(length: int, shared: bool) -> AttentionConstants:
        return random_constants(stock, length, shared, settings.seed)

    runs: dict[Variant, Callable[[], object]] = {}
    for variant, encoder in encoders.items():
        way = Way(backend_of(variant.backend), batches, variant.work, settings.dtype == "bf16-mixed")
        heads, options = choose_heads(encoder, settings, variant.share or 0.0), settings.options.get(variant.kind, {})
        use_backend(encoder, variant.backend)
        runs[variant] = kind_of(variant.kind).prepare(
            encoder, Case(heads, settings.max_length or size.length, options, constants), way
        )
    memory: dict[Variant, tuple[int | None, int]] = {}
    with compiling([backend_of(variant.backend) for variant in runs]):
        with torch.inference_mode():
            stock(**batches[0])  # memory that a device takes once belongs to no variant
        for variant, run in runs.items():
            if backend_of(variant.backend).mode == "compile":
                run()  # torch.compile compiles here, which takes memory of its own
            memory[variant] = _memory(run, device, variant)
        several = any(not backend_of(variant.backend).is_torch for variant in runs)
        before = settle if several else nothing
        times = interleaved_times(runs, settings.repeats, settings.warmup, synchronizer(device), before=before)
    held = {variant: held_bytes(encoder, without=stock) for variant, encoder in encoders.items()}
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return [
        _measurement(settings, size, stock, variant, times, (peak, held[variant] + sums), tokens)
        for variant, (peak, sums) in memory.items()
    ]


def _memory(run: Callable[[], object], device: torch.device, variant: Variant) -> tuple[int | None, int]:
    """The peak of a pass beyond the sums that it returns, and the size of these; other runtimes do not tell."""
    if not backend_of(variant.backend).is_torch:
        return None, 0
    returned: list[object] = []
    peak = peak_bytes(lambda: returned.append(run()), device)
    sums = sums_bytes(returned.pop())
    return None if peak is None else peak - sums, sums


def reference_of(variant: Variant, times: Mapping[Variant, Sequence[float]]) -> Variant:
    """The fastest form of the stock encoder in the mode that a variant is compared with, for the same work."""
    mode = backend_of(variant.backend).compared
    forms = [one for one in times if one.kind == "stock" and one.work == variant.work]
    return min(
        (one for one in forms if backend_of(one.backend).mode == mode), key=lambda one: Spread.of(times[one]).median
    )


def _measurement(
    settings: BenchmarkSettings,
    size: Size,
    stock: PreTrainedModel,
    variant: Variant,
    times: Mapping[Variant, Sequence[float]],
    memory: tuple[int | None, int],
    tokens: int,
) -> Measurement:
    compared = times[reference_of(variant, times)]
    own, reference = Spread.of(times[variant]), Spread.of(compared)
    quotients = Spread.of([one / other for one, other in zip(compared, times[variant], strict=True)])
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
        padding=size.padding,
    )


def _bound(settings: BenchmarkSettings, size: Size, stock: PreTrainedModel, variant: Variant) -> float | None:
    """The bound of a forward over padded batches; None for other work, and where it is not known."""
    block, saves = block_of(stock.config, size.length), kind_of(variant.kind).saves
    if block is None or variant.work != "forward" or backend_of(variant.backend).mode == "packed":
        return None
    layers, heads = encoder_shape(stock)
    # A share is rounded to whole heads.
    share = len(choose_heads(stock, settings, variant.share or 0.0)) / (layers * heads)
    saved = saves(block, share, settings.options.get(variant.kind, {}))
    return None if saved is None else block.speed(saved)
