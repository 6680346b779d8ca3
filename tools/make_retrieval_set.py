"""Make a small set for retrieval from MNLI: sentences shall find the premises that entail them.

    python tools/make_retrieval_set.py data/mnli data/retrieval

Reads validation_matched.jsonl and train.jsonl, and writes the files that `RetrievalDataModule` reads. Documents are the
premises, each once; queries are the hypotheses that a document entails; both in the order of the files, and of at least
five words.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from papa_lightning.files.writing import write_atomically

FILES = ("validation_matched.jsonl", "train.jsonl")
ENTAILMENT = 0
WORDS = 5


def pairs(folder: Path) -> Iterator[tuple[str, str, int]]:
    """Premise, hypothesis and label of every row."""
    for name in FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            yield row["premise"].strip(), row["hypothesis"].strip(), row["label"]


def retrieval_set(rows: Iterable[tuple[str, str, int]], passages: int, queries: int) -> dict[str, str]:
    """The content of the files, by their names."""
    rows = [row for row in rows if len(row[0].split()) >= WORDS]
    premises = list(dict.fromkeys(premise for premise, _, _ in rows))[:passages]
    names = {premise: f"d{number}" for number, premise in enumerate(premises)}
    answers = [
        (hypothesis, names[premise])
        for premise, hypothesis, label in rows
        if label == ENTAILMENT and premise in names and len(hypothesis.split()) >= WORDS
    ]
    asked = [(f"q{number}", *answer) for number, answer in enumerate(answers[:queries])]
    return {
        "corpus.jsonl": lines({"_id": name, "title": "", "text": premise} for premise, name in names.items()),
        "queries.jsonl": lines({"_id": query, "text": text} for query, text, _ in asked),
        "qrels/dev.tsv": "".join(
            f"{query}\t{name}\t{score}\n"
            for query, name, score in [("query-id", "corpus-id", "score"), *((one[0], one[2], 1) for one in asked)]
        ),
    }


def lines(rows: Iterable[dict[str, str]]) -> str:
    """Rows as lines of JSON."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def main(arguments: list[str] | None = None) -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with validation_matched.jsonl and train.jsonl of MNLI")
    parser.add_argument("output", type=Path, help="the folder to write")
    parser.add_argument("--passages", type=int, default=3000, help="number of documents")
    parser.add_argument("--queries", type=int, default=500, help="number of queries")
    given = parser.parse_args(arguments)
    if lacking := [name for name in FILES if not (given.folder / name).is_file()]:
        parser.error(f"folder is {str(given.folder)!r}, which has no {lacking[0]}: pass the folder of MNLI's files.")
    for name, content in retrieval_set(pairs(given.folder), given.passages, given.queries).items():
        path = given.output / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.encode())


if __name__ == "__main__":
    main()
