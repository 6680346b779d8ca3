"""Latency of a server of embeddings against what it is asked for: Poisson arrivals of sentences of real lengths.

    python serve.py exported --text sentences.txt
    python serve.py exported --text sentences.txt --runtime onnxruntime --requests 2000 --shares 0.3 0.6 0.9

The folder is one of `papa export`, with its tokenizer, or a plain encoder of transformers. How many requests a second
the server answers when all wait at once is measured first; loads are shares of that. Latency counts from the time at
which a request was to arrive, so that a queue that grows is seen. Run it on a machine with nothing else to do.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from server import Array, Batching, Forward, OnnxForward, Row, Server, TorchForward, by_tokens, in_order
from transformers import AutoModel, AutoTokenizer

from papa_lightning import load_exported_encoder
from papa_lightning.text import Table


@dataclass(frozen=True)
class Load:
    """What a server did under one load: requests a second that were offered, latencies in seconds, and sums."""

    offered: float
    latencies: Array
    seconds: float
    tokens: int
    batches: Sequence[tuple[int, int]]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def cells(self) -> tuple[str, ...]:
        p50, p99 = (1e3 * float(np.percentile(self.latencies, one)) for one in (50, 99))
        size = len(self.latencies) / len(self.batches)
        real = self.tokens / sum(tokens for _, tokens in self.batches)
        offered = "all at once" if np.isinf(self.offered) else f"{self.offered:.1f}"
        numbers = (offered, f"{self.rate:.1f}", f"{self.tokens / self.seconds:.0f}")
        return (*numbers, f"{p50:.1f}", f"{p99:.1f}", f"{size:.1f}", f"{100 * (1 - real):.0f} %")


COLUMNS = ("offered/s", "answered/s", "tokens/s", "p50 ms", "p99 ms", "requests a batch", "padding")


def offer(forward: Forward, batching: Batching, rows: Sequence[Row], rate: float, seed: int = 0) -> Load:
    """Send rows to a server at random times, so many a second in the mean; infinitely many: all at once."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=len(rows))
    arrivals, finished = np.cumsum(gaps), np.zeros(len(rows))

    def note(place: int) -> None:
        finished[place] = time.perf_counter()

    with Server(forward, batching, most_waiting=len(rows) + 1) as server:
        start = time.perf_counter()
        futures: list[Future[Array]] = []
        for place, (row, arrival) in enumerate(zip(rows, arrivals, strict=True)):
            time.sleep(max(0.0, start + arrival - time.perf_counter()))
            futures.append(server.submit(row))
            futures[-1].add_done_callback(lambda _, place=place: note(place))  # type: ignore[misc]
        for future in futures:
            future.result()
    latencies = finished - start - arrivals
    return Load(rate, latencies, float(finished.max() - start), sum(map(len, rows)), server.batches)


def measure(
    forward: Forward, batching: Batching, rows: Sequence[Row], shares: Sequence[float], seed: int = 0
) -> list[Load]:
    """The most that a server answers, and what it does at shares of that load."""
    offer(forward, batching, rows[: len(rows) // 4 or 1], float("inf"))  # memory and threads are got ready
    most = offer(forward, batching, rows, float("inf"))
    return [*(offer(forward, batching, rows, share * most.rate, seed) for share in shares), most]


def read_lines(text: Path, prefix: str = "") -> list[str]:
    """The lines of a text that are not empty."""
    lines = [prefix + line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise SystemExit(f"{text} has no lines: pass a file with a sentence a line.")
    return lines


def load_forward(args: argparse.Namespace) -> tuple[Forward, int]:
    """The forward of a folder in a runtime, and the most tokens that a row may have."""
    facts = args.folder / "papa.json"
    slots = json.loads(facts.read_text())["max_length"] if facts.exists() else 512
    longest = min(slots, args.max_length or slots)
    if args.runtime == "onnxruntime":
        return OnnxForward(args.folder / "model.onnx", args.layout, slots), longest
    encoder = load_exported_encoder(args.folder) if facts.exists() else AutoModel.from_pretrained(args.folder).eval()
    return TorchForward(encoder, args.layout, slots), longest


def main() -> list[Load]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="a sentence a line")
    parser.add_argument("--runtime", choices=["torch", "onnxruntime"], default="torch")
    parser.add_argument("--layout", choices=["plain", "segment"], default="plain", help="that of the calibration")
    parser.add_argument("--max_length", type=int, help="tokens of a row at most; by default those of the constants")
    parser.add_argument("--batching", choices=["tokens", "order"], default="tokens")
    parser.add_argument("--tokens", type=int, default=1536, help="of a batch at most, with its padding")
    parser.add_argument("--rows", type=int, default=32, help="of a batch at most, where batching is by order")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75, 0.9], help="of the highest load")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    forward, length = load_forward(args)
    lines = read_lines(args.text)
    lines = [lines[place % len(lines)] for place in range(args.requests)]
    rows = AutoTokenizer.from_pretrained(args.folder)(lines, truncation=True, max_length=length)["input_ids"]
    batching = by_tokens(args.tokens) if args.batching == "tokens" else in_order(args.rows)
    loads = measure(forward, batching, rows, args.shares, args.seed)
    title = f"{args.folder.name} in {args.runtime}, {args.threads} threads, {args.requests} requests a load"
    print(Table(COLUMNS, [load.cells() for load in loads], left=0, title=title))
    return loads


if __name__ == "__main__":
    main()
