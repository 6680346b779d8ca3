"""Let heads share constants, layer by layer, and see what that changes in the last hidden states.

    python tools/measure_merging.py --encoder models/all-MiniLM-L6-v2 --sentences train.jsonl

Sentences are read from JSON lines with a "sentence"; they are padded to the length of the constants. Errors are
relative: the norm of the difference over real tokens, divided by the norm of what it is compared to.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from papa_lightning import AttentionConstants, calibrate, restore_attention, swap_attention
from papa_lightning.calibration import folded_kinds, merge_constants

TOLERANCES = [0.2, 0.4, 0.6, 0.8, 1.0, None]


def read_batches(args: argparse.Namespace) -> list[dict[str, Tensor]]:
    """Batches of 50 sentences."""
    tokenizer = AutoTokenizer.from_pretrained(args.encoder, trust_remote_code=False)
    with Path(args.sentences).open(encoding="utf-8") as lines:
        sentences = [json.loads(line)["sentence"] for line in itertools.islice(lines, args.count)]
    return [
        dict(
            tokenizer(
                sentences[start : start + 50],
                padding="max_length",
                truncation=True,
                max_length=args.length,
                return_tensors="pt",
            )
        )
        for start in range(0, len(sentences), 50)
    ]


def hidden_states(encoder: nn.Module, batches: list[dict[str, Tensor]]) -> Tensor:
    """(sentences, T, d) of the last level, 0 at padding."""
    with torch.no_grad():
        return torch.cat([encoder(**batch).last_hidden_state * batch["attention_mask"][..., None] for batch in batches])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, relative to what is expected."""
    return float((found - expected).norm() / expected.norm())


def swapped(encoder: nn.Module, constants: AttentionConstants, batches: list[dict[str, Tensor]]) -> Tensor:
    """The hidden states with these constants in all heads."""
    swap_attention(encoder, folded_kinds(constants), constants=constants)
    try:
        return hidden_states(encoder, batches)
    finally:
        restore_attention(encoder)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--sentences", required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--length", type=int, default=48)
    args = parser.parse_args()
    encoder, batches = AutoModel.from_pretrained(args.encoder, trust_remote_code=False).eval(), read_batches(args)
    constants = calibrate(encoder, batches, args.length)
    dynamic, full = hidden_states(encoder, batches), swapped(encoder, constants, batches)
    print(f"All heads dynamic to all heads constant: {relative_error(full, dynamic):.2f}.\n")
    print("| tolerance | matrices by layer | folded layers | error of the constants | error to all constants |")
    print("| --- | --- | --- | --- | --- |")
    for tolerance in TOLERANCES:
        merged = merge_constants(constants, tolerance)
        noted = merged.metadata["merged"]
        matrices = ", ".join(str(len(clusters)) for clusters in noted["clusters"])
        error = sum(noted["error"]) / len(noted["error"])
        changed = relative_error(swapped(encoder, merged, batches), full)
        folds = folded_kinds(merged).count("folded")
        print(f"| {'none' if tolerance is None else tolerance} | {matrices} | {folds} | {error:.2f} | {changed:.2f} |")


if __name__ == "__main__":
    main()
