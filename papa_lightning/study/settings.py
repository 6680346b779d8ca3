"""Settings of a study: encoders, tasks, criteria, shares, seeds, kinds of constants."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from typing_extensions import Self

from papa_lightning.calibration import ConstantsKind, constants_kind
from papa_lightning.checks import check_choice
from papa_lightning.criteria import criterion_from
from papa_lightning.embeddings import EmbeddingSettings
from papa_lightning.encoders import Packing
from papa_lightning.errors import PapaError, did_you_mean
from papa_lightning.study.sources import plain_task
from papa_lightning.study.training import ProbeSettings
from papa_lightning.tasks.probes import Pooling
from papa_lightning.tasks.recovery import RecoverySettings

#: Names that can be parts of file names without ambiguity.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

#: Kind of constants of an encoder that is trained with averages in its heads, to the embeddings of the original.
RECOVERED = "recovered"

Storage = Literal["float32", "float16", "none"]
"""Storage of the hidden states; ``"none"`` runs the encoder again in every epoch."""


@dataclass(frozen=True)
class FeatureSettings:
    """Storage of the hidden states from which the probes learn.

    On a GPU they stay in its memory where they fit, and files are written only to be kept.

    Args:
        storage: Dtype of the states, or ``"none"``: nothing is stored, and the encoder runs in every epoch.
        budget_gigabytes: Largest size on disk of each worker at any moment, in 1e9 bytes; more is refused before it is
            written.
        keep: Whether the files stay in the study's folder for further seeds; otherwise they are removed when their
            probes are trained.
    """

    storage: Storage = "float32"
    budget_gigabytes: float = 50.0
    keep: bool = False

    def __post_init__(self) -> None:
        check_choice("features.storage", self.storage, get_args(Storage))
        if not self.budget_gigabytes > 0:
            raise PapaError(f"features.budget_gigabytes is {self.budget_gigabytes}, but must be above 0.")


@dataclass(frozen=True)
class StudySettings:
    """One study: every encoder on every task, with every criterion, share, seed and kind of constants.

    Args:
        encoders: Names and where they are: on the hub, folders written by ``save_pretrained``, or checkpoints of
            Lightning (a .ckpt, or a map of ``checkpoint``, ``encoder``, what was fine-tuned, and ``prefix``). From
            Python also modules, or pairs of a module and its tokenizer.
        tasks: Names and their data modules: ``class_path`` and ``init_args``, without ``tokenizer``, which is the
            encoder's; and ``probe``, a map of what in the recipe of its probes differs from `probe`. From Python also
            data module objects, of which the arguments are taken.
        criteria: By what heads are ranked: :data:`papa_lightning.criteria.CRITERIA`.
        shares: Shares of constant heads, from 0 to 1. Share 0 is always measured: everything is compared with it.
        seeds: Seeds of the probe: its initial values, the order of the examples, dropout. Tasks of embeddings, which
            have no probe, take the first.
        constants: Kinds of constants: :data:`papa_lightning.calibration.CONTROLS`, ``"sequences:N"`` for an average of
            N sequences, or ``"other:TASK"`` for the average of another task. ``"average"`` is measured at all `shares`
            for all `criteria`. ``"recovered"``, for tasks of embeddings, trains a copy of the encoder with these
            constants, see `recovery`; it is measured at all `shares` with the first of `criteria`. The others are
            controls, see `control_shares`.
        control_shares: Shares at which controls are measured, with the first of `criteria`.
        margin: Largest relative loss of score that counts as none: "3%" or 0.03. No result depends on it.
        pooling: The probe of sentence tasks; see :class:`~papa_lightning.SequenceClassificationTask`.
        probe: Recipe of the probes.
        embedding: The vector of a text in tasks of embeddings; what is None is read from the folder of the encoder.
        recovery: Training behind the constants ``"recovered"``.
        features: Storage of the hidden states.
        packing: Whether the encoder runs over the real tokens alone, where that is exact.
        tokens_per_batch: Largest number of tokens in a packed batch; None takes 1,536 on a CPU and 32,768 on other
            devices.
        calibration_batch_size: Sequences of a batch wherever the encoder runs without packing.
        device: Device of all computations; ``"auto"`` is an accelerator where there is one.

    Raises:
        PapaError: When an argument is out of its range.
    """

    encoders: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    criteria: Sequence[str] = ("variance",)
    shares: Sequence[float] = (0.0, 0.5, 0.875, 0.9375, 1.0)
    seeds: Sequence[int] = (0, 1, 2)
    constants: Sequence[str] = ("average",)
    control_shares: Sequence[float] = (1.0,)
    margin: str | float = "3%"
    pooling: Pooling = "layerwise"
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    features: FeatureSettings = field(default_factory=FeatureSettings)
    packing: bool = True
    tokens_per_batch: int | None = None
    calibration_batch_size: int = 32
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("encoders", "tasks"):
            check_names(name, getattr(self, name))
        object.__setattr__(self, "tasks", {name: plain_task(name, one) for name, one in self.tasks.items()})
        for name, made in _PARTS.items():
            object.__setattr__(self, name, _settings(name, made, getattr(self, name)))
        for name in ("criteria", "shares", "seeds", "constants", "control_shares"):
            _check_list(name, getattr(self, name))
        for name in ("shares", "control_shares"):
            for share in getattr(self, name):
                if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
                    raise PapaError(f"{name} has {share!r}, but a share of heads lies between 0 and 1.")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
                raise PapaError(f"seeds has {seed!r}, but a seed is a whole number from 0 to 2**32 - 1.")
        _check_criteria(self.criteria)
        for kind in self.constants:
            other = kind_of(kind).other_task
            if other is not None and other not in self.tasks:
                raise PapaError(f"constants has {kind!r}, but tasks has only {', '.join(self.tasks)}: add that task.")
        if "average" not in self.constants:
            raise PapaError(f"constants is {list(self.constants)}, but the others are compared with 'average': add it.")
        for name, task in self.tasks.items():
            _check_task(name, task)
            self._probe_of(name)  # refuse wrong values
        read_share("margin", self.margin)
        check_choice("pooling", self.pooling, get_args(Pooling))
        _ = self.packs  # refuse wrong values
        if self.calibration_batch_size < 1:
            raise PapaError(f"calibration_batch_size is {self.calibration_batch_size}, but must be at least 1.")

    @property
    def packs(self) -> Packing:
        """The settings of packing."""
        return Packing(self.packing, self.tokens_per_batch)

    def for_task(self, name: str) -> Self:
        """The settings with the recipe of the probes of one task."""
        return replace(self, probe=self._probe_of(name))

    def _probe_of(self, task: str) -> ProbeSettings:
        try:
            return replace(self.probe, **(self.tasks[task].get("probe") or {}))
        except PapaError as error:
            raise PapaError(f"tasks.{task}: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values of JSON."""
        plain = asdict(self)
        for name in ("criteria", "shares", "seeds", "constants", "control_shares"):
            plain[name] = list(plain[name])
        return plain | {"encoders": dict(self.encoders), "tasks": {name: dict(one) for name, one in self.tasks.items()}}


#: The settings of its parts, each of which may be given as a map.
_PARTS = {
    "probe": ProbeSettings,
    "embedding": EmbeddingSettings,
    "recovery": RecoverySettings,
    "features": FeatureSettings,
}


def kind_of(text: str) -> ConstantsKind:
    """The kind of constants of a setting; a PapaError for a text that means none."""
    return constants_kind(text, also=(RECOVERED,))


def settings_from(plain: Mapping[str, Any]) -> StudySettings:
    """The settings of a map of their fields, such as :meth:`StudySettings.as_dict` gives."""
    _check_fields("settings", StudySettings, plain)
    return StudySettings(**plain)


def check_names(argument: str, named: Mapping[str, Any]) -> None:
    """Refuse an empty map, and names that cannot be parts of file names."""
    if not isinstance(named, Mapping) or not named:
        raise PapaError(f"{argument} is {named!r}, but must map at least one name to what it means.")
    for name in named:
        if not isinstance(name, str) or not _NAME.fullmatch(name) or "--" in name:
            raise PapaError(
                f"{argument} has the name {name!r}, which becomes part of file names: use letters, digits, '_', '.' "
                "and single '-', and begin with a letter or digit."
            )


def _settings(argument: str, kind: type[Any], given: Any) -> Any:
    """The settings of a part, which may be given as a map."""
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        names = ", ".join(one.name for one in fields(kind))
        raise PapaError(f"{argument} is {given!r}, but must be a {kind.__name__} or a map with {names}.")
    _check_fields(argument, kind, given)
    return kind(**given)


def _check_fields(argument: str, kind: type[Any], given: Mapping[str, Any]) -> None:
    """Refuse what is no field of settings."""
    names = [one.name for one in fields(kind)]
    for name in given:
        if name not in names:
            end = did_you_mean(name, names) or f": choose from {', '.join(names)}."
            raise PapaError(f"{argument} has no argument {name!r}{end}")


def _check_list(argument: str, values: Sequence[Any]) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise PapaError(f"{argument} is {values!r}, but must be a list of at least one value.")
    if len(set(values)) < len(values):
        raise PapaError(f"{argument} is {list(values)}, which has a value twice: give each once.")


def _check_criteria(criteria: Sequence[str]) -> None:
    """Refuse texts that are no criterion, and two that mean the same one."""
    found = dict[str, str]()
    for text in criteria:
        spec = criterion_from(text).spec
        if spec in found:
            raise PapaError(f"criteria has {found[spec]!r} and {text!r}, which are the same: give each once.")
        found[spec] = text


#: What a task of the settings has.
_TASK = ("class_path", "init_args", "probe")


def _meant(unknown: Collection[Any]) -> str:
    return next((end for one in unknown if (end := did_you_mean(one, _TASK))), ".")


def _check_task(name: str, task: Mapping[str, Any]) -> None:
    unknown = set(task) - {*_TASK} if isinstance(task, Mapping) else {repr(task)}
    if unknown or "class_path" not in task:
        raise PapaError(
            f"tasks has {name!r} with {', '.join(map(str, sorted(unknown))) or 'no class_path'}, but a task is a data "
            f"module: class_path, e.g. SST2DataModule, and init_args{_meant(unknown)}"
        )
    own = task.get("probe") or {}
    if not isinstance(own, Mapping):
        raise PapaError(f"tasks has {name!r} with probe={own!r}: pass a map, e.g. {{learning_rate: 1e-3}}.")
    _check_fields(f"tasks.{name}.probe", ProbeSettings, own)
    if "tokenizer" in (task.get("init_args") or {}):
        raise PapaError(f"tasks has {name!r} with a tokenizer, but every encoder brings its own: leave it out.")


def read_share(name: str, value: object) -> float:
    """The share below 1 that a share or a percentage such as "1%" means; 1 is refused, as it could mean one percent."""
    share = math.nan
    with suppress(ValueError):
        if isinstance(value, str) and value.strip().endswith("%"):
            share = float(value.strip()[:-1]) / 100
        elif isinstance(value, (int, float, str)) and not isinstance(value, bool):
            share = float(value)
    if not 0 <= share < 1:
        raise PapaError(
            f"{name} is {value!r}, but must be a share from 0 to below 1, such as 0.01, or a percentage such as '1%'."
        )
    return share
