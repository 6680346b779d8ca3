"""Tasks: what a probe learns from the hidden states of an encoder."""

from papa_lightning.tasks.base import EncoderTask
from papa_lightning.tasks.probes import LayerwiseProbe
from papa_lightning.tasks.sequence_classification import SequenceClassificationTask

__all__ = ["EncoderTask", "LayerwiseProbe", "SequenceClassificationTask"]
