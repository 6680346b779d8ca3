"""Tasks: what a probe learns from the hidden states of an encoder."""

from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.entity_f1 import EntityF1
from papa_lightning.tasks.from_scratch import FromScratchTask
from papa_lightning.tasks.image_classification import ImageClassificationTask
from papa_lightning.tasks.language_modeling import BitsPerToken, LanguageModelingTask, NextTokenProbe
from papa_lightning.tasks.masked_language_modeling import MaskedLanguageModelingTask
from papa_lightning.tasks.probes import LayerwiseProbe, PooledProbe, TokenProbe
from papa_lightning.tasks.sequence_classification import SequenceClassificationTask
from papa_lightning.tasks.token_classification import TokenClassificationTask

__all__ = [
    "BitsPerToken",
    "EncoderTask",
    "EntityF1",
    "FromScratchTask",
    "ImageClassificationTask",
    "LanguageModelingTask",
    "LayerwiseProbe",
    "MaskedLanguageModelingTask",
    "NextTokenProbe",
    "PooledProbe",
    "SequenceClassificationTask",
    "TokenClassificationTask",
    "TokenProbe",
]
