"""Data modules of tasks: one short class each, over a shared base.

``reading`` turns files and data sets of the hub into rows, ``rows`` turns rows into numbers; ``base``, ``text`` and
``tokens`` combine them, and ``embedding`` has texts without labels; ``own_tables`` guesses the columns of a table for
``papa init``. Imports nothing of encoders but the loading of tokenizers and what a folder says of its prompts. A task
of the GLUE kind is added in ``glue``, with a YAML in ``configs``; a file format in ``reading/formats``.
"""

from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.custom import (
    TextClassificationDataModule,
    TextPairClassificationDataModule,
    TokenClassificationDataModule,
)
from papa_lightning.datamodules.demo import DemoDataModule
from papa_lightning.datamodules.embedding.retrieval import RetrievalDataModule
from papa_lightning.datamodules.embedding.similarity import SimilarityDataModule, STSBDataModule, STSDataModule
from papa_lightning.datamodules.embedding.texts import EmbeddingDataModule
from papa_lightning.datamodules.glue import CoLADataModule, MNLIDataModule, MRPCDataModule, SST2DataModule
from papa_lightning.datamodules.ner import NERDataModule
from papa_lightning.datamodules.parts import PartsDataModule
from papa_lightning.datamodules.pos import POSDataModule
from papa_lightning.datamodules.text import TextDataModule
from papa_lightning.datamodules.tokenized import TokenizedDataModule
from papa_lightning.datamodules.tokens import TokenDataModule

__all__ = [
    "CoLADataModule",
    "DemoDataModule",
    "EmbeddingDataModule",
    "MNLIDataModule",
    "MRPCDataModule",
    "NERDataModule",
    "POSDataModule",
    "PartsDataModule",
    "RetrievalDataModule",
    "SST2DataModule",
    "STSBDataModule",
    "STSDataModule",
    "SimilarityDataModule",
    "TaskDataModule",
    "TextClassificationDataModule",
    "TextDataModule",
    "TextPairClassificationDataModule",
    "TokenClassificationDataModule",
    "TokenDataModule",
    "TokenizedDataModule",
]
