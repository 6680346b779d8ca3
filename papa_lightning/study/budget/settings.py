"""Settings of a budget: encoder, task, and the permitted loss of score."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from papa_lightning.checks import check_choice
from papa_lightning.embeddings import EmbeddingSettings
from papa_lightning.errors import PapaError
from papa_lightning.study.settings import FeatureSettings, StudySettings, read_share
from papa_lightning.study.training import ProbeSettings
from papa_lightning.tasks.probes import Pooling

#: Names of encoder and task in files.
ENCODER, TASK = "encoder", "task"

Search = Literal["share", "greedy"]
"""Source of the order of the heads: a criterion, or greedy search on the selection data."""


@dataclass(frozen=True)
class BudgetSettings:
    """One encoder on one task, and the permitted loss of score.

    Args:
        encoder: Name on the hub, or a folder written by ``save_pretrained``.
        task: A data module: ``class_path`` and ``init_args``, without ``tokenizer``, which is the encoder's.
        within: Largest relative loss of the task's score against all heads dynamic: "1%" or 0.01.
        search: ``"share"``: heads become constant in the order of `criterion`. ``"greedy"``: in the order of a greedy
            search on the selection data, see :class:`~papa_lightning.criteria.GreedySearch`.
        criterion: Criterion that ``"share"`` ranks by: :data:`papa_lightning.criteria.CRITERIA`.
        seeds: Seeds of the probe. Losses are means over them. A task of embeddings, which has no probe, takes the
            first.
        search_sequences: Sequences of the selection data for every measurement of greedy search; of the training texts
            in a task of embeddings.
        split_seed: Seed of the halves of the validation data, used without a labelled test split, and of the halves of
            the pairs or queries.
        pooling: The probe of sentence tasks; see :class:`~papa_lightning.SequenceClassificationTask`.
        probe: Recipe of the probes.
        embedding: The vector of a text in a task of embeddings; what is None is read from the folder of the encoder.
        features: Storage of the hidden states.
        packing: Whether the encoder runs over the real tokens alone, where that is exact.
        tokens_per_batch: Largest number of tokens in a packed batch; None takes 1,536 on a CPU and 32,768 on other
            devices.
        calibration_batch_size: Sequences of a batch wherever the encoder runs without packing.
        device: Device of all computations; ``"auto"`` is an accelerator where there is one.

    Raises:
        PapaError: When an argument is out of its range.
    """

    encoder: str
    task: Mapping[str, Any]
    within: str | float
    search: Search = "share"
    criterion: str = "variance"
    seeds: Sequence[int] = (0, 1, 2)
    search_sequences: int = 256
    split_seed: int = 0
    pooling: Pooling = "layerwise"
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    packing: bool = True
    tokens_per_batch: int | None = None
    calibration_batch_size: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        read_share("within", self.within)
        check_choice("search", self.search, get_args(Search))
        for name, least in (("search_sequences", 1), ("split_seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PapaError(f"{name} is {value!r}, but must be a whole number from {least} on.")
        self.study()

    @property
    def limit(self) -> float:
        """`within` as a share."""
        return read_share("within", self.within)

    def study(self) -> StudySettings:
        """The settings of a study of the same encoder on the same task."""
        same = (
            "seeds",
            "pooling",
            "probe",
            "embedding",
            "features",
            "packing",
            "tokens_per_batch",
            "calibration_batch_size",
            "device",
        )
        return StudySettings(
            encoders={ENCODER: self.encoder},
            tasks={TASK: self.task},
            criteria=[self.criterion],
            **{name: getattr(self, name) for name in same},
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self) | {"task": dict(self.task), "seeds": list(self.seeds)}
