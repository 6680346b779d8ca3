"""SST-2: is a sentence of a film review positive."""

from papa_lightning.datamodules.text import TextDataModule


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
