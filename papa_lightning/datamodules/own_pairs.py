"""Pairs of one's own with a similarity: columns and rows for a study of embeddings."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from papa_lightning.checks import number_of
from papa_lightning.datamodules.own_tables import check_column, longest_column, write_frames
from papa_lightning.datamodules.reading.files import find_split_files, missing_split, read_split
from papa_lightning.errors import DataError, PapaError

#: Share of the pairs that is averaged over where there is no file for validation, and the seed that draws them.
_SHARE, _SEED = 0.3, 0
_FEWEST = 10


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts, each complete, with their similarity.

    Args:
        train: Pairs over whose texts attention is averaged: columns of the texts and of the similarity.
        validation: Pairs that are judged.
        texts: Columns of the texts.
        score: Column of the similarity.
        notes: Lines that say what was chosen and left out.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    texts: tuple[str, str]
    score: str
    notes: list[str]

    def words(self, share: float) -> float:
        """Number of words of a text that this share of the texts does not exceed."""
        texts = pd.concat([self.validation[name] for name in self.texts])
        return float(texts.str.split().str.len().quantile(share))


def read_pairs(path: Path, text: str | None, text_pair: str | None, label: str | None, score: str | None) -> Pairs:
    """Read pairs with their similarity; without a file for validation, most of them are drawn for it.

    Args:
        path: A file that data modules read, or a folder with such files, `train` and perhaps `validation`.
        text: Column of the first text; None: the column with the longest texts.
        text_pair: Column of the second text.
        label: Must be None.
        score: Column of the similarity.

    Raises:
        PapaError: When columns are not named, missing, or not what they should be, or there are too few pairs.
    """
    if label is not None or text_pair is None or score is None:
        given = f"label is {label!r}" if label is not None else "text_pair is None"
        raise PapaError(f"score is {score!r}, but {given}: pass --text, --text_pair and --score, without a label.")
    files = find_split_files(path, ("train", "validation")) if path.is_dir() else {"train": path}
    if "train" not in files:
        raise missing_split(path, "train")
    train, texts, notes = _read(files["train"], text, text_pair, score)
    if "validation" in files:
        validation, *_ = _read(files["validation"], texts[0], text_pair, score)
    else:
        order = np.random.default_rng(_SEED).permutation(len(train))
        own = max(1, round(_SHARE * len(train)))
        train, validation = train.iloc[order[:own]], train.iloc[order[own:]]
    rows = f"pairs    {len(train):,} to average over, {len(validation):,} to judge"
    return Pairs(train, validation, texts, score, [*notes, rows])


def write_pairs(folder: Path, pairs: Pairs, replace_old: bool = False) -> None:
    """Write a folder with the files `train.jsonl` and `validation.jsonl`."""
    write_frames(folder, pairs.train, pairs.validation, replace_old)


def _read(path: Path, text: str | None, text_pair: str, score: str) -> tuple[pd.DataFrame, tuple[str, str], list[str]]:
    """The complete pairs of a file, its columns of texts, and lines for columns and for pairs that were left out."""
    rows, source = read_split(path), repr(str(path))
    for argument, name in (("text", text), ("text_pair", text_pair), ("score", score)):
        if name is not None:
            check_column(rows, argument, name, source)
    frame = rows.to_pandas()
    texts = (text or longest_column(rows, frame, (text_pair, score), source), text_pair)
    if len({*texts, score}) < 3:
        raise DataError(f"text, text_pair and score are {[*texts, score]} of {source}: name different columns.")
    numbers = frame[score].map(lambda value: float(found) if (found := number_of(value)) is not None else np.nan)
    empty = frame[list(texts)].apply(lambda column: column.fillna("").str.strip() == "").any(axis=1)
    kept = frame[list(texts)].assign(**{score: numbers})[~empty & numbers.notna()]
    if len(kept) < _FEWEST or kept[score].nunique() < 2:
        raise DataError(
            f"{source} has {len(kept)} pairs with two texts and a number in {score!r}, and {kept[score].nunique()} "
            f"different ones: pass at least {_FEWEST} pairs whose similarity differs; hundreds are better."
        )
    lost = len(frame) - len(kept)
    notes = [f"texts    {texts[0]} and {texts[1]}", f"score    {score}, {kept[score].min():g} to {kept[score].max():g}"]
    return kept, texts, notes + [f"left out {lost:,} rows without both texts and a number"] * bool(lost)
