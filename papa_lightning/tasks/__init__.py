"""Tasks: LightningModules with a pretrained encoder and a probe on its hidden states.

May import ``callbacks`` and below; is imported by ``from_scratch`` and above. A new task is a file with a class that
derives from ``EncoderTask``, or without a probe from ``EncodingTask``, or from the nearest task, and a line here.
"""

from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.entity_f1 import EntityF1
from papa_lightning.tasks.masked_lm import MaskedLanguageModelingTask
from papa_lightning.tasks.probes import LayerwiseProbe, PooledProbe, TokenProbe
from papa_lightning.tasks.sequence_classification import SequenceClassificationTask
from papa_lightning.tasks.similarity import SimilarityTask
from papa_lightning.tasks.token_classification import TokenClassificationTask

__all__ = [
    "EncoderTask",
    "EntityF1",
    "LayerwiseProbe",
    "MaskedLanguageModelingTask",
    "PooledProbe",
    "SequenceClassificationTask",
    "SimilarityTask",
    "TokenClassificationTask",
    "TokenProbe",
]
