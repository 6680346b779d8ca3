"""Data modules for your own data, with columns and labels as arguments."""

from collections.abc import Mapping
from typing import Any

from papa_lightning.checks import as_label_names, as_names, as_text, check_choice
from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.text import TextDataModule
from papa_lightning.datamodules.tokens import TokenDataModule
from papa_lightning.either_lightning import rank_zero_warn
from papa_lightning.errors import DataError
from papa_lightning.tag_schemes import RULES, looks_tagged, scheme_of

# More types than text: YAML reads some names as numbers or truth values, which a message should explain.
LabelNames = list[str | bool | int | float] | tuple[str | bool | int | float, ...]


class TextClassificationDataModule(TextDataModule):
    """Your own texts, with one class each; regression is not supported.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        label_names: Names of the labels, two or more, as text. Rows give a label by its name, or, where no name is a
            number, by its place here from 0.
        text_column: Column of the text.
        label_column: Column of the label.
        metrics: Names of the metrics; the first one is the score.
        task_name: Short name of the task, for metadata and messages.
        hub_path: Name of the data set on the hub, without `data_dir`.
        hub_config: Name of its configuration.
        split_names: Other names of the splits, by "train", "validation" and "test".
        skip_labels: Labels whose rows are left out, such as "-" in SNLI.
        **kwargs: See `TaskDataModule`.

    Raises:
        DataError: See `TaskDataModule`.

    Example:
        >>> data = TextClassificationDataModule(
        ...     "bert-base-uncased", ["bug", "wish", "question"], text_column="title", data_dir="tickets"
        ... )
        >>> data.num_labels, data.needed_columns(labelled=True)
        (3, ['title', 'label'])
    """

    def __init__(
        self,
        tokenizer: str,
        label_names: LabelNames,
        text_column: str = "text",
        label_column: str = "label",
        metrics: list[str] | tuple[str, ...] = ("accuracy",),
        task_name: str = "text_classification",
        hub_path: str | None = None,
        hub_config: str | None = None,
        split_names: dict[str, str] | None = None,
        skip_labels: LabelNames = (),
        **kwargs: Any,
    ) -> None:
        self.text_columns = as_names("text_column", [text_column], fewest=1)
        _state(self, label_names, label_column, metrics, task_name, hub_path, hub_config, split_names)
        self.skip_labels = tuple(map(str, skip_labels))
        super().__init__(tokenizer, **kwargs)


class TextPairClassificationDataModule(TextDataModule):
    """Your own pairs of texts, with one class each; regression is not supported.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        label_names: Names of the labels, two or more, as text. Rows give a label by its name, or, where no name is a
            number, by its place here from 0.
        text_columns: Columns of the first and of the second text.
        label_column: Column of the label.
        metrics: Names of the metrics; the first one is the score.
        task_name: Short name of the task, for metadata and messages.
        hub_path: Name of the data set on the hub, without `data_dir`.
        hub_config: Name of its configuration.
        split_names: Other names of the splits, by "train", "validation" and "test".
        skip_labels: Labels whose rows are left out, such as "-" in SNLI.
        max_length: Number of slots T of every row.
        **kwargs: See `TaskDataModule`.

    Raises:
        DataError: See `TaskDataModule`.

    Example:
        >>> data = TextPairClassificationDataModule(
        ...     "bert-base-uncased", ["no", "yes"], text_columns=("question", "answer"), data_dir="answers"
        ... )
        >>> data.num_labels, data.needed_columns(labelled=False)
        (2, ['question', 'answer'])
    """

    def __init__(
        self,
        tokenizer: str,
        label_names: LabelNames,
        text_columns: list[str] | tuple[str, ...] = ("sentence1", "sentence2"),
        label_column: str = "label",
        metrics: list[str] | tuple[str, ...] = ("accuracy",),
        task_name: str = "text_pair_classification",
        hub_path: str | None = None,
        hub_config: str | None = None,
        split_names: dict[str, str] | None = None,
        skip_labels: LabelNames = (),
        max_length: int = 128,
        **kwargs: Any,
    ) -> None:
        self.text_columns = as_names("text_columns", text_columns, fewest=2)
        if len(self.text_columns) != 2:
            raise DataError(f"text_columns is {list(text_columns)!r}, but a pair has two columns: name those.")
        _state(self, label_names, label_column, metrics, task_name, hub_path, hub_config, split_names)
        self.skip_labels = tuple(map(str, skip_labels))
        super().__init__(tokenizer, max_length=max_length, **kwargs)


class TokenClassificationDataModule(TokenDataModule):
    """Your own sentences, split into words, with one label per word.

    Labels that mark entities (O, and B- and I- of every kind: the scheme IOB2; also IOB1, IO, IOBES and BILOU) are
    scored by the F1 of entities, others by the accuracy over words, unless `metrics` says otherwise.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        label_names: Names of the labels, two or more, as text. Words give a label by its name, or, where no name is a
            number, by its place here from 0.
        token_column: Column of the words, a list.
        label_column: Column of the labels, a list of the same length.
        metrics: Names of the metrics; the first one is the score.
        task_name: Short name of the task, for metadata and messages.
        hub_path: Name of the data set on the hub, without `data_dir`.
        hub_config: Name of its configuration.
        split_names: Other names of the splits, by "train", "validation" and "test".
        conll_places: Columns of the word and of the label in a CoNLL file, from 0, or from -1 backwards. None: the
            first and the last one, in a .conllu file those of the form and of the universal part of speech.
        max_length: Number of slots T of every row.
        **kwargs: See `TaskDataModule`.

    Raises:
        DataError: See `TaskDataModule`.

    Example:
        >>> data = TokenClassificationDataModule("bert-base-cased", ["O", "B-GENE", "I-GENE"], data_dir="genes")
        >>> data.num_labels, data.metrics
        (3, ('entity_f1',))
        >>> TokenClassificationDataModule("bert-base-cased", ["noun", "verb", "other"], data_dir="words").metrics
        ('token_accuracy',)
    """

    def __init__(
        self,
        tokenizer: str,
        label_names: LabelNames,
        token_column: str = "tokens",
        label_column: str = "tags",
        metrics: list[str] | tuple[str, ...] | None = None,
        task_name: str = "token_classification",
        hub_path: str | None = None,
        hub_config: str | None = None,
        split_names: dict[str, str] | None = None,
        conll_places: tuple[int, int] | None = None,
        max_length: int = 128,
        **kwargs: Any,
    ) -> None:
        if metrics is None:
            names = as_label_names(label_names)
            metrics = ("token_accuracy",) if scheme_of(names) is None else ("entity_f1",)
            if metrics == ("token_accuracy",) and looks_tagged(names):
                rank_zero_warn(
                    f"label_names is {list(names)!r}, whose tags look as if they marked entities, but in none of the "
                    f"schemes {', '.join(RULES)}: they are scored by the accuracy over words, where 'O' everywhere "
                    "is good already. Correct the names for the F1 of entities, or pass metrics."
                )
        self.token_column = as_text("token_column", token_column)
        _state(self, label_names, label_column, metrics, task_name, hub_path, hub_config, split_names)
        if conll_places is not None:
            if len(conll_places) != 2 or not all(type(place) is int for place in conll_places):
                raise DataError(f"conll_places is {conll_places!r}, but must be two numbers of columns, like (0, -1).")
            self.conll_places = (conll_places[0], conll_places[1])
        super().__init__(tokenizer, max_length=max_length, **kwargs)


def _state(
    data: TaskDataModule,
    label_names: Any,
    label_column: str,
    metrics: Any,
    task_name: str,
    hub_path: str | None,
    hub_config: str | None,
    split_names: Mapping[str, str] | None,
) -> None:
    """Set the facts of a task that are class attributes of other data modules."""
    data.label_names = as_label_names(label_names)
    data.metrics = as_names("metrics", metrics, fewest=1)
    data.label_column = as_text("label_column", label_column)
    data.task_name = as_text("task_name", task_name)
    data.hub_path, data.hub_config = hub_path, hub_config
    for split in split_names or {}:
        check_choice("a key of split_names", split, tuple(data.split_names))
    data.split_names = {**data.split_names, **(split_names or {})}
