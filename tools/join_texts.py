"""Join the texts of the task data into one file of characters, for language modelling.

Writes the sentences of all .jsonl files of a folder, one per line, without duplicates. Rows are shuffled with a fixed
seed, so that the first 90 % and the rest have the same distribution; the texts of a row stay together. sst2/train.jsonl
is left out, because its phrases are parts of the sentences in sst2/train_sentences.jsonl. With --train_only, the texts
are those of files named train*.jsonl, without any that stand in another file too.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from papa_lightning.files.writing import write_atomically

#: Columns that hold text, as the data sets on the hub name them.
TEXTS = ("text", "sentence", "sentence1", "sentence2", "premise", "hypothesis")


#: Its rows are parts of the rows of another file.
LEFT_OUT = "sst2/train.jsonl"


def rows(files: Iterable[Path]) -> Iterator[tuple[str, ...]]:
    """The texts of each row of files."""
    for path in files:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found = [row[column] for column in TEXTS if column in row] or [" ".join(row["tokens"])]
            yield tuple(" ".join(text.split()) for text in found)


def joined(folder: Path, train_only: bool = False) -> str:
    """Every text once, one a line."""
    files = [path for path in sorted(folder.rglob("*.jsonl")) if path.relative_to(folder).as_posix() != LEFT_OUT]
    others = [path for path in files if train_only and not path.name.startswith("train")]
    shuffled = list(rows(path for path in files if path not in others))
    random.Random(0).shuffle(shuffled)
    excluded = {text for row in rows(others) for text in row}
    return "".join(f"{text}\n" for text in dict.fromkeys(chain(*shuffled)) if text not in excluded)


def main(arguments: list[str] | None = None) -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the .jsonl files of tasks")
    parser.add_argument("output", type=Path, help="the text file to write")
    parser.add_argument("--train_only", action="store_true", help="text that stands in training files alone")
    given = parser.parse_args(arguments)
    text = joined(given.folder, given.train_only)
    if not text:
        parser.error(f"folder is {str(given.folder)!r}, where no .jsonl file has text: pass the folder of the tasks.")
    write_atomically(given.output, text.encode())
    print(f"{given.output}: {len(text):,} characters, {len(set(text))} different ones")


if __name__ == "__main__":
    main()
