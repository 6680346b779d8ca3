"""Join the texts of the task data into one file of characters, for language modelling.

Writes the sentences of all .jsonl files of a folder, one per line, without duplicates. Rows are shuffled with a fixed
seed, so that the first 90 % and the rest have the same distribution; the texts of a row stay together. sst2/train.jsonl
is left out, because its phrases are parts of the sentences in sst2/train_sentences.jsonl.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from papa_lightning.files.writing import write_atomically

#: Columns that hold text, as the data sets on the hub name them.
TEXTS = ("text", "sentence", "sentence1", "sentence2", "premise", "hypothesis")


#: Its rows are parts of the rows of another file.
LEFT_OUT = "sst2/train.jsonl"


def rows(folder: Path) -> Iterator[tuple[str, ...]]:
    """The texts of each row of all files, in the order of the files' names."""
    for path in sorted(folder.rglob("*.jsonl")):
        if path.relative_to(folder).as_posix() == LEFT_OUT:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found = [row[column] for column in TEXTS if column in row] or [" ".join(row["tokens"])]
            yield tuple(" ".join(text.split()) for text in found)


def joined(folder: Path) -> str:
    """Every text once, one a line."""
    shuffled = list(rows(folder))
    random.Random(0).shuffle(shuffled)
    return "".join(f"{text}\n" for text in dict.fromkeys(text for row in shuffled for text in row))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the .jsonl files of tasks")
    parser.add_argument("output", type=Path, help="the text file to write")
    arguments = parser.parse_args()
    text = joined(arguments.folder)
    write_atomically(arguments.output, text.encode())
    print(f"{arguments.output}: {len(text):,} characters, {len(set(text))} different ones")
