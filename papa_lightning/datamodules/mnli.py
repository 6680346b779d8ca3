"""MNLI: does one sentence follow from another."""

from collections.abc import Mapping

from papa_lightning.datamodules.text import TextDataModule


class MNLIDataModule(TextDataModule):
    """The Multi-Genre Natural Language Inference corpus (GLUE): two sentences, three classes, scored by accuracy.

    There are two validation dataloaders, and two of the test split: on the genres of the training data (matched) and
    on other genres (mismatched). In `data_dir` they are `validation_matched` and `validation_mismatched`; without
    a file for the second one a warning says so, and there is one dataloader.

    Source: Williams et al., "A Broad-Coverage Challenge Corpus for Sentence Understanding through Inference", NAACL
    2018. For the arguments see `TaskDataModule`.

    Example:
        >>> data = MNLIDataModule(tokenizer="bert-base-uncased", max_length=128)
        >>> data.label_names, data.metrics
        (('entailment', 'neutral', 'contradiction'), ('accuracy',))
        >>> data.validation_names
        ('matched', 'mismatched')
    """

    task_name = "mnli"
    hub_path = "nyu-mll/glue"
    hub_config = "mnli"
    split_names: Mapping[str, str] = {
        "train": "train",
        "validation": "validation_matched",
        "validation_mismatched": "validation_mismatched",
        "test": "test_matched",
        "test_mismatched": "test_mismatched",
    }
    role_splits: Mapping[str, tuple[str, ...]] = {
        "train": ("train",),
        "validation": ("validation", "validation_mismatched"),
        "test": ("test", "test_mismatched"),
    }
    validation_names = ("matched", "mismatched")
    text_columns = ("premise", "hypothesis")
    label_names = ("entailment", "neutral", "contradiction")
    metrics = ("accuracy",)
