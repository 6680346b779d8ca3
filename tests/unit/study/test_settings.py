"""Settings of a study."""

import json
from typing import Any

import pytest

from papa_lightning import PapaError
from papa_lightning.study import FeatureSettings, ProbeSettings, StudySettings
from papa_lightning.study.settings import settings_from

TASKS = {"sst2": {"class_path": "SST2DataModule", "init_args": {"max_length": 8}}}


def make(**changes: Any) -> StudySettings:
    return StudySettings(**{"encoders": {"bert": "folder"}, "tasks": TASKS, **changes})


def test_settings_survive_json() -> None:
    settings = make(
        criteria=["variance", "random:3", "layer:top_down"],
        constants=["average", "uniform", "sequences:16", "other:sst2"],
        probe=ProbeSettings(max_epochs=2),
        features=FeatureSettings(storage="float16", keep=True),
    )
    assert settings_from(json.loads(json.dumps(settings.as_dict()))) == settings_from(settings.as_dict())
    assert settings_from(json.loads(json.dumps(settings.as_dict()))).as_dict() == settings.as_dict()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoders": {}}, ["encoders", "{}"]),
        ({"encoders": {"a/b": "folder"}}, ["encoders", "'a/b'", "file names"]),
        ({"encoders": {"a--b": "folder"}}, ["encoders", "'a--b'"]),
        ({"tasks": {"t": {"init_args": {}}}}, ["tasks", "'t'", "class_path"]),
        ({"tasks": {"t": {"class_path": "X", "arguments": {}}}}, ["tasks", "'t'", "arguments"]),
        ({"tasks": {"t": {"class_path": "X", "init_args": {"tokenizer": "x"}}}}, ["'t'", "tokenizer"]),
        ({"tasks": {"t": {"class_path": "X", "probe": "long"}}}, ["'t'", "probe='long'", "map"]),
        ({"tasks": {"t": {"class_path": "X", "probe": {"learning_rates": 1}}}}, ["tasks.t.probe", "learning_rate"]),
        ({"tasks": {"t": {"class_path": "X", "probe": {"max_epochs": 0}}}}, ["tasks.t", "probe.max_epochs is 0"]),
        ({"criteria": []}, ["criteria", "[]"]),
        ({"criteria": "variance"}, ["criteria", "'variance'", "list"]),
        ({"criteria": ["variance", "variance"]}, ["criteria", "twice"]),
        ({"criteria": ["luck"]}, ["luck", "variance"]),
        ({"criteria": ["random", "random:0"]}, ["criteria", "'random'", "'random:0'", "the same"]),
        ({"criteria": ["random:01", "random:1"]}, ["criteria", "'random:01'", "'random:1'", "the same"]),
        ({"shares": [0.5, 1.5]}, ["shares", "1.5"]),
        ({"control_shares": [-0.1]}, ["control_shares", "-0.1"]),
        ({"seeds": [0, 0.5]}, ["seeds", "0.5"]),
        ({"seeds": [-1]}, ["seeds", "-1"]),
        ({"constants": ["mean", "average"]}, ["mean", "average"]),
        ({"constants": ["zero"]}, ["constants", "['zero']", "'average'"]),
        ({"constants": ["average", "other:cola"]}, ["other:cola", "tasks", "sst2"]),
        ({"pooling": "max"}, ["pooling", "'max'", "layerwise"]),
        ({"calibration_batch_size": 0}, ["calibration_batch_size", "0"]),
        ({"packing": 1}, ["packing", "1"]),
        ({"tokens_per_batch": 0}, ["tokens_per_batch", "0"]),
    ],
)
def test_bad_settings_are_refused_by_name(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(PapaError) as error:
        make(**changes)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("name", "value"), [("storage", "float64"), ("budget_gigabytes", 0.0)])
def test_bad_storage_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(PapaError, match=rf"features\.{name} is {value!r}"):
        FeatureSettings(**{name: value})


def test_a_task_may_have_a_recipe_of_its_own() -> None:
    own = {"ner": {"class_path": "NERDataModule", "probe": {"learning_rate": 1e-3}}}
    settings = StudySettings(encoders={"e": "x"}, tasks=TASKS | own, probe={"learning_rate": 1e-4, "max_epochs": 3})
    assert settings.for_task("sst2") == settings
    assert settings.for_task("ner").probe == ProbeSettings(learning_rate=1e-3, max_epochs=3)
    assert settings_from(settings.as_dict()).as_dict() == settings.as_dict()
