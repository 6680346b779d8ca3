"""Minutes of a study from a trial."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from papa_lightning import PapaError
from papa_lightning.study import FeatureSettings, ProbeSettings, StudySettings
from papa_lightning.study.trial import PairTrial, duration

GIVEN: dict[str, Any] = {"encoders": {"e": "folder"}, "tasks": {"t": {"class_path": "DemoDataModule"}}}


def test_seconds_are_those_of_the_trial_times_the_counts() -> None:
    settings = StudySettings(**GIVEN, seeds=(0, 1), probe={"max_epochs": 3, "batch_size": 10})
    counts = {"examples": 100, "group_cost": 1.5, "preparation": 2.0, "missing": 6, "recovery": 0.0}
    plan: Any = SimpleNamespace(**counts, groups=[0, 1, 2], task="t")
    alone = PairTrial(loading=7.0, calibrating=0.0, encoding=0.0, step=0.0, evaluating=0.0)
    assert alone.seconds(plan, settings) == 7
    assert PairTrial(0, 0.1, 0, 0, 0).seconds(plan, settings) == pytest.approx(0.1 * 200)
    assert PairTrial(0, 0, 0.1, 0, 0).seconds(plan, settings) == pytest.approx(0.1 * 3 * 150)
    assert PairTrial(0, 0, 0, 0.1, 0).seconds(plan, settings) == pytest.approx(0.1 * 3 * 30)
    assert PairTrial(0, 0, 0, 0, 0.1).seconds(plan, settings) == pytest.approx(0.1 * 3 * 50)
    own = {"t": {**GIVEN["tasks"]["t"], "probe": {"max_epochs": 5, "best_epoch": True}}}
    longer = replace(settings, tasks=own)
    assert PairTrial(0, 0, 0, 0.1, 0).seconds(plan, longer) == pytest.approx(0.1 * 3 * 50)
    assert PairTrial(0, 0, 0, 0, 0.1).seconds(plan, longer) == pytest.approx(0.1 * 3 * 50 * 5)
    plan.recovery = 18.0  # passes over the training rows, of encoders that are trained
    assert PairTrial(0, 0, 0.1, 0, 0).seconds(plan, settings) == pytest.approx(0.1 * (3 * 150 + 1800))


def test_durations_are_words() -> None:
    assert [duration(one) for one in (3, 600, 36000)] == ["3 seconds", "10 minutes", "10 hours"]


def test_parts_of_settings_may_be_maps() -> None:
    made = StudySettings(**GIVEN, probe={"max_epochs": 3}, features={"keep": True})
    assert (made.probe, made.features) == (ProbeSettings(max_epochs=3), FeatureSettings(keep=True))
    with pytest.raises(PapaError, match=r"probe has no argument 'max_epoch'. Did you mean 'max_epochs'\?"):
        StudySettings(**GIVEN, probe={"max_epoch": 3})
    with pytest.raises(PapaError, match="probe is 3, but must be a ProbeSettings or a map with "):
        StudySettings(**GIVEN, probe=3)
