"""Train encoders of graded quality that are alike in everything else: one student of an encoder, kept at many points.

    python tools/join_texts.py data text.txt
    python tools/train_graded_encoders.py models/all-MiniLM-L6-v2 text.txt graded --tokens 2000000

The student has the shape, the tokenizer and the embeddings of the encoder, and random weights in all layers. It learns
the hidden states of every layer, on the lines of the texts:

    loss = mean over layers, real tokens and channels of (student - encoder)^2

Masked language modelling would be closer to pretraining, but with a million words a small model hardly learns more
than the frequencies of words: tried with 4 layers of 192 channels, its loss fell from 9.04 to 6.49 in three million
tokens and not further in six, where the frequencies alone give 6.97.

The first point is the random weights; of the others, each has seen twice the tokens of the one before, and the last
one all of them. Each is a folder `step-000000` with tokenizer and encoder, as `papa study` takes them, and a line in
`points.csv`, with the loss on every 20th line, which is held out. The learning rate is constant after a warm-up up to
the second point, so that no point is the end of a schedule. Equal arguments and threads give equal encoders on a CPU.
"""

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from papa_lightning.encoders.loading import load_encoder
from papa_lightning.files.writing import staged_folder

#: Lines of which the batches are sorted by length, so that they have little padding.
_POOL = 2048


def random_student(encoder: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy of an encoder with random weights in all layers; only these learn."""
    torch.manual_seed(seed)
    student = copy.deepcopy(encoder)
    fresh = type(encoder)(encoder.config)
    layers, random = student.get_submodule("encoder"), fresh.get_submodule("encoder")
    layers.load_state_dict(random.state_dict())
    student.requires_grad_(False)
    layers.requires_grad_(True)
    return student


def batches(
    lines: list[str], args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Tensor]]:
    """Batches of shuffled lines without end, of about the same length each."""
    generator = torch.Generator().manual_seed(args.seed)
    while True:
        order = torch.randperm(len(lines), generator=generator).tolist()
        for start in range(0, len(order), _POOL):
            pool = sorted(order[start : start + _POOL], key=lambda number: len(lines[number]))
            parts = [pool[first : first + args.batch] for first in range(0, len(pool), args.batch)]
            for number in torch.randperm(len(parts), generator=generator).tolist():
                yield encode([lines[one] for one in parts[number]], args, tokenizer)


def encode(lines: list[str], args: argparse.Namespace, tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """Input ids and mask (B, T) of lines."""
    found = tokenizer(lines, truncation=True, max_length=args.length, padding=True, return_tensors="pt")
    return {name: found[name].to(args.device) for name in ("input_ids", "attention_mask")}


def distance(student: PreTrainedModel, encoder: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared difference of the hidden states of the real tokens, over all layers."""
    with torch.no_grad():
        wanted = encoder(**batch, output_hidden_states=True).hidden_states[1:]
    found = student(**batch, output_hidden_states=True).hidden_states[1:]
    real = batch["attention_mask"].bool()
    pairs = zip(found, wanted, strict=True)
    return torch.stack([(one[real] - other[real]).square().mean() for one, other in pairs]).mean()


def train(
    args: argparse.Namespace, encoder: PreTrainedModel, lines: list[str], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, int, PreTrainedModel]]:
    """The student at each point, with the number of its steps and of the tokens that it has seen."""
    student, seen = random_student(encoder, args.seed), 0
    points = [args.tokens / 2**halvings for halvings in reversed(range(args.points - 1))]
    learned = [one for one in student.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=args.learning_rate)
    yield 0, 0, student
    for step, batch in enumerate(batches(lines, args, tokenizer), start=1):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1.0, (seen + 1) / points[0])
        torch.autograd.backward(distance(student, encoder, batch))
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seen += int(batch["attention_mask"].sum())
        if seen >= points[0]:
            yield step, seen, student
            del points[0]
            if not points:
                return


def parse(words: list[str] | None) -> argparse.Namespace:
    """The arguments, of which those that cannot be met are refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="name or folder of the encoder, of BERT's kind")
    parser.add_argument("text", type=Path, help="text file, such as that of join_texts.py")
    parser.add_argument("output", type=Path, help="new folder for the encoders")
    parser.add_argument("--tokens", type=int, default=2_000_000, help="real tokens of the whole training")
    parser.add_argument("--points", type=int, default=8, help="encoders to keep, at least 2")
    parser.add_argument("--length", type=int, default=64, help="T, tokens at which lines are cut")
    parser.add_argument("--batch", type=int, default=32, help="B, lines of a step")
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(words)
    if args.points < 2:
        parser.error("--points must be at least 2")
    if args.output.exists() and any(args.output.iterdir()):
        parser.error(f"{args.output} has files, which could be of another training: pass a new folder")
    return args


def main(words: list[str] | None = None) -> None:
    """Train, and write each point when it is reached."""
    args = parse(words)
    lines = [line for line in args.text.read_text(encoding="utf-8").splitlines() if line.strip()]
    held_out, learned = lines[19::20], [line for number, line in enumerate(lines) if number % 20 != 19]
    if not held_out:
        raise SystemExit(f"{args.text} has {len(lines)} lines, of which every 20th is held out: pass more.")
    encoder = load_encoder(args.encoder).to(args.device).eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    held_out = held_out[:512]
    kept = [encode(held_out[at : at + args.batch], args, tokenizer) for at in range(0, len(held_out), args.batch)]
    print(f"{len(lines):,} lines, {sum(len(line.split()) for line in lines):,} words")
    rows, start = [], time.perf_counter()
    for step, tokens, student in train(args, encoder, learned, tokenizer):
        with torch.no_grad():
            losses = [distance(student, encoder, batch).item() for batch in kept]
        with staged_folder(args.output / f"step-{step:06}") as folder:
            student.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        rows.append({"step": step, "tokens": tokens, "loss": sum(losses) / len(losses)})
        pd.DataFrame(rows).to_csv(args.output / "points.csv", index=False)
        print({**rows[-1], "seconds": round(time.perf_counter() - start)}, flush=True)


if __name__ == "__main__":
    main()
