"""Compare fine-tuning of an encoder with converted attention: initialised from the calibrated average or at random.

    python tools/convert_to_aft.py --encoder models/all-MiniLM-L6-v2 --data_dir DATA/sst2 --steps 2000 --seeds 3

Every run has the same data in the same order, the same number of optimizer steps and the same probe for a given seed.
They differ in the attention:

    dynamic         the attention of the encoder
    constant        all heads constant, from the average
    from_constants  attention-free (--kind), its position bias from the logarithm of the average
    paper           the same kind, initialised as in its paper: small random position biases

The average is computed once, over the training data. The score is SST-2's accuracy after the last step. Prints a table
with t intervals over the seeds, and writes everything to --output as JSON.
"""

import argparse
import json
import math
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from scipy.stats import t as student_t

from papa_lightning import ConstantAttention, SequenceClassificationTask, SST2DataModule, calibrate
from papa_lightning.callbacks import SwappedAttention
from papa_lightning.encoders.loading import load_encoder
from papa_lightning.files.writing import write_atomically

STARTS = ("dynamic", "constant", "from_constants", "paper")


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="models/all-MiniLM-L6-v2")
    parser.add_argument("--data_dir", required=True, help="folder with train.jsonl and validation.jsonl of SST-2")
    parser.add_argument("--kind", default="aft_local", choices=("aft_full", "aft_local", "aft_conv"))
    parser.add_argument("--window", type=int, default=16, help="of aft_local and aft_conv")
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3, help="how many: 0, 1, ...")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_length", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--added_learning_rate", type=float, default=1e-2, help="of what the swap adds")
    parser.add_argument("--distillation", type=float, default=0.0, help="weight of the distance to the hidden states")
    parser.add_argument("--calibration_examples", type=int, default=2000)
    parser.add_argument("--max_eval_examples", type=int, default=None)
    parser.add_argument("--output", type=Path, default=Path("build/convert_to_aft.json"))
    return parser.parse_args()


def make_data(args: argparse.Namespace, max_train_examples: int | None = None) -> SST2DataModule:
    """SST-2 as the probe sees it."""
    sizes = {"max_length": args.max_length, "batch_size": args.batch_size, "max_eval_examples": args.max_eval_examples}
    return SST2DataModule(args.encoder, args.data_dir, max_train_examples=max_train_examples, **sizes)


def calibrate_once(args: argparse.Namespace) -> Path:
    """The constants file of all runs."""
    data = make_data(args, args.calibration_examples)
    data.prepare_data()
    data.setup("fit")
    constants = calibrate(load_encoder(args.encoder), data.train_dataloader(), args.max_length, progress=True)
    return constants.save(args.output.with_suffix(".safetensors"))


def callbacks_of(start: str, args: argparse.Namespace, constants: Path) -> list[L.Callback]:
    """What swaps the encoder of a run."""
    if start == "dynamic":
        return []
    if start == "constant":
        return [ConstantAttention(constants=str(constants))]
    options: dict[str, Any] = {"init": start}
    if args.kind != "aft_full":
        options["window"] = args.window
    file = str(constants) if start == "from_constants" else None
    return [SwappedAttention(args.kind, options, args.added_learning_rate, args.max_length, file)]


def run(start: str, seed: int, args: argparse.Namespace, constants: Path) -> dict[str, Any]:
    """Fine-tune once."""
    L.seed_everything(seed)
    task = SequenceClassificationTask(
        args.encoder,
        num_labels=2,
        max_length=args.max_length,
        freeze_encoder=False,
        pooling="mean",
        learning_rate=args.learning_rate,
        distillation=0.0 if start == "dynamic" else args.distillation,
    )
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    trainer = L.Trainer(
        max_steps=args.steps, callbacks=callbacks_of(start, args, constants), limit_val_batches=0, devices=1, **quiet
    )
    L.seed_everything(seed)  # the swap draws numbers, but the data come in the same order in every run
    data, began = make_data(args), time.perf_counter()
    trainer.fit(task, datamodule=data)
    seconds = time.perf_counter() - began
    judge = L.Trainer(devices=1, callbacks=callbacks_of(start, args, constants), **quiet)
    (scores,) = judge.validate(task, datamodule=data, verbose=False)
    added = sum(
        one.numel() for name, one in task.encoder.named_parameters() if ".papa." in f".{name}" and one.requires_grad
    )
    return {
        "start": start,
        "seed": seed,
        "accuracy": scores["val/accuracy"],
        "loss": scores["val/loss"],
        "train_loss": float(trainer.callback_metrics["train/loss"]),
        "steps": trainer.global_step,
        "seconds": seconds,
        "added_parameters": added,
    }


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half of the 95 % t interval; NaN for a single value."""
    half = math.nan
    if len(values) > 1:
        half = float(student_t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def table(runs: list[dict[str, Any]], starts: list[str]) -> str:
    """One row a start, as markdown."""
    rows = ["| start | accuracy, % | loss | added parameters | seconds a run |", "| --- | --- | --- | --- | --- |"]
    for start in starts:
        own = [one for one in runs if one["start"] == start]
        mean, half = interval([100 * one["accuracy"] for one in own])
        loss, spread = interval([one["loss"] for one in own])
        seconds = statistics.fmean(one["seconds"] for one in own)
        rows.append(
            f"| {start} | {mean:.2f} ± {half:.2f} | {loss:.3f} ± {spread:.3f} | {own[0]['added_parameters']} "
            f"| {seconds:.1f} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    arguments = parse()
    file = calibrate_once(arguments)
    results = [run(start, seed, arguments, file) for seed in range(arguments.seeds) for start in arguments.starts]
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    settings["encoder"], settings["data_dir"] = Path(arguments.encoder).name, Path(arguments.data_dir).name
    settings["output"] = arguments.output.name
    measured = {
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else platform.machine(),
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers")},
    }
    content = {"settings": settings, "measured_with": measured, "runs": results}
    write_atomically(arguments.output, json.dumps(content, indent=1).encode())
    print(table(results, arguments.starts))
