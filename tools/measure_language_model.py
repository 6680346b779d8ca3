"""Measure training steps of causal language models of one depth and width that differ in their attention.

    python tools/measure_language_model.py
    python tools/measure_language_model.py --device cuda --dtype bfloat16 --batch 16

The shape is that of Zhai et al. 2021, arXiv 2105.14103, on enwik8: 12 and 24 layers, d 512, 8 heads, T 1024, and
windows of 32. The models of one depth share their parameters. A step is forward, cross entropy of the next token, and
backward; the optimizer is left out. Time is the median of interleaved runs by the wall clock. Memory is the most that
PyTorch allocates in a step beyond what is there before, and beside it the same with parameters, gradients and the two
moments of Adam. "softmax" is dot-product attention with explicit matrices, "sdpa" PyTorch's fused kernel.
"""

import argparse
import contextlib
import platform
import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from papa_lightning import TransformerConfig, TransformerModel, swap_attention
from papa_lightning.benchmark.backends import use_backend
from papa_lightning.benchmark.encoders import copy_of
from papa_lightning.benchmark.timing import interleaved_times, synchronizer
from papa_lightning.runtime import peak_bytes, threads_of_torch

#: By name: the attention of transformers that is used, or the kind that is swapped in with its options.
KINDS = {
    "softmax": ("eager", None, {}),
    "sdpa": ("sdpa", None, {}),
    "aft_local": ("sdpa", "aft_local", {"window": 32, "per_head": False, "inner": 64}),
    "aft_simple": ("sdpa", "aft_simple", {}),
    "aft_conv": ("sdpa", "aft_conv", {"window": 32}),
    "aft_full": ("sdpa", "aft_full", {"per_head": False, "inner": 64}),
}


def make_models(layers: int, args: argparse.Namespace) -> dict[str, PreTrainedModel]:
    """A model of each kind, on the same parameters."""
    torch.manual_seed(0)
    config = TransformerConfig(
        hidden_size=args.width,
        num_hidden_layers=layers,
        num_attention_heads=args.heads,
        max_position_embeddings=args.length,
        causal=True,
    )
    stock, models = TransformerModel(config).to(args.device), {}
    for name in args.kinds:
        backend, kind, options = KINDS[name]
        models[name] = copy_of(stock)
        use_backend(models[name], backend)
        if kind is not None:
            swap_attention(models[name], kind, max_length=args.length, options=options)
    return models


def training_step(model: PreTrainedModel, head: nn.Linear, args: argparse.Namespace) -> Callable[[], None]:
    """Forward and backward on random tokens; gradients are added to those that are there."""
    tokens = torch.randint(head.out_features, (args.batch, args.length + 1), device=args.device)
    half = torch.bfloat16 if args.dtype == "bfloat16" else None

    def step() -> None:
        with torch.autocast(args.device, dtype=half) if half else contextlib.nullcontext():
            logits = head(model(input_ids=tokens[:, :-1]).last_hidden_state)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
        torch.autograd.backward(loss)

    return step


def rows(layers: int, args: argparse.Namespace) -> list[tuple[int, str, float, float, float]]:
    """Layers, kind, seconds, bytes of a step, and bytes with parameters, gradients and moments."""
    device = torch.device(args.device)
    models = make_models(layers, args)
    head = nn.Linear(args.width, 256).to(device)
    steps = {name: training_step(model, head, args) for name, model in models.items()}
    times = interleaved_times(steps, args.repeats, warmup=1, synchronize=synchronizer(device))
    found = []
    for name, model in models.items():
        size = peak_bytes(steps[name], device) or float("nan")
        held = 16 * sum(one.numel() for one in (*model.parameters(), *head.parameters()) if one.requires_grad)
        found.append((layers, name, statistics.median(times[name]), size, size + held))
    return found


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 24])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="the first is compared with")
    parser.add_argument("--width", type=int, default=512, help="d")
    parser.add_argument("--heads", type=int, default=8, help="H")
    parser.add_argument("--length", type=int, default=1024, help="T")
    parser.add_argument("--batch", type=int, default=1, help="B")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16 is autocast")
    parser.add_argument("--repeats", type=int, default=3, help="runs that count")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.machine()
    with threads_of_torch(args.threads):
        print(f"{machine}, torch {torch.__version__}, {torch.get_num_threads()} threads, {args.dtype}, B {args.batch},")
        print(f"T {args.length}, d {args.width}, {args.heads} heads, median of {args.repeats}\n")
        print("| layers | attention | step, ms | speed | memory, MB | share | with parameters, Adam | share |")
        print("| --- " * 8 + "|")
        for layers in args.layers:
            found = rows(layers, args)
            first = found[0]
            for _, name, seconds, size, total in found:
                print(
                    f"| {layers} | {name} | {1e3 * seconds:.0f} | {first[2] / seconds:.2f} x | {size / 1e6:,.0f} | "
                    f"{size / first[3]:.2f} | {total / 1e6:,.0f} | {total / first[4]:.2f} |"
                )


if __name__ == "__main__":
    main()
