"""Files that change in place, under their old name and with their old time: no result of before is taken for theirs."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from papa_lightning import AttentionConstants
from papa_lightning.study import ProbeSettings, Study, StudySettings
from papa_lightning.study.budget.points import open_split_bench
from papa_lightning.study.budget.settings import BudgetSettings
from papa_lightning.study.comparison.run import cell_hashes
from papa_lightning.study.comparison.settings import KindsSettings


def change(path: Path, content: bytes) -> None:
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert path.read_bytes() != content
    path.write_bytes(content)
    os.utime(path, ns=times)


def change_weights(folder: Path) -> None:
    file = folder / "encoder" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    name = next(name for name in weights if "query.weight" in name)
    change(file, safetensors.torch.save({**weights, name: weights[name].clone().mul_(3)}, {"format": "pt"}))


def change_configuration(folder: Path) -> None:
    file = folder / "encoder" / "config.json"
    change(file, json.dumps(json.loads(file.read_text()) | {"layer_norm_eps": 0.5}).encode())


def change_tokenizer(folder: Path) -> None:
    file = folder / "encoder" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    change(file, json.dumps(tokenizer).encode())


def change_constants(folder: Path) -> None:
    change(folder / "constants.safetensors", constants(1).save(folder / "other.safetensors").read_bytes())


def change_rows(folder: Path) -> None:
    file = folder / "data" / "validation.jsonl"
    change(file, file.read_bytes().replace(b"good film", b"poor film"))


def constants(seed: int) -> AttentionConstants:
    values = torch.rand(2, 2, 16, 16, generator=torch.Generator().manual_seed(seed))
    return AttentionConstants(values / values.sum(-1, keepdim=True), torch.ones(16, 16))


@pytest.fixture
def files(encoder_folder: str, data_folder: str, tmp_path: Path) -> Path:
    shutil.copytree(encoder_folder, tmp_path / "encoder")
    shutil.copytree(data_folder, tmp_path / "data")
    constants(0).save(tmp_path / "constants.safetensors")
    return tmp_path


def task(folder: Path, **others: Any) -> dict[str, Any]:
    return {"class_path": "SST2DataModule", "init_args": {"data_dir": str(folder), "max_length": 16, **others}}


@pytest.mark.parametrize(
    "changed", [change_weights, change_configuration, change_tokenizer, change_constants, change_rows]
)
def test_a_training_of_a_kind(changed: Callable[[Path], None], files: Path) -> None:
    settings = KindsSettings(
        model={"class_path": "SequenceClassificationTask", "init_args": {"encoder": str(files / "encoder")}},
        data=task(files / "data", tokenizer=str(files / "encoder")),
        variants={"stock": {}, "constant": {"kind": "constant", "constants": str(files / "constants.safetensors")}},
        equal_parameters=False,
    )
    before = cell_hashes(settings, [0])
    assert cell_hashes(settings, [0]) == before
    changed(files)
    after = cell_hashes(settings, [0])
    same = {variant for variant, seed in before if before[variant, seed] == after[variant, seed]}
    assert same == ({"stock"} if changed is change_constants else set())


def study(files: Path, **others: Any) -> StudySettings:
    tasks = {"sst2": task(files / "data"), "other": task(files / "other")}
    shares: dict[str, Any] = {"shares": [0, 0.5, 1], "constants": ["average", "other:other"], "seeds": [0]}
    probe = ProbeSettings(max_epochs=1, batch_size=4)
    return StudySettings(encoders={"tiny": str(files / "encoder")}, tasks=tasks, probe=probe, **(shares | others))


def keys(settings: StudySettings, folder: Path) -> dict[Any, str]:
    plan, _ = Study(settings, folder / "study").plan()
    return dict(plan.keys)


@pytest.mark.parametrize("changed", [change_weights, change_configuration, change_tokenizer])
def test_a_probe_of_a_study(changed: Callable[[Path], None], files: Path) -> None:
    shutil.copytree(files / "data", files / "other")
    before = keys(study(files), files)
    assert keys(study(files), files) == before
    changed(files)
    assert set(keys(study(files), files).values()).isdisjoint(before.values())


def test_a_control_depends_on_the_rows_of_the_other_task(files: Path) -> None:
    shutil.copytree(files / "data", files / "other")
    before = keys(study(files), files)
    rows = (files / "other" / "train.jsonl").read_text()
    (files / "other" / "train.jsonl").write_text(rows.replace("good film", "good old film"))
    after = keys(study(files), files)
    assert {choice.kind for choice, seed in before if before[choice, seed] != after[choice, seed]} == {"other:other"}


def test_batches_of_the_encoder_count(files: Path) -> None:
    """Up to rounding they do not matter, but to a criterion that trains; and rounding may turn a ranking."""
    shutil.copytree(files / "data", files / "other")
    before = keys(study(files), files)
    after = keys(replace(study(files), calibration_batch_size=3), files)
    assert set(after.values()).isdisjoint(before.values())


def test_a_study_in_the_same_process_reads_the_rows_again(files: Path) -> None:
    """As in a notebook: the data are mended, and the cell is run again."""
    settings = StudySettings(
        encoders={"tiny": str(files / "encoder")},
        tasks={"sst2": task(files / "data")},
        shares=[0],
        seeds=[0],
        probe=ProbeSettings(max_epochs=1, batch_size=4),
    )

    def run(name: str) -> Any:
        table = Study(settings, files / name).run(progress=False)
        return table[["metric", "score", "hash"]].values.tolist()

    before = run("a")
    rows = [json.loads(line) for line in (files / "data" / "validation.jsonl").read_text().splitlines()]
    turned = [{**row, "label": 1 - row["label"]} for row in rows]
    (files / "data" / "validation.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in turned))
    again, fresh = run("a"), run("b")
    assert again == fresh
    assert again != before


@pytest.mark.parametrize("changed", [change_weights, change_configuration, change_tokenizer])
def test_a_plan_within_a_budget(changed: Callable[[Path], None], files: Path) -> None:
    settings = BudgetSettings(encoder=str(files / "encoder"), task=task(files / "data"), within="1%", device="cpu")

    def seen() -> tuple[Any, str]:
        bench, _ = open_split_bench(settings)
        return bench.identity, bench.seen

    before = seen()
    assert seen() == before
    changed(files)
    assert all(new != old for new, old in zip(seen(), before, strict=True))
