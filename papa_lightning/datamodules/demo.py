"""Demo data of the package."""

from pathlib import Path

from papa_lightning.datamodules.text import TextDataModule

BUNDLED = Path(__file__).parent / "data"
"""Folder of the bundled files; its README names the source."""


class DemoDataModule(TextDataModule):
    """2,500 film-review sentences with human sentiment ratings, scored by accuracy; needs no network and no files.

    2,000 sentences to train on and 500 to validate on, half of each positive. Source: Hutto and Gilbert, "VADER: A
    Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014. A demonstration, not a
    benchmark. For the arguments see `TaskDataModule`; `data_dir` replaces the bundled files by your own.

    Example:
        >>> data = DemoDataModule(tokenizer="bert-base-uncased")
        >>> data.description
        'demo train (bundled with papa_lightning)'
        >>> data.load_split("train").num_rows, data.load_split("validation").num_rows
        (2000, 500)
    """

    task_name = "demo"
    text_columns = ("sentence",)
    label_names = ("negative", "positive")
    metrics = ("accuracy",)

    @property
    def folder(self) -> Path:
        """Folder of the splits."""
        return super().folder or BUNDLED

    @property
    def source(self) -> str:
        """Source of the data."""
        return "bundled with papa_lightning" if self.data_dir is None else super().source
