"""Criteria: which heads become constant first.

May import what stands below: attention, encoders, calibration, tasks, callbacks, from_scratch. A new criterion is one
file: a subclass of :class:`HeadCriterion` with ``@CRITERIA.register("name")``, imported here.
"""

# Criteria, in the order in which choices and tables list them.
# isort: off
from papa_lightning.criteria.variance import AttentionVariance
from papa_lightning.criteria.divergence import AttentionDivergence
from papa_lightning.criteria.output import OutputChange
from papa_lightning.criteria.activity import AttentionEntropy, HeadActivity, OutputNorm
from papa_lightning.criteria.first_token import FirstTokenShare
from papa_lightning.criteria.embedding import EmbeddingChange, check_for_embeddings, embedding_inputs
from papa_lightning.criteria.taylor import TaylorImportance
from papa_lightning.criteria.gate import GATE_LEARNING_RATE, LearnedGates, gates_for
from papa_lightning.criteria.greedy import GreedySearch
from papa_lightning.criteria.orders import LayerOrder, RandomOrder

# isort: on
from papa_lightning.criteria.base import (
    CRITERIA,
    HeadCriterion,
    RankingInputs,
    criteria_help,
    criteria_table,
    criterion_from,
    criterion_texts,
    rank_heads,
)
from papa_lightning.criteria.run import (
    RankingRun,
    check_layer,
    list_ranking,
    load_trained,
    table_path,
    task_inputs,
    trains_first,
)

__all__ = [
    "CRITERIA",
    "GATE_LEARNING_RATE",
    "AttentionDivergence",
    "AttentionEntropy",
    "AttentionVariance",
    "EmbeddingChange",
    "FirstTokenShare",
    "GreedySearch",
    "HeadActivity",
    "HeadCriterion",
    "LayerOrder",
    "LearnedGates",
    "OutputChange",
    "OutputNorm",
    "RandomOrder",
    "RankingInputs",
    "RankingRun",
    "TaylorImportance",
    "check_for_embeddings",
    "check_layer",
    "criteria_help",
    "criteria_table",
    "criterion_from",
    "criterion_texts",
    "embedding_inputs",
    "gates_for",
    "list_ranking",
    "load_trained",
    "rank_heads",
    "table_path",
    "task_inputs",
    "trains_first",
]
