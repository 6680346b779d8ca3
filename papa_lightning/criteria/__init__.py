"""Criteria: which heads become constant first."""

from papa_lightning.criteria.base import HeadCriterion, RankingInputs
from papa_lightning.criteria.divergence import AttentionDivergence
from papa_lightning.criteria.gate import GATE_LEARNING_RATE, LearnedGates, gates_for
from papa_lightning.criteria.greedy import GreedySearch
from papa_lightning.criteria.orders import LayerOrder, RandomOrder
from papa_lightning.criteria.output import OutputChange
from papa_lightning.criteria.registry import CRITERIA, criterion_from, list_ranking, rank_heads
from papa_lightning.criteria.run import RankingRun, load_trained, task_inputs
from papa_lightning.criteria.taylor import TaylorImportance
from papa_lightning.criteria.variance import AttentionVariance

__all__ = [
    "CRITERIA",
    "GATE_LEARNING_RATE",
    "AttentionDivergence",
    "AttentionVariance",
    "GreedySearch",
    "HeadCriterion",
    "LayerOrder",
    "LearnedGates",
    "OutputChange",
    "RandomOrder",
    "RankingInputs",
    "RankingRun",
    "TaylorImportance",
    "criterion_from",
    "gates_for",
    "list_ranking",
    "load_trained",
    "rank_heads",
    "task_inputs",
]
