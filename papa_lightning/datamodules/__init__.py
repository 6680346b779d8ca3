"""Data modules: one task each over a shared base, and the layouts of their rows."""

from papa_lightning.datamodules.base import TaskDataModule
from papa_lightning.datamodules.custom import (
    TextClassificationDataModule,
    TextPairClassificationDataModule,
    TokenClassificationDataModule,
)
from papa_lightning.datamodules.demo import DemoDataModule
from papa_lightning.datamodules.glue import CoLADataModule
from papa_lightning.datamodules.mnli import MNLIDataModule
from papa_lightning.datamodules.mrpc import MRPCDataModule
from papa_lightning.datamodules.ner import NERDataModule
from papa_lightning.datamodules.parts import PartsDataModule
from papa_lightning.datamodules.pos import POSDataModule
from papa_lightning.datamodules.sst2 import SST2DataModule
from papa_lightning.datamodules.text import TextDataModule
from papa_lightning.datamodules.tokens import TokenDataModule
from papa_lightning.from_scratch.digits import DigitsDataModule
from papa_lightning.from_scratch.text_file import TextFileDataModule

__all__ = [
    "CoLADataModule",
    "DemoDataModule",
    "DigitsDataModule",
    "MNLIDataModule",
    "MRPCDataModule",
    "NERDataModule",
    "POSDataModule",
    "PartsDataModule",
    "SST2DataModule",
    "TaskDataModule",
    "TextClassificationDataModule",
    "TextDataModule",
    "TextFileDataModule",
    "TextPairClassificationDataModule",
    "TokenClassificationDataModule",
    "TokenDataModule",
]
