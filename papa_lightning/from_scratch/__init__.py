"""Small Transformers trained from random weights with any kind of attention, their tasks and their data.

May import ``tasks``, ``datamodules`` and the rooms below; is imported by the public names only. A new task derives from
``FromScratchTask``, new data from ``PartsDataModule``, each in a file.
"""

from transformers import AutoConfig, AutoModel

from papa_lightning.from_scratch.base import FromScratchTask
from papa_lightning.from_scratch.configuration import TransformerConfig, check_heads
from papa_lightning.from_scratch.digits import DigitsDataModule
from papa_lightning.from_scratch.image_classification import ImageClassificationTask
from papa_lightning.from_scratch.language_modeling import BitsPerToken, LanguageModelingTask, NextTokenProbe
from papa_lightning.from_scratch.text_file import TextFileDataModule
from papa_lightning.from_scratch.transformer import (
    TransformerAttention,
    TransformerLayer,
    TransformerModel,
    resplit_heads,
)

AutoConfig.register(TransformerConfig.model_type, TransformerConfig, exist_ok=True)
AutoModel.register(TransformerConfig, TransformerModel, exist_ok=True)

__all__ = [
    "BitsPerToken",
    "DigitsDataModule",
    "FromScratchTask",
    "ImageClassificationTask",
    "LanguageModelingTask",
    "NextTokenProbe",
    "TextFileDataModule",
    "TransformerAttention",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerModel",
    "check_heads",
    "resplit_heads",
]
