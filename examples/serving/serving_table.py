"""What constants, folding, int8 and packing give a served encoder, alone and together, with the score beside.

    python serving_table.py models/all-MiniLM-L6-v2 --text sentences.txt --pairs sts_dev.csv
    python serving_table.py intfloat/e5-small-v2 --prefix "query: " --text sentences.txt --pairs sts_dev.csv

Lines of the text are calibrated on first, and then served. The pairs are a CSV file with the columns sentence1,
sentence2 and score; the score is Spearman's correlation of the cosines of mean embeddings with them. All that is timed
runs in turn on the same sentences. int8 is onnxruntime's dynamic quantization, in that runtime alone.
"""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from serve import read_lines
from server import Forward, OnnxForward, Row, TorchForward, by_tokens, in_order
from transformers import AutoTokenizer

from papa_lightning import (
    AttentionConstants,
    HeadRanking,
    calibrate,
    export_encoder,
    load_exported_encoder,
    swap_attention,
)
from papa_lightning.benchmark.runtimes import OnnxRuntime, stock_onnx
from papa_lightning.benchmark.timing import interleaved_times
from papa_lightning.calibration import merge_constants
from papa_lightning.criteria import RankingInputs, rank_heads
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.export import export_onnx
from papa_lightning.runtime import machine_facts
from papa_lightning.text import Table


@dataclass(frozen=True)
class Variant:
    """A row of the table: runtime, attention, whether weights are int8, and whether batches are packed by tokens."""

    runtime: str
    attention: str
    int8: bool = False
    packed: bool = False

    @property
    def file(self) -> "Variant":
        """What the file of the variant is: the same for packed and other batches."""
        return Variant(self.runtime, self.attention, self.int8)

    def __str__(self) -> str:
        parts = [self.attention] * (self.attention != "stock") + ["int8"] * self.int8 + ["packing"] * self.packed
        return ", ".join(parts) or "stock"


#: Attention -> share of constant heads, and kind.
ATTENTION = {"half constant": (0.5, "constant"), "all constant": (1.0, "constant"), "folded": (1.0, "folded")}


def variants(runtimes: Sequence[str]) -> list[Variant]:
    """Each measure alone, and all together: packing with each attention, and with int8 where the runtime has it."""
    found = []
    for runtime in runtimes:
        int8 = runtime == "onnxruntime"
        found += [Variant(runtime, name) for name in ("stock", *ATTENTION)]
        found += [Variant(runtime, "stock", int8=True)] * int8 + [Variant(runtime, "stock", packed=True)]
        found += [Variant(runtime, name, int8, packed=True) for name in ATTENTION]
    return found


def encoders_of(args: argparse.Namespace, lines: Sequence[str], tokenizer: Any, folder: Path) -> dict[str, Any]:
    """The stock encoder, and those of ATTENTION as an export has them."""
    stock: Any = load_encoder(args.encoder)
    stock.eval()
    if args.constants is None:
        parts = [lines[first : first + 32] for first in range(0, len(lines), 32)]
        options = {"padding": True, "truncation": True, "max_length": args.max_length, "return_tensors": "pt"}
        constants = calibrate(stock, [dict(tokenizer(part, **options)) for part in parts], args.max_length).filled()
    else:
        constants = AttentionConstants.load(args.constants).filled()
    if args.ranking is None:
        ranking = rank_heads("variance", RankingInputs(stock, constants=constants))
    else:
        ranking = HeadRanking.load(args.ranking)
    found = {"stock": stock}
    for name, (share, kind) in ATTENTION.items():
        own = merge_constants(constants) if kind == "folded" else constants
        swapped = swap_attention(copy.deepcopy(stock), kind, heads=ranking.first(share), constants=own)
        found[name] = load_exported_encoder(export_encoder(swapped, folder / name))
    return found


def onnx_file(encoder: Any, variant: Variant, folder: Path, row: Row) -> Path:
    """The ONNX file of a variant; the stock encoder with the attention that is the fastest on a row."""
    whole = folder / f"{variant.attention}.onnx"
    if not whole.exists() and variant.attention == "stock":
        files, encoder = {}, copy.deepcopy(encoder)  # torch serves the other one, with its own attention
        for attention in OnnxRuntime.stock_attention:
            encoder.set_attn_implementation(attention)
            path = stock_onnx(encoder, folder / f"{attention}.onnx")
            files[path] = partial(OnnxForward(path), [row])
        times = interleaved_times(files, repeats=15, warmup=3)
        min(times, key=lambda path: float(np.median(times[path]))).rename(whole)
    elif not whole.exists():
        export_onnx(encoder, whole)
    if not variant.int8:
        return whole
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = folder / f"{variant.attention}.int8.onnx"
    quantize_dynamic(whole, quantized, weight_type=QuantType.QInt8)
    return quantized


def forwards_of(
    wanted: Sequence[Variant], encoders: Mapping[str, Any], folder: Path, row: Row
) -> dict[Variant, tuple[Forward, int]]:
    """The forward of each file, and its bytes."""
    found: dict[Variant, tuple[Forward, int]] = {}
    for one in dict.fromkeys(variant.file for variant in wanted):
        encoder = encoders[one.attention]
        if one.runtime == "onnxruntime":
            path = onnx_file(encoder, one, folder, row)
            found[one] = OnnxForward(path), path.stat().st_size
        else:
            found[one] = TorchForward(encoder), sum(held.nbytes for held in encoder.state_dict().values())
    return found


def latencies(forwards: Mapping[Variant, Forward], rows: Sequence[Row]) -> dict[Variant, list[float]]:
    """Seconds of single sentences, each in all forwards in turn."""
    runs = {(place, one): partial(forwards[one], [row]) for place, row in enumerate(rows) for one in forwards}
    times = interleaved_times(runs, repeats=1, warmup=1)
    return {one: [seconds for key, own in times.items() if key[1] == one for seconds in own] for one in forwards}


def embed(forward: Forward, rows: Sequence[Row], packed: bool) -> np.ndarray[Any, Any]:
    """Embeddings of all rows, in batches packed by tokens or of 32 in their order."""
    batches = (by_tokens(1536) if packed else in_order(32))([len(row) for row in rows])
    order = [place for batch in batches for place in batch]
    found: np.ndarray[Any, Any] = np.concatenate([forward([rows[place] for place in batch]) for batch in batches])
    return found[np.argsort(order)]


def read_pairs(path: Path, prefix: str) -> pd.DataFrame:
    """The pairs of a CSV file, with a prefix in front of each sentence."""
    columns = ["sentence1", "sentence2", "score"]
    pairs = pd.read_csv(path)
    if not set(columns) <= set(pairs):
        raise SystemExit(f"{path} has the columns {list(pairs)}, but must have {columns}.")
    return pairs[columns].assign(**{name: prefix + pairs[name].astype(str) for name in columns[:2]})


def spearman(pairs: pd.DataFrame, tokenize: Callable[[Sequence[str]], list[Row]]) -> Callable[[Forward], float]:
    """The score of a forward on pairs of sentences."""
    sides = [tokenize(pairs[name].tolist()) for name in ("sentence1", "sentence2")]

    def score(forward: Forward) -> float:
        left, right = (embed(forward, rows, packed=True) for rows in sides)
        cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        return float(spearmanr(cosines, pairs["score"]).statistic)

    return score


def make_table(
    wanted: Sequence[Variant],
    forwards: Mapping[Variant, tuple[Forward, int]],
    rows: Sequence[Row],
    score: Callable[[Forward], float] | None = None,
    repeats: int = 7,
) -> Table:
    """The table: size, latency of a sentence, sentences a second, and a score where a function for it is given."""
    alone = latencies({variant: forward for variant, (forward, _) in forwards.items()}, rows)
    runs = {variant: partial(embed, forwards[variant.file][0], rows, variant.packed) for variant in wanted}
    seconds = interleaved_times(runs, repeats, warmup=1)
    scores = {variant: score(forward) for variant, (forward, _) in forwards.items()} if score else {}
    cells = []
    for variant in wanted:
        p50, p99 = (1e3 * float(np.percentile(alone[variant.file], one)) for one in (50, 99))
        speed = len(rows) / float(np.median(seconds[variant]))
        size = forwards[variant.file][1] / 1e6
        numbers = [f"{size:.1f}", f"{p50:.2f}", f"{p99:.2f}", f"{speed:.1f}"]
        cells.append((variant.runtime, str(variant), *numbers, *([f"{scores[variant.file]:.4f}"] if score else [])))
    columns = ("runtime", "what", "MB", "p50 ms", "p99 ms", "sentences/s")
    return Table((*columns, *["Spearman"] * bool(score)), cells, left=2)


def main() -> Table:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder")
    parser.add_argument("--text", type=Path, required=True, help="a sentence a line")
    parser.add_argument("--pairs", type=Path, help="CSV with sentence1, sentence2, score; without it there is no score")
    parser.add_argument("--prefix", default="", help='in front of each sentence, as "query: " of e5')
    parser.add_argument(
        "--constants", type=Path, help="a file, calibrated in the plain layout; else made from the text"
    )
    parser.add_argument("--ranking", type=Path, help="which half of the heads; by default those of the lowest variance")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--calibrated", type=int, default=1000, help="lines that are calibrated on")
    parser.add_argument("--served", type=int, default=300, help="lines after those that are served")
    parser.add_argument("--runtimes", nargs="+", choices=["torch", "onnxruntime"], default=["torch", "onnxruntime"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lines, tokenizer = read_lines(args.text, args.prefix), AutoTokenizer.from_pretrained(args.encoder)

    def tokenize(texts: Sequence[str]) -> list[Row]:
        ids: list[Row] = tokenizer(list(texts), truncation=True, max_length=args.max_length)["input_ids"]
        return ids

    served = lines[args.calibrated :][: args.served] or lines[: args.served]
    score = None
    if args.pairs is not None:
        score = spearman(read_pairs(args.pairs, args.prefix), tokenize)
    with tempfile.TemporaryDirectory() as name:
        encoders = encoders_of(args, lines[: args.calibrated], tokenizer, Path(name))
        wanted, rows = variants(args.runtimes), tokenize(served)
        forwards = forwards_of(wanted, encoders, Path(name), rows[0])
        table = make_table(wanted, forwards, rows, score, args.repeats)
    print(table.markdown())
    facts = machine_facts(torch.device("cpu"))
    about = f"{len(rows)} sentences of {np.mean([len(row) for row in rows]):.1f} tokens in the mean"
    print(f"\n{about}; {facts['cpu']}, {facts['threads']} threads, {facts['versions']}", file=sys.stderr)
    return table


if __name__ == "__main__":
    main()
