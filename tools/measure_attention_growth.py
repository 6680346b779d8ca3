"""Measure how time and memory of attention kinds grow with the length, and compare blocks at one length.

    python tools/measure_attention_growth.py
    python tools/measure_attention_growth.py --lengths 128 256 512 1024 --kinds "AFT-local, 32" softmax

First table: one mixing layer of each kind with its projections, forward without gradients and a training step (forward,
and backward of the mean square), for each length, with the exponent p of a least-squares fit of
log cost against log T, cost ~ T^p. Second table: a pre-norm block (mixing, then a feed-forward of 4 d) of each kind in
a training step at one length, against the block with the explicit softmax.

Time is the processor time of the process, so that other work on the machine counts little; median of interleaved runs.
Memory is PyTorch's peak allocation beyond parameters, gradients and the input, including allocations inside
operations. "softmax" is dot-product attention with explicit matrices, "sdpa" the fused kernel.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from math import nan

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papa_lightning.attention import AdditiveAttention, AFTConv, AFTFull, AFTLocal, AFTSimple
from papa_lightning.attention.aft.layers import ProjectedMixing
from papa_lightning.benchmark.timing import interleaved_times
from papa_lightning.runtime import peak_bytes

CPU = torch.device("cpu")


class DotProduct(ProjectedMixing):
    """Dot-product attention, with explicit matrices or with the fused kernel."""

    def __init__(self, hidden_size: int, heads: int, causal: bool, fused: bool) -> None:
        super().__init__(hidden_size)
        self.heads, self.causal, self.fused = heads, causal, fused

    def mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Without a padding mask."""
        shape = (*query.shape[:-1], self.heads, query.shape[-1] // self.heads)
        query, key, value = (x.reshape(shape).transpose(1, 2) for x in (query, key, value))
        if self.fused:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        else:
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            if self.causal:
                later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -torch.inf)
            mixed = torch.softmax(scores, dim=-1) @ value
        return mixed.transpose(1, 2).flatten(2)


class Block(nn.Module):
    """Pre-norm block of a Transformer."""

    def __init__(self, mixing: nn.Module, width: int) -> None:
        super().__init__()
        self.mixing, self.before, self.between = mixing, nn.LayerNorm(width), nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, T, d) to (B, T, d)."""
        hidden = hidden + self.mixing(self.before(hidden))
        change: Tensor = self.feed_forward(self.between(hidden))
        return hidden + change


#: By name: width, length, causal -> a mixing layer.
KINDS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "softmax": lambda d, length, causal: DotProduct(d, max(1, d // 64), causal, fused=False),
    "sdpa": lambda d, length, causal: DotProduct(d, max(1, d // 64), causal, fused=True),
    "additive": lambda d, length, causal: AdditiveAttention(d, causal=causal),
    "AFT-full": lambda d, length, causal: AFTFull(d, length, causal=causal),
    "AFT-simple": lambda d, length, causal: AFTSimple(d, causal),
    "AFT-local, 32": lambda d, length, causal: AFTLocal(d, length, 32, causal=causal),
    "AFT-conv, 31": lambda d, length, causal: AFTConv(d, max(1, d // 64), length, 31, causal),
}


def forward(module: nn.Module, hidden: Tensor) -> None:
    """Forward, without gradients."""
    with torch.no_grad():
        module(hidden)


def training_step(module: nn.Module, hidden: Tensor) -> None:
    """Forward and backward; gradients are added to those that are there."""
    module(hidden).square().mean().backward()


def interleaved_medians(calls: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of processor time of each call, one of each in turn; the first round does not count."""
    times = interleaved_times(calls, repeats, warmup=1, clock=time.process_time)
    return {name: statistics.median(values) for name, values in times.items()}


def exponent(lengths: Sequence[int], costs: Sequence[float]) -> float:
    """Return p of cost ~ T^p, by least squares on the logarithms."""
    return float(np.polyfit(np.log(lengths), np.log(costs), 1)[0])


def growth(args: argparse.Namespace) -> None:
    """Print cost by length and its exponent, for each kind, in forward and in a training step."""
    for name, work in (("forward", forward), ("training step", training_step)):
        seconds: dict[str, list[float]] = {kind: [] for kind in args.kinds}
        memory: dict[str, list[float]] = {kind: [] for kind in args.kinds}
        for length in args.lengths:
            hidden = torch.randn(args.batch, length, args.width)
            layers = {kind: KINDS[kind](args.width, length, args.causal) for kind in args.kinds}
            calls = {
                kind: lambda work=work, layer=layer, hidden=hidden: work(layer, hidden)
                for kind, layer in layers.items()
            }
            for kind, median in interleaved_medians(calls, args.repeats).items():
                seconds[kind].append(median)
                memory[kind].append(peak_bytes(calls[kind], CPU) or nan)
        for what, costs, unit in (("time, ms", seconds, 1e-3), ("memory, MiB", memory, 2**20)):
            print(f"\n| {name}: {what} | " + " | ".join(f"T {length}" for length in args.lengths) + " | exponent |")
            print("| --- " * (len(args.lengths) + 2) + "|")
            for kind in args.kinds:
                row = " | ".join(f"{cost / unit:.1f}" for cost in costs[kind])
                print(f"| {kind} | {row} | {exponent(args.lengths, costs[kind]):.2f} |")


def blocks(args: argparse.Namespace) -> None:
    """Print a training step of a block of each kind."""
    hidden = torch.randn(args.batch, args.block_length, args.block_width)
    width, length = args.block_width, args.block_length
    made = {kind: Block(KINDS[kind](width, length, args.causal), width) for kind in args.kinds}
    calls = {kind: lambda block=block: training_step(block, hidden) for kind, block in made.items()}
    seconds = interleaved_medians(calls, args.repeats)
    memory = {kind: peak_bytes(call, CPU) or nan for kind, call in calls.items()}
    print(
        f"\n| block, d {width}, T {length} | step, ms | speed | memory, MiB | share |\n| --- | --- | --- | --- | --- |"
    )
    first = args.kinds[0]
    for kind in args.kinds:
        print(
            f"| {kind} | {1e3 * seconds[kind]:.0f} | {seconds[first] / seconds[kind]:.2f} x | "
            f"{memory[kind] / 2**20:.0f} | {memory[kind] / memory[first]:.2f} |"
        )


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096], help="T")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="the first is compared with")
    parser.add_argument("--batch", type=int, default=1, help="B")
    parser.add_argument("--width", type=int, default=128, help="d of the layers")
    parser.add_argument("--block_width", type=int, default=512, help="d of the blocks")
    parser.add_argument("--block_length", type=int, default=1024, help="T of the blocks")
    parser.add_argument("--causal", action="store_true", help="tokens look at themselves and those before them only")
    parser.add_argument("--repeats", type=int, default=3, help="runs that count")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"B {args.batch}, layers of d {args.width}, float32, causal {args.causal}, {args.threads} threads, seed 0,")
    print(f"{platform.machine()}, torch {torch.__version__}, processor time, median of {args.repeats}")
    growth(args)
    blocks(args)


if __name__ == "__main__":
    main()
