"""CoLA: is an English sentence acceptable."""

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
