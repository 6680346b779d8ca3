"""Compare compact constants with full ones: the error by width, and the score of a probe.

    python tools/compact_errors.py --encoder DIR --data FOLDER --layout plain
    python tools/compact_errors.py --encoder DIR --data FOLDER --widths 2 16 --sentences 0 --seeds 0 1 2

All heads are constant. FOLDER holds train.jsonl and validation.jsonl of SST-2. The first table has, for the fits and
for simpler baselines, the relative error of the last hidden states of real tokens compared with the
full constants, the mean and the largest relative error of the matrices, and the share of stored numbers. The
second, if seeds are given, has the accuracy of a frozen probe with each, mean and range over the seeds.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from papa_lightning import (
    AttentionConstants,
    CompactConstants,
    SequenceClassificationTask,
    SST2DataModule,
    calibrate,
    restore_attention,
    swap_attention,
)
from papa_lightning.calibration import control_constants
from papa_lightning.calibration.compact.fit import fit_low_rank
from papa_lightning.study.features.features import store_features
from papa_lightning.study.training import ProbeSettings, train_probes

Constants = AttentionConstants | CompactConstants


def swap(encoder: torch.nn.Module, constants: Constants | None) -> None:
    """All heads with these constants; the original encoder with None."""
    restore_attention(encoder)
    if constants is not None:
        kind = "compact" if isinstance(constants, CompactConstants) else "constant"
        swap_attention(encoder, kind, constants=constants)


def rows_of(loader: Any) -> Any:
    """The rows that a loader of one of the package's data modules goes over: a Dataset of the datasets library."""
    return loader.dataset


def hidden_states(encoder: PreTrainedModel, batches: list[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """The last hidden states of all real tokens."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    with torch.inference_mode():
        states = [
            encoder(**{name: batch[name] for name in names if name in batch}).last_hidden_state[
                batch["attention_mask"].bool()
            ]
            for batch in batches
        ]
    return torch.cat(states)


def plainer(average: AttentionConstants, ranks: list[int]) -> dict[str, AttentionConstants]:
    """Baselines of a profile with columns: low rank, columns alone, a profile alone, and uniform weights."""
    counts, values = average.pair_counts, average.values
    totals = (counts * values).double()
    columns = totals.sum(dim=2, keepdim=True) / counts.sum(dim=0).clamp_min(1)
    length = average.max_length
    offsets = torch.arange(length)[:, None] - torch.arange(length) + length - 1
    flat = torch.zeros(*values.shape[:2], 2 * length - 1, dtype=torch.float64)
    sums = flat.index_add(2, offsets.flatten(), totals.flatten(2))
    seen = torch.zeros(2 * length - 1, dtype=torch.float64).index_add(0, offsets.flatten(), counts.flatten().double())
    found = {f"low rank {rank}": torch.stack([_low_rank(one, counts, rank) for one in values]) for rank in ranks}
    found["columns alone"] = columns.expand_as(values)
    found["profile alone"] = (sums / seen.clamp_min(1))[..., offsets]
    matrices = {name: replace(average, values=one.to(values).clone()) for name, one in found.items()}
    return {**matrices, "uniform": control_constants("uniform", average)}


def _low_rank(values: torch.Tensor, counts: torch.Tensor, rank: int) -> torch.Tensor:
    left, right = fit_low_rank(values, counts, rank)
    return left @ right.mT


def errors_table(args: argparse.Namespace) -> None:
    """Print the first table."""
    data = SST2DataModule(
        args.encoder, args.data, args.length, layout=args.layout, max_train_examples=args.sentences, eval_batch_size=32
    )
    data.setup("fit")
    rows = rows_of(data.train_dataloader()).with_format("torch")
    batches = [rows[first : first + 32] for first in range(0, len(rows), 32)]
    encoder = AutoModel.from_pretrained(args.encoder, trust_remote_code=False).eval()
    average = calibrate(encoder, batches, args.length)
    dynamic = hidden_states(encoder, batches)
    swap(encoder, average)
    full = hidden_states(encoder, batches)

    def line(name: str, constants: Constants, errors: str = f"{'':15}", share: float = 1.0) -> None:
        swap(encoder, constants)
        wrong = float((hidden_states(encoder, batches) - full).norm() / full.norm())
        print(f"{name:24} {wrong:.3f}  {errors}  {share:7.2%}", flush=True)

    print(f"layout {args.layout}, {len(rows)} sentences, T {args.length}, float32, torch {torch.__version__}")
    print(f"full constants against dynamic attention: {float((full - dynamic).norm() / dynamic.norm()):.3f}")
    print(f"{'':24} last   matrix mean max  numbers")
    whole = average.values.numel()
    fits: dict[str, CompactConstants] = {}
    for width in args.widths:
        fits[f"profile + columns, w {width}"] = CompactConstants.fit(average, width)
    for tolerance in args.tolerances:
        fits[f"within {tolerance}, w {args.widths[-1]}"] = CompactConstants.fit(
            average, args.widths[-1], args.ranks[-1], tolerance
        )
    for name, fitted in fits.items():
        errors = f"{float(fitted.errors.mean()):.3f}     {float(fitted.errors.max()):.3f}"
        line(name, fitted, f"{errors:15}", fitted.num_elements / whole)
    for name, matrices in plainer(average, args.ranks).items():
        line(name, matrices)


def scores_table(args: argparse.Namespace) -> None:
    """Print the second table."""
    data = SST2DataModule(
        args.encoder,
        args.data,
        args.length,
        layout=args.layout,
        max_train_examples=args.train,
        max_eval_examples=args.validation,
    )
    data.setup("fit")
    train, validation = rows_of(data.train_dataloader()), rows_of(data.val_dataloader())
    task = SequenceClassificationTask(args.encoder, 2, args.length).eval()
    rows = train.with_format("torch")
    average = calibrate(task.encoder, [rows[first : first + 32] for first in range(0, len(rows), 32)], args.length)
    choices: dict[str, Constants | None] = {"dynamic": None, "full constants": average}
    choices |= {f"profile + columns, w {width}": CompactConstants.fit(average, width) for width in args.widths}
    choices["uniform"] = control_constants("uniform", average)
    settings = ProbeSettings(max_epochs=args.epochs, learning_rate=args.learning_rate)
    print(f"accuracy, {len(train)} sentences to learn from, {len(validation)} to score, {settings}, seeds {args.seeds}")
    for name, constants in choices.items():
        swap(task.encoder, constants)
        with tempfile.TemporaryDirectory() as folder:
            features = {
                part: store_features(task, split, f"{folder}/{part}", dtype="float16", budget_bytes=2**31)
                for part, split in {"train": train, "validation": validation}.items()
            }
            probes = train_probes(task, features["train"], {"": features["validation"]}, args.seeds, settings)
        scores = [probe.scores["accuracy"] for probe in probes]
        print(f"{name:24} {sum(scores) / len(scores):.3f}  ({min(scores):.3f} to {max(scores):.3f})", flush=True)


def main() -> None:
    """Parse the arguments, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True, help="folder or name of a supported encoder")
    parser.add_argument("--data", required=True, help="folder with train.jsonl and validation.jsonl")
    parser.add_argument("--layout", default="segment", choices=["segment", "plain"])
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--sentences", type=int, default=500, help="for the table of errors; 0 leaves it out")
    parser.add_argument("--widths", type=int, nargs="+", default=[2, 4, 8, 16, 47])
    parser.add_argument("--ranks", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--tolerances", type=float, nargs="*", default=[0.3, 0.2, 0.1])
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="of the table of scores; none leaves it out")
    parser.add_argument("--train", type=int, default=800)
    parser.add_argument("--validation", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.sentences:
        errors_table(args)
    if args.seeds:
        scores_table(args)


if __name__ == "__main__":
    main()
