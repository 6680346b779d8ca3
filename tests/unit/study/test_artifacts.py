"""What the stored parts of a study depend on."""

from types import SimpleNamespace
from typing import Any

import pytest

from papa_lightning.criteria import CRITERIA
from papa_lightning.study.artifacts import ranking_key


def test_a_ranking_of_an_earlier_version_of_a_criterion_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def keys() -> list[str]:
        bench: Any = SimpleNamespace(settings=None, judgements=object(), seen=["rows"], identity="encoder")
        return [ranking_key(bench, name) for name in ("variance", "divergence")]

    before = keys()
    monkeypatch.setattr(CRITERIA["variance"], "version", 7)
    variance, divergence = keys()
    assert variance != before[0]
    assert divergence == before[1]
