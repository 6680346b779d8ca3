"""Embeddings of texts by an encoder, and what they are judged by without any training.

``pooling`` makes one vector of the hidden states of a text, ``judgements`` scores vectors by what is known of the
texts: pairs with a similarity, or queries with relevant passages. Imports encoders and calibration. Another score is
added in ``judgements``, beside the metrics of its class.
"""

from papa_lightning.embeddings.judgements import (
    EMBEDDING_METRICS,
    Answers,
    Judgements,
    RelevantPassages,
    SimilarPairs,
)
from papa_lightning.embeddings.pooling import Embedder, EmbeddingPooling, EmbeddingSettings, pool

__all__ = [
    "EMBEDDING_METRICS",
    "Answers",
    "Embedder",
    "EmbeddingPooling",
    "EmbeddingSettings",
    "Judgements",
    "RelevantPassages",
    "SimilarPairs",
    "pool",
]
