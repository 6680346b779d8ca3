"""Measure what packing saves: calibration, and the features of one choice of heads, packed and padded.

    python tools/measure_packing.py --encoder models/all-MiniLM-L6-v2 --data DATA --rows 10000
    python tools/measure_packing.py --encoder models/all-MiniLM-L6-v2 --data DATA --tasks sst2 mrpc --layouts segment

DATA is a folder with a folder of files for each task, as the data modules read them: cola, sst2, mrpc, mnli, wnut_17,
ud_english_ewt. For each task and layout both ways run in turn in one process, and times are medians. The choice is half
of the heads, those of the lowest variance. Padding at the end of a batch is cut in both ways. Memory is PyTorch's peak
allocation in a pass over the first rows. Errors are the largest differences between the two ways. "bound" is the ratio
of all slots to those with a real token.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from papa_lightning import (
    AttentionConstants,
    CoLADataModule,
    MNLIDataModule,
    MRPCDataModule,
    NERDataModule,
    POSDataModule,
    SequenceClassificationTask,
    SST2DataModule,
    TokenClassificationTask,
    calibrate,
    restore_attention,
    swap_attention,
)
from papa_lightning.benchmark.timing import interleaved_times
from papa_lightning.criteria import RankingInputs, rank_heads
from papa_lightning.datamodules.rows.layouts import cut_padding
from papa_lightning.datamodules.tokens import TokenDataModule
from papa_lightning.runtime import machine_facts, peak_bytes
from papa_lightning.study.features.features import store_features
from papa_lightning.study.workbench import RowBatches
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.text import Table

#: Data module, folder and length of each task.
TASKS: dict[str, tuple[Any, str, int]] = {
    "CoLA": (CoLADataModule, "cola", 64),
    "SST-2": (SST2DataModule, "sst2", 64),
    "MRPC": (MRPCDataModule, "mrpc", 96),
    "MNLI": (MNLIDataModule, "mnli", 128),
    "WNUT-17": (partial(NERDataModule, dataset="wnut_17"), "wnut_17", 96),
    "EWT": (POSDataModule, "ud_english_ewt", 96),
}


def make_task(data: Any, encoder: str, packing: bool) -> EncoderTask:
    """A task with the encoder, in evaluation mode."""
    made = TokenClassificationTask if isinstance(data, TokenDataModule) else SequenceClassificationTask
    task = made(encoder, num_labels=data.num_labels, max_length=data.max_length, packing=packing)
    return task.eval().requires_grad_(False)


def measure(name: str, layout: str, args: argparse.Namespace) -> tuple[str, ...]:
    """The row of a task in a layout."""
    module, folder, length = TASKS[name]
    data = module(tokenizer=args.encoder, data_dir=str(args.data / folder), max_length=length, layout=layout)
    data.setup("fit")
    rows = data.train_dataloader().dataset
    rows = rows.select(range(min(args.rows, len(rows))))
    tasks = {packing: make_task(data, args.encoder, packing) for packing in (True, False)}
    collate = cut_padding if layout == "plain" else None
    padded = DataLoader(rows, batch_size=args.batch_size, collate_fn=collate)
    batches: dict[bool, Any] = {True: RowBatches(rows, 1024), False: padded}
    found: dict[Any, Any] = {}
    place = Path(tempfile.mkdtemp())

    def calibration(packing: bool) -> Callable[[], object]:
        def run() -> None:
            encoder = tasks[packing].encoder
            found[packing] = calibrate(encoder, batches[packing], length, packing=packing)

        return run

    def features(packing: bool, chosen: Any = rows) -> Callable[[], object]:
        def run() -> None:
            shutil.rmtree(place / str(packing), ignore_errors=True)
            stored = store_features(
                tasks[packing], chosen, place / str(packing), budget_bytes=10**12, batch_size=args.batch_size
            )
            found["features", packing] = stored._table

        return run

    ways = (True, False)
    times = interleaved_times({("calibration", one): calibration(one) for one in ways}, args.repeats, args.warmup)
    chosen = rank_heads("variance", RankingInputs(tasks[True].encoder, constants=found[False])).first(0.5)
    constants: AttentionConstants = found[False]
    for task in tasks.values():
        swap_attention(task.encoder, "constant", constants=constants, heads=chosen)
    times |= interleaved_times({("features", one): features(one) for one in ways}, args.repeats, args.warmup)
    differences = (
        float((found[True].values - found[False].values).abs().max()),
        float((found["features", True] - found["features", False]).abs().max()),
    )
    few = rows.select(range(min(512, len(rows))))
    memory = {one: peak_bytes(features(one, few), torch.device("cpu")) for one in ways}
    for task in tasks.values():
        restore_attention(task.encoder)
    shutil.rmtree(place)
    medians = {key: statistics.median(own) for key, own in times.items()}
    fast, slow = (sum(medians[part, one] for part in ("calibration", "features")) for one in ways)
    real = sum(int(batch["attention_mask"].sum()) for batch in batches[True])
    return (
        name,
        layout,
        f"{len(rows):,}",
        f"{len(rows) * length / real:.2f}",
        *(f"{medians[key, one]:.1f}" for key in ("calibration", "features") for one in ways),
        f"{slow / fast:.2f}",
        *(f"{(memory[one] or 0) / 1e6:.0f}" for one in ways),
        *(f"{one:.1e}" for one in differences),
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--layouts", nargs="+", default=["segment", "plain"])
    parser.add_argument("--batch-size", type=int, default=32, help="sequences of a batch that is not packed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=0)
    args = parser.parse_args()
    columns: tuple[str, ...] = (
        "task",
        "layout",
        "rows",
        "bound",
        "calibration, packed (s)",
        "padded (s)",
        "features, packed (s)",
    )
    columns += ("padded (s)", "times as fast", "peak, packed (MB)", "padded (MB)", "error, averages", "error, features")
    by_name = {name.lower(): name for name in TASKS} | {folder: name for name, (_, folder, _) in TASKS.items()}
    chosen = [by_name[task.lower()] for task in args.tasks]
    table = []
    for task, layout in product(chosen, args.layouts):
        table.append(measure(task, layout, args))
        print(*table[-1], file=sys.stderr)  # it takes minutes
    print(Table(columns, table, left=2).markdown())
    facts = machine_facts(torch.device("cpu"))
    print(f"\nMedians of {args.repeats}, float32, {facts['threads']} threads, {facts['cpu']}, {facts['versions']}")


if __name__ == "__main__":
    main()
