"""Tasks: what a probe learns from the hidden states of an encoder."""

from papa_lightning.from_scratch.base import FromScratchTask
from papa_lightning.from_scratch.image_classification import ImageClassificationTask
from papa_lightning.from_scratch.language_modeling import BitsPerToken, LanguageModelingTask, NextTokenProbe
from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.entity_f1 import EntityF1
from papa_lightning.tasks.masked_lm import MaskedLanguageModelingTask
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
