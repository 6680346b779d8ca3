"""Every YAML that is shipped, parsed and run: tasks with overlays, on tiny encoders and tiny data."""

import json
import math
import shutil
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import yaml

from papa_lightning.cli.main import main
from papa_lightning.cli.trainer_verbs import PapaCLI
from papa_lightning.encoders import is_calibrated

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs"
TASKS = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("defaults", "demo"))
OVERLAYS = sorted(path.stem for path in (CONFIGS / "encoders").glob("*.yaml"))
METRICS = {
    "cola": ["matthews_corrcoef"],
    "sst2": ["accuracy"],
    "mrpc": ["f1", "accuracy"],
    "mnli": ["accuracy", "accuracy/mismatched"],
    "ner": ["entity_f1"],
    "pos": ["token_accuracy"],
    "mlm": ["accuracy", "perplexity"],
    "stsb": ["spearman", "pearson"],
    "retrieval": ["ndcg@10", "mrr@10", "recall@100"],
}
#: Passages are longer than the tiny encoders take.
SHORT = {"retrieval": ["--data.init_args.max_length", "32"]}
#: Tasks without a probe, which have no loss beside their scores.
EMBEDDING = ("stsb", "retrieval")
# Each task and each overlay at least once.
RUNS = [(task or TASKS[0], overlay or OVERLAYS[0]) for task, overlay in zip_longest(TASKS, OVERLAYS)]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs land in the working folder; and `main` complains about the arguments of pytest."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["papa"])


def configs(task: str, overlay: str) -> list[str]:
    names = ("defaults", task, f"encoders/{overlay}")
    return [part for name in names for part in ("--config", str(CONFIGS / f"{name}.yaml"))]


def family(overlay: str) -> str:
    if "-v3-" in overlay:
        return "deberta-v2"
    return overlay.split("-")[0] if "-" in overlay else "bert"


def papa(verb: str, task: str, overlay: str, folders: dict[str, str], data: dict[str, str], *more: str) -> PapaCLI:
    cli = main([
        verb, *configs(task, overlay), "--model.init_args.encoder", folders[family(overlay)],
        "--data.init_args.data_dir", data[task], "--data.init_args.batch_size", "3", "--trainer.accelerator", "cpu",
        "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", *SHORT.get(task, []), *more,
    ])  # fmt: skip
    assert isinstance(cli, PapaCLI)
    return cli


def test_there_is_a_run_for_each() -> None:
    assert set(TASKS) == set(METRICS)
    assert len(OVERLAYS) == 9


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_over_every_task_is_a_whole_configuration(
    overlay: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = yaml.safe_load((CONFIGS / f"encoders/{overlay}.yaml").read_text())["model"]["init_args"]["encoder"]
    # One base and one token task: the files of a kind differ in the data only.
    for task in ("cola", "ner"):
        with pytest.raises(SystemExit) as stopped:
            main(["fit", *configs(task, overlay), "--print_config"])
        assert stopped.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["model"]["init_args"]["encoder"] == named
        kind = "TokenClassificationTask" if task == "ner" else "SequenceClassificationTask"
        assert config["model"]["class_path"].endswith(kind)


@pytest.mark.parametrize(("task", "overlay"), RUNS)
def test_fit_and_test(
    task: str,
    overlay: str,
    encoder_folders: dict[str, str],
    data_folders: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli = papa("fit", task, overlay, encoder_folders, data_folders)
    assert cli.model.encoder.config.model_type == family(overlay)
    assert is_calibrated(cli.model.encoder)
    scores = cli.trainer.callback_metrics
    for name in METRICS[task]:
        assert math.isfinite(scores[f"val/{name}"])
    assert cli.model.score_name == f"val/{METRICS[task][0]}"
    printed = capsys.readouterr().out
    assert "4 of 4 (100.0%)" in printed
    assert cli.model.score_name in printed

    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    type(cli.model).load_from_checkpoint(checkpoint)
    papa("test", task, overlay, encoder_folders, data_folders, "--ckpt_path", checkpoint)
    table = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("test/"))
    # There is no test split: the validation split serves, and gives the same scores.
    for name in METRICS[task] if task in EMBEDDING else [*METRICS[task], "loss"]:
        (value,) = [value for key, value in table.items() if key.strip() == f"test/{name}"]
        assert float(value) == pytest.approx(float(scores[f"val/{name}"]), abs=1e-4)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_predictions_of_a_sentence_task(encoder_folders: dict[str, str], data_folders: dict[str, str]) -> None:
    cli = papa("fit", "cola", "bert-base", encoder_folders, data_folders)
    checkpoint = cli.trainer.checkpoint_callback.best_model_path
    papa(
        "predict", "cola", "bert-base", encoder_folders, data_folders, "--ckpt_path", checkpoint, "--output", "p.jsonl"
    )
    rows = read(Path("p.jsonl"))
    assert [row["example_id"] for row in rows] == list(range(6))
    for row in rows:
        assert sum(row["probabilities"]) == pytest.approx(1.0)
        best = max(range(2), key=row["probabilities"].__getitem__)
        assert row["label"] == ("unacceptable", "acceptable")[best]


def test_predictions_of_several_loaders_and_of_words(
    encoder_folders: dict[str, str], data_folders: dict[str, str]
) -> None:
    # No head is constant, so that nothing waits for calibration.
    plain = ["--trainer.callbacks=null"]
    papa("predict", "mnli", "bert-base", encoder_folders, data_folders, *plain, "--output", "out/mnli.jsonl")
    assert sorted(path.name for path in Path("out").iterdir()) == ["mnli-matched.jsonl", "mnli-mismatched.jsonl"]
    assert [row["example_id"] for row in read(Path("out/mnli-mismatched.jsonl"))] == list(range(7))
    cli = papa("predict", "ner", "bert-base", encoder_folders, data_folders, *plain)
    rows = read(Path(cli.trainer.log_dir) / "predictions.jsonl")
    assert [len(row["labels"]) for row in rows] == [2 + i % 3 for i in range(7)]
    assert {len(word) for row in rows for word in row["probabilities"]} == {9}
    assert {label for row in rows for label in row["labels"]} <= set(cli.datamodule.label_names)


def test_predictions_of_words_without_labels(
    encoder_folders: dict[str, str], data_folders: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "unlabelled"
    shutil.copytree(data_folders["ner"], folder)
    sentences = [["EU", "rejects", "unbelievable", "calls"], ["Peter"]]
    lines = [json.dumps({"id": number, "tokens": words}) for number, words in enumerate(sentences)]
    (folder / "test.jsonl").write_text("\n".join(lines))
    data = {**data_folders, "ner": str(folder)}
    papa("predict", "ner", "bert-base", encoder_folders, data, "--trainer.callbacks=null", "--output", "p.jsonl")
    assert [len(row["labels"]) for row in read(Path("p.jsonl"))] == [4, 1]


@pytest.mark.parametrize("regime", ["fine_tune", "fine_tune_constants", "probe_constants", "constants"])
def test_every_regime_from_the_command_line(
    regime: str, encoder_folders: dict[str, str], data_folders: dict[str, str]
) -> None:
    cli = papa(
        "fit", "sst2", "bert-base", encoder_folders, data_folders, "--model.init_args.regime", regime,
        "--model.init_args.pooling", "mean",
    )  # fmt: skip
    assert cli.model.regime == regime
    assert cli.trainer.global_step == 4
