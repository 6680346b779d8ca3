"""MRPC: do two sentences mean the same."""

from papa_lightning.datamodules.text import TextDataModule


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
