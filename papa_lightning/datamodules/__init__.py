"""Data modules: one task each over a shared base, and the layouts of their rows."""

from papa_lightning.datamodules.base import TextDataModule
from papa_lightning.datamodules.cola import CoLADataModule
from papa_lightning.datamodules.demo import DemoDataModule
from papa_lightning.datamodules.sst2 import SST2DataModule

__all__ = ["CoLADataModule", "DemoDataModule", "SST2DataModule", "TextDataModule"]
