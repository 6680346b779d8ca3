"""Named entities: CoNLL-2003 and WNUT-17."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from papa_lightning.checks import check_choice
from papa_lightning.datamodules.reading.files import PARQUET
from papa_lightning.datamodules.tokens import TokenDataModule

NERDataSet = Literal["conll2003", "wnut_17"]
"""Data sets with named entities."""


class _Facts(NamedTuple):
    """Facts of a data set: name on the hub, kinds of entities in the order of its tags, original files."""

    hub_path: str
    kinds: tuple[str, ...]
    originals: str


_FACTS: Mapping[str, _Facts] = {
    "conll2003": _Facts(
        "eriktks/conll2003",
        ("PER", "ORG", "LOC", "MISC"),
        "eng.train, eng.testa and eng.testb as train.conll, validation.conll and test.conll",
    ),
    "wnut_17": _Facts(
        "leondz/wnut_17",
        ("corporation", "creative-work", "group", "location", "person", "product"),
        "wnut17train.conll, emerging.dev.conll and emerging.test.annotated of github.com/leondz/emerging_entities_17 "
        "as train.conll, validation.conll and test.conll",
    ),
}


class NERDataModule(TokenDataModule):
    """Named entities in the scheme IOB2, scored by the F1 of whole entities.

    "conll2003" has 9 tags: O, and B- and I- of PER, ORG, LOC and MISC. "wnut_17" has 13: corporation, creative-work,
    group, location, person and product. In files the columns are `tokens` and `ner_tags`, the tags by name or number.

    On the hub both data sets have a loading script, which the datasets library no longer runs, so the hub's own copy in
    Parquet is loaded; no test covers that, for want of a network. With `data_dir` the original files are read.

    Sources: Tjong Kim Sang and De Meulder, "Introduction to the CoNLL-2003 Shared Task", CoNLL 2003; Derczynski et
    al., "Results of the WNUT2017 Shared Task on Novel and Emerging Entity Recognition", W-NUT 2017.

    Args:
        tokenizer: Name on the hub, or local folder, of the encoder's tokenizer.
        dataset: Name of the data set, which decides on the tags.
        max_length: Number of slots T of every row.
        **kwargs: See `TaskDataModule`.

    Example:
        >>> data = NERDataModule(tokenizer="bert-base-cased")
        >>> data.label_names
        ('O', 'B-PER', 'I-PER', 'B-ORG', 'I-ORG', 'B-LOC', 'I-LOC', 'B-MISC', 'I-MISC')
        >>> NERDataModule(tokenizer="bert-base-cased", dataset="wnut_17").num_labels
        13
    """

    label_column = "ner_tags"
    metrics = ("entity_f1",)
    hub_revision = PARQUET

    def __init__(self, tokenizer: str, dataset: NERDataSet = "conll2003", max_length: int = 128, **kwargs: Any) -> None:
        check_choice("dataset", dataset, get_args(NERDataSet))
        facts = _FACTS[dataset]
        self.task_name, self.hub_path = dataset, facts.hub_path
        self.label_names = ("O", *(f"{mark}-{kind}" for kind in facts.kinds for mark in "BI"))
        self.hub_remedy = f"pass data_dir, a folder with the original files {facts.originals}"
        super().__init__(tokenizer, max_length=max_length, **kwargs)
