"""Dataclasses as JSON files: what was written is read, and everything else is an error of one line."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from papa_lightning.checks import number, whole
from papa_lightning.errors import ResultFileError
from papa_lightning.files.records import check_fields, or_nan, read_record, write_record

FORM = "papa_lightning.test/1"


@dataclass(frozen=True)
class Part:
    name: str
    size: Annotated[int, whole(1)]


@dataclass(frozen=True)
class Whole:
    part: Part
    kind: Literal["a", "b"]
    share: Annotated[float, number(0, 1)] | None
    loss: Annotated[float, or_nan(number())]
    on: bool
    parts: Sequence[Part] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.part, Mapping):
            check_fields(self)


ONE = Whole(Part("p", 3), "a", None, math.nan, True, [Part("q", 1)], {"x": 0.5})


def read(path: Path) -> Whole:
    return read_record(path, FORM, Whole, ResultFileError, "record", "delete it")


def test_records_survive_files(tmp_path: Path) -> None:
    found = read(write_record(tmp_path / "new" / "one.json", FORM, ONE))
    assert math.isnan(found.loss)
    assert {**asdict(found), "loss": 0} == {**asdict(ONE), "loss": 0}
    assert "NaN" not in (tmp_path / "new" / "one.json").read_text()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"part": {"name": "p"}}, "lacks, or should not have, 'size'"),
        ({"part": {"name": "p", "size": 0}}, "size is 0, but must be a whole number, at least 1"),
        ({"part": {"name": 3, "size": 1}}, "name is 3, but must be text"),
        ({"kind": "c"}, "kind is 'c', but must be one of 'a', 'b'"),
        ({"share": "0.5"}, "share is '0.5', but must be a number"),
        ({"share": 2}, "share is 2"),
        ({"loss": "low"}, "loss is 'low'"),
        ({"on": 1}, "on is 1, but must be true or false"),
        ({"parts": [{"name": "q", "size": None}]}, "size is None"),
        ({"parts": {"name": "q"}}, "parts is {'name': 'q'}, but must be a list"),
        ({"numbers": {"x": None}}, r"numbers\['x'\] is None"),
        ({"more": 1}, "lacks, or should not have, 'more'"),
    ],
)
def test_wrong_fields_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    plain = {**asdict(ONE), "loss": None, "format": FORM, **changes}
    (tmp_path / "one.json").write_text(json.dumps(plain))
    with pytest.raises(ResultFileError, match=rf"^record '.*one\.json' is damaged \(.*{words}.*\): delete it\.$"):
        read(tmp_path / "one.json")
