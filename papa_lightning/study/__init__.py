"""Studies: scores of tasks against the share of constant heads, and comparisons of kinds of attention.

Imports everything but export, benchmark and the command line. Parts: report/, budget/, comparison/ and features/.
"""

from papa_lightning.study.comparison.report import write_kinds_report
from papa_lightning.study.comparison.results import KindResult, summarize_kinds
from papa_lightning.study.comparison.run import KindsStudy
from papa_lightning.study.comparison.settings import KindsSettings
from papa_lightning.study.correlation import rank_correlation
from papa_lightning.study.plan import PairPlan, format_groups, format_plan
from papa_lightning.study.report.page import write_report
from papa_lightning.study.results import CellResult, load_table, results_table
from papa_lightning.study.run import Study, format_filling
from papa_lightning.study.settings import FeatureSettings, StudySettings
from papa_lightning.study.statistics import Evidence, summarize
from papa_lightning.study.summary import format_summary
from papa_lightning.study.training import ProbeSettings

__all__ = [
    "CellResult",
    "Evidence",
    "FeatureSettings",
    "KindResult",
    "KindsSettings",
    "KindsStudy",
    "PairPlan",
    "ProbeSettings",
    "Study",
    "StudySettings",
    "format_filling",
    "format_groups",
    "format_plan",
    "format_summary",
    "load_table",
    "rank_correlation",
    "results_table",
    "summarize",
    "summarize_kinds",
    "write_kinds_report",
    "write_report",
]
