"""Time an encoder with all heads constant against the same encoder as it comes, in one process.

    python tools/time_constant_encoder.py --hidden 384 --layers 12 --batch 16 --length 128
    python tools/time_constant_encoder.py --type deberta-v2

Both encoders have the same random weights, float32, eval mode, no gradients, no padding unless asked for. Runs are
interleaved, after a warm-up, and the medians of the times are compared. Beside it stands the bound of the arithmetic: a
dense layer costs 12 d + 2 T multiply-accumulates per token and channel, and constant heads save 2 d + T of them. With
scores between contents and P relative positions (DeBERTa) it costs 2 P more, and constant heads save these too. For
other types the bound is that of BERT's layer.
"""

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from papa_lightning import AttentionConstants, swap_attention


def interleaved_medians(functions: dict[str, Callable[[], object]], repeats: int, warmup: int = 3) -> dict[str, float]:
    """Median seconds of each function; one run of each in turn, so that a drift of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(warmup + repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


#: What makes an encoder of this type the one that people know; other types take the common sizes only.
OPTIONS = {
    "bert": {"attn_implementation": "sdpa"},
    "deberta": {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 256,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
    },
}


def build(args: argparse.Namespace) -> PreTrainedModel:
    """An encoder with random weights."""
    config = AutoConfig.for_model(
        args.type,
        vocab_size=1000,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.hidden,
        max_position_embeddings=max(512, args.length),
        pad_token_id=0,
        **OPTIONS.get(args.type, {}),
    )
    return AutoModel.from_config(config).eval()


def bound_of(args: argparse.Namespace) -> float:
    """How many times as fast the arithmetic allows all heads constant to be."""
    positions = {"deberta": 2 * min(args.length, 512), "deberta-v2": 2 * 256}.get(args.type, 0)
    dense = 12 * args.hidden + 2 * args.length + 2 * positions
    return dense / (dense - 2 * args.hidden - args.length - 2 * positions)


def main() -> None:
    """Parse the arguments, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="bert", help="model_type of a supported encoder of text")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--padding", action="store_true", help="let the sequences end at random places")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=11)
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    stock = build(args)
    constant = copy.deepcopy(stock)
    shape = (args.layers, args.heads, args.length, args.length)
    values = torch.softmax(torch.randn(shape), dim=-1)
    swap_attention(constant, "constant", constants=AttentionConstants(values, torch.ones(shape[2:])))

    mask = torch.ones(args.batch, args.length, dtype=torch.long)
    if args.padding:
        ends = torch.randint(args.length // 2, args.length + 1, (args.batch, 1))
        mask = (torch.arange(args.length) < ends).long()
    inputs = {"input_ids": torch.randint(1, 1000, mask.shape), "attention_mask": mask}
    with torch.inference_mode():
        medians = interleaved_medians(
            {"stock": lambda: stock(**inputs), "constant": lambda: constant(**inputs)}, args.repeats
        )
    print(
        f"{args.type}, batch {args.batch} x {args.length}, hidden {args.hidden}, {args.layers} layers, "
        f"{args.heads} heads, padding {args.padding}, float32, {args.threads} threads, torch {torch.__version__}, "
        f"{platform.machine()}, median of {args.repeats}: stock {1e3 * medians['stock']:.1f} ms, all constant "
        f"{1e3 * medians['constant']:.1f} ms, {medians['stock'] / medians['constant']:.2f}x; "
        f"bound {bound_of(args):.2f}x"
    )


if __name__ == "__main__":
    main()
