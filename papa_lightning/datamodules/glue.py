"""Tasks of GLUE: CoLA, MRPC, SST-2 and MNLI."""

from collections.abc import Mapping

from papa_lightning.datamodules.text import TextDataModule


class CoLADataModule(TextDataModule):
    """The Corpus of Linguistic Acceptability (GLUE): one sentence, scored by Matthews correlation.

    Source: Warstadt et al., "Neural Network Acceptability Judgments", arXiv 1805.12471. For the arguments see
    `TaskDataModule`.

    Example:
        >>> data = CoLADataModule(tokenizer="bert-base-uncased")
        >>> data.num_labels, data.metrics
        (2, ('matthews_corrcoef',))
        >>> data.description
        'cola train (hub nyu-mll/glue, cola)'
    """

    task_name = "cola"
    hub_path = "nyu-mll/glue"
    hub_config = "cola"
    text_columns = ("sentence",)
    label_names = ("unacceptable", "acceptable")
    metrics = ("matthews_corrcoef",)


class MRPCDataModule(TextDataModule):
    """The Microsoft Research Paraphrase Corpus (GLUE): two sentences, scored by F1 and accuracy.

    Source: Dolan and Brockett, "Automatically Constructing a Corpus of Sentential Paraphrases", IWP 2005. For the
    arguments see `TaskDataModule`.

    Example:
        >>> data = MRPCDataModule(tokenizer="bert-base-uncased", max_length=128)
        >>> data.label_names, data.metrics
        (('not_equivalent', 'equivalent'), ('f1', 'accuracy'))
        >>> data.description
        'mrpc train (hub nyu-mll/glue, mrpc)'
    """

    task_name = "mrpc"
    hub_path = "nyu-mll/glue"
    hub_config = "mrpc"
    text_columns = ("sentence1", "sentence2")
    label_names = ("not_equivalent", "equivalent")
    metrics = ("f1", "accuracy")


class SST2DataModule(TextDataModule):
    """The Stanford Sentiment Treebank with two classes (GLUE): one sentence or phrase, scored by accuracy.

    Source: Socher et al., "Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank", EMNLP
    2013. For the arguments see `TaskDataModule`.

    Example:
        >>> data = SST2DataModule(tokenizer="bert-base-uncased", max_train_examples=500)
        >>> data.label_names, data.metrics
        (('negative', 'positive'), ('accuracy',))
        >>> data.description
        'sst2 train (hub nyu-mll/glue, sst2, first 500 examples)'
    """

    task_name = "sst2"
    hub_path = "nyu-mll/glue"
    hub_config = "sst2"
    text_columns = ("sentence",)
    label_names = ("negative", "positive")
    metrics = ("accuracy",)


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
