"""Make the demo data of `DemoDataModule` from the source distribution of vaderSentiment 3.3.2.

Download the source distribution and run this script on it, packed or unpacked:

    pip download --no-deps --no-binary :all: vaderSentiment==3.3.2
    python tools/make_demo_data.py vaderSentiment-3.3.2.tar.gz papa_lightning/datamodules/data

Writes `train.jsonl`, `validation.jsonl` and `vader-LICENSE.txt`. The same input gives the same bytes.
"""

import argparse
import io
import json
import random
import re
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple

LICENSE = "LICENSE.txt"
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

MIN_RATING = 1.0  # of 4: closer to 0 the raters disagreed on the sign
LENGTHS = range(20, 181)  # characters: from a short sentence to about 64 tokens
SIZES = {"train": 2000, "validation": 500}
SEED = 2014


class Snippet(NamedTuple):
    """One film-review sentence with the mean of its human ratings, from -4 to 4."""

    sentence: str
    rating: float

    @property
    def label(self) -> int:
        """1 for a positive sentence, 0 for a negative one."""
        return int(self.rating > 0)


def read_sdist(path: Path, name: str) -> bytes:
    """Read the file `name` of a source distribution, given packed (tar.gz) or as the unpacked folder."""
    if path.is_dir():
        return (path / name).read_bytes()
    with tarfile.open(path) as archive:
        # The only top folder of a source distribution is named after the release.
        member = f"{archive.getnames()[0].split('/')[0]}/{name}"
        return read_member(archive, member)


def read_member(archive: tarfile.TarFile, name: str) -> bytes:
    """Read one file of an open archive."""
    file = archive.extractfile(name)
    if file is None:
        raise SystemExit(f"{name} is not a file of the archive: is this vaderSentiment 3.3.2?")
    return file.read()


def read_snippets(sdist: Path) -> list[Snippet]:
    """Read all rated film-review sentences: tab-separated number, mean rating and text."""
    with tarfile.open(fileobj=io.BytesIO(read_sdist(sdist, ARCHIVE))) as archive:
        lines = read_member(archive, SNIPPETS).decode("utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    return [Snippet(" ".join(text.split()), float(rating)) for _, rating, text in rows]


def key(sentence: str) -> str:
    """What two sentences share that differ only in case, spaces and punctuation."""
    return re.sub(r"\W+", "", sentence).lower()


def choose(snippets: list[Snippet]) -> dict[str, list[Snippet]]:
    """Keep clear sentences, drop duplicates, and draw balanced splits that share no sentence."""
    clear = {
        key(snippet.sentence): snippet
        for snippet in snippets
        if abs(snippet.rating) >= MIN_RATING and len(snippet.sentence) in LENGTHS
    }
    generator = random.Random(SEED)
    splits: dict[str, list[Snippet]] = {name: [] for name in SIZES}
    for label in (0, 1):
        pool = [snippet for snippet in clear.values() if snippet.label == label]
        generator.shuffle(pool)
        for name, size in SIZES.items():
            splits[name] += [pool.pop() for _ in range(size // 2)]
    for rows in splits.values():
        generator.shuffle(rows)
    return splits


def write(splits: dict[str, list[Snippet]], folder: Path) -> None:
    """Write one JSON Lines file a split, with the columns sentence, label and rating."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        columns = [{"sentence": row.sentence, "label": row.label, "rating": round(row.rating, 2)} for row in rows]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in columns]
        (folder / f"{name}.jsonl").write_bytes("".join(lines).encode("utf-8"))


def main(args: list[str] | None = None) -> None:
    """Read the command line and write the demo data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sdist", type=Path, help="vaderSentiment-3.3.2.tar.gz, or the folder that it unpacks to")
    parser.add_argument("folder", type=Path, help="where to write")
    options = parser.parse_args(args)
    write(choose(read_snippets(options.sdist)), options.folder)
    (options.folder / "vader-LICENSE.txt").write_bytes(read_sdist(options.sdist, LICENSE))


if __name__ == "__main__":
    main(sys.argv[1:])
