"""`papa study`, as a user runs it, on tiny encoders and tiny data."""

import json
import os
import re
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from command_runs import start
from integration.conftest import write_rows

from papa_lightning import AttentionConstants, HeadRanking
from papa_lightning.attention import ZeroMassWarning
from papa_lightning.benchmark import applied
from papa_lightning.cli.main import main
from papa_lightning.criteria import rank_heads
from papa_lightning.errors import ResultFileError
from papa_lightning.study import Evidence, ProbeSettings, Study, StudySettings, load_table, stacked, training
from papa_lightning.study import artifacts as work
from papa_lightning.study.features import features
from papa_lightning.study.predictions import load_predictions
from papa_lightning.study.store import StudyFolder

CONFIGS = Path(__file__).parents[2] / "papa_lightning" / "configs" / "study"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def draw_report(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called by a test that looks at the report: its figures take longer than all the rest of a study."""
    timed_report = applied.timed_report
    monkeypatch.setattr(applied, "timed_report", lambda folder: (Path(folder) / "report.html", []))
    return lambda: monkeypatch.setattr(applied, "timed_report", timed_report)


@pytest.fixture
def config(encoder_folder: str, data_folder: str) -> dict[str, Any]:
    return small_study(encoder_folder, data_folder)


@pytest.fixture
def longer_data(tmp_path: Path) -> str:
    """Sentences of which those of the validation are longer than all others."""
    for split, words in (("train", 4), ("validation", 9)):
        rows = [{"sentence": "a " * words + "film", "label": number % 2, "idx": number} for number in range(12)]
        write_rows(tmp_path / f"{split}.jsonl", rows)
    return str(tmp_path)


def small_study(encoder: str, data: str) -> dict[str, Any]:
    """One encoder on one task."""
    return {
        "encoders": {"tiny": encoder},
        "tasks": {"sst2": _task("SST2DataModule", data)},
        "criteria": ["variance"],
        "shares": [0, 0.5, 1],
        "seeds": [0, 1],
        "probe": {"max_epochs": 2, "batch_size": 4, "learning_rate": 0.01},
    }


def _task(name: str, folder: str) -> dict[str, Any]:
    return {"class_path": name, "init_args": {"data_dir": folder, "max_length": 24}}


def run(config: dict[str, Any], *arguments: str, output: str = "out") -> Any:
    Path("study.yaml").write_text(yaml.safe_dump(config))
    return main(["study", "--config", "study.yaml", "--output", output, *arguments])


def same_numbers(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Up to rounding: products of matrices may round otherwise where their memory begins elsewhere."""
    tables = [table.drop(columns=["seconds"]) for table in (one, other)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-5, atol=1e-5)


def test_every_cell_is_in_the_table_and_the_report(
    config: dict[str, Any], data_folders: dict[str, str], draw_report: Callable[[], None]
) -> None:
    draw_report()
    config["tasks"]["ner"] = _task("NERDataModule", data_folders["ner"])
    config["criteria"] = ["variance", "random", "random:1"]
    config["constants"] = ["average", "uniform", "zero", "sequences:4", "other:ner"]
    table = run(config)
    scores = table[table.is_score]
    # For each task: 3 rankings x 3 shares of the average, 2 shares of each of 4 controls, all with 2 seeds.
    assert len(scores) == 2 * (3 * 3 + 4 * 2) * 2
    assert set(scores[scores.task == "ner"].metric) == {"entity_f1"}
    assert scores.score.between(0, 1).all()
    assert set(scores.constant_heads) == {0, 2, 4}
    assert set(scores[scores.criterion == "random"].ranking_seed) == {0, 1}
    pd.testing.assert_frame_equal(load_table("out"), table)
    page = Path("out/report.html").read_text()
    assert "tiny" in page
    assert "ner" in page
    assert page.count("times the stock encoder") == 2
    noted = json.loads(Path("out/study.json").read_text())
    for entry in noted["files"]["constants"]:
        assert AttentionConstants.load(f"out/{entry['path']}").max_length == 24
    for entry in noted["files"]["rankings"]:
        assert len(HeadRanking.load(f"out/{entry['path']}").heads) == 4
    assert not list(Path("out/features").iterdir())


def test_a_line_at_the_end_says_what_was_filled_and_nothing_warns(
    config: dict[str, Any], longer_data: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config["tasks"] = {"sst2": _task("SST2DataModule", longer_data)}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ZeroMassWarning)
        run(config | {"criteria": ["variance", "random"], "constants": ["average", "shuffled", "sequences:2"]})
    lines = capsys.readouterr().out.splitlines()
    (place,) = [number for number, line in enumerate(lines) if "never saw" in line]
    average = AttentionConstants.load(next(Path("out/constants").glob("*average*")))
    unseen = int((average.pair_counts == 0).sum())
    assert unseen > 0
    assert "filled" not in average.metadata
    assert lines[place] == f"filled {unseen} of 576 position pairs, which calibration never saw (tiny, sst2)"
    assert lines[place + 1].startswith("results  ")


def test_what_cannot_be_filled_is_warned_of_once_a_run(
    config: dict[str, Any], longer_data: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AttentionConstants, "filled", lambda self: self)
    config["tasks"] = {"sst2": _task("SST2DataModule", longer_data)}
    with pytest.warns(ZeroMassWarning, match=r"real tokens at positions \[.*\] attend to nothing") as caught:
        run(config | {"criteria": ["variance", "random"]})
    assert sum(one.category is ZeroMassWarning for one in caught) == 1


def test_all_heads_are_the_same_heads_for_every_criterion(config: dict[str, Any]) -> None:
    table = run(config | {"criteria": ["variance", "random"]})
    everything = table[(table.share == 1) & table.is_score].pivot(index="seed", columns="criterion", values="hash")
    assert (everything["variance"] == everything["random"]).all()


def test_the_second_run_does_nothing(
    config: dict[str, Any], done: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    times = {path: path.stat().st_mtime_ns for path in Path("out").glob("c*/*")}
    second = run(config)
    printed = capsys.readouterr().out
    assert "\n0 probes to train" in printed
    assert "Time: " not in printed
    assert {path: path.stat().st_mtime_ns for path in Path("out").glob("c*/*")} == times
    pd.testing.assert_frame_equal(done, second)


@pytest.mark.parametrize(
    ("place", "value"),
    [("learning_rate", 0.02), ("max_epochs", 1), ("batch_size", 5), ("dropout", 0.3), ("schedule", "linear")],
)
def test_changed_settings_never_find_old_results(
    config: dict[str, Any], done: pd.DataFrame, place: str, value: Any
) -> None:
    config["probe"][place] = value
    assert not set(done.hash) & set(measure(config).hash)


def test_the_recipe_of_a_task_is_as_if_all_tasks_had_it(config: dict[str, Any], done: pd.DataFrame) -> None:
    config["tasks"]["sst2"]["probe"] = config["probe"]
    config["probe"] = {"learning_rate": 1.0, "max_epochs": 9}
    assert measure(config).hash.tolist() == done.hash.tolist()


def test_changed_data_never_find_old_results(config: dict[str, Any], done: pd.DataFrame, tmp_path: Path) -> None:
    task = config["tasks"]["sst2"]["init_args"]
    changed = tmp_path / "changed"
    shutil.copytree(task["data_dir"], changed)
    lines = (changed / "train.jsonl").read_text().splitlines()
    (changed / "train.jsonl").write_text("\n".join([*lines[:-1], lines[-1].replace("film", "song")]))
    config["tasks"] = {"sst2": _task("SST2DataModule", str(changed))}
    assert not set(done.hash) & set(measure(config).hash)


def test_a_result_under_the_name_of_another_is_refused(config: dict[str, Any], done: pd.DataFrame) -> None:
    one, other = sorted(Path("out/cells").glob("*.json"))[:2]
    shutil.copy(one, other)
    with pytest.raises(ResultFileError, match=rf"{other.name}' is that of another result, '{one.stem}"):
        measure(config)


def test_predictions_are_kept_beside_the_scores(config: dict[str, Any], done: pd.DataFrame) -> None:
    folder = StudyFolder("out")
    for _, row in done[done["metric"] == "accuracy"].iterrows():
        kept = load_predictions(folder.predictions(row["hash"]))[""]
        assert float((kept.predicted == kept.labels).double().mean()) == pytest.approx(row["score"])
    evidence = Evidence.read("out")
    assert set(evidence.summary["basis"]) == {"examples"}  # of two seeds
    assert evidence.margin == 0.03
    written = pd.read_csv("out/summary.csv", keep_default_na=False, na_values=[""])
    assert list(written.columns) == list(evidence.summary.columns)
    numbers = evidence.summary.select_dtypes("number").columns
    pd.testing.assert_frame_equal(written[numbers], evidence.summary[numbers], check_dtype=False)


def test_more_seeds_add_to_what_is_there(config: dict[str, Any], done: pd.DataFrame) -> None:
    together = run(config | {"seeds": [1, 0, 2]})
    assert set(done.hash) < set(together.hash)
    fresh = run(config | {"seeds": [1, 0, 2]}, output="fresh")
    same_numbers(together, fresh)


def test_a_dry_run_writes_nothing(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    (plan,) = run(config, "--dry_run")
    assert plan.missing == plan.total == 3 * 2
    assert plan.passes == pytest.approx(1 + 3 * (1 + 6 / 12))  # calibration, and 3 choices over train and validation
    printed = capsys.readouterr().out
    assert "6 probes to train" in printed
    assert re.search(r"time: about \d+ seconds with one worker on this machine, from a trial on up to 96", printed)
    assert [line.split() for line in printed.splitlines()[1:4]] == [
        ["tiny", "sst2", "0", "-", "-", "0,", "1"],
        ["tiny", "sst2", "0.5", "variance", "average", "0,", "1"],
        ["tiny", "sst2", "1", "-", "average", "0,", "1"],
    ]
    assert not Path("out").exists()


@pytest.mark.parametrize("storage", ["float32", "none"])
def test_the_parts_of_a_run_take_its_time(
    storage: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    config["criteria"] = ["taylor"]  # which trains a probe of its own
    run(config | {"features": {"storage": storage}})
    lines = capsys.readouterr().out.splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("Time: "))
    wall = float(lines[place].split()[1])
    parts = {line.split()[0]: float(line.split()[-3]) for line in lines[place + 2 : place + 7]}
    assert list(parts) == ["loading", "encoder", "storing", "probes", "other"]
    assert sum(parts.values()) <= wall + 0.3  # nothing counts twice; figures are rounded
    assert storage != "none" or parts["storing"] == 0


def test_stored_features_give_the_numbers_of_the_running_encoder(config: dict[str, Any], done: pd.DataFrame) -> None:
    live = run(config | {"features": {"storage": "none"}}, output="live")
    same_numbers(done, live)


@pytest.mark.parametrize(("keep", "free", "probes"), [(False, 10**9, [6]), (True, 10**9, [6]), (False, 10**3, [])])
def test_features_in_the_memory_of_a_device_give_the_numbers_of_files(
    config: dict[str, Any],
    done: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    keep: bool,
    free: int,
    probes: list[int],
) -> None:
    together = list[int]()

    def train(probes: Any, *how: Any) -> Any:
        together.append(len(probes))
        return stacked.train_stacked(probes, *how)

    monkeypatch.setattr(training, "train_stacked", train)
    for module in (features, work):
        monkeypatch.setattr(module, "is_gpu", lambda device: True)
    monkeypatch.setattr(features, "free_bytes", lambda device: free)
    same_numbers(run(config | {"features": {"keep": keep}}, output="other"), done)
    assert together == probes
    assert bool(list(Path("other/features").glob("*/train"))) == keep


def test_packing_changes_no_number_but_is_never_mixed(config: dict[str, Any], done: pd.DataFrame) -> None:
    padded = run(config | {"packing": False}, output="padded")
    few = run(config | {"tokens_per_batch": 16}, output="few")
    for other in (padded, few):
        same_numbers(done.drop(columns="hash"), other.drop(columns="hash"))
        assert not set(done.hash) & set(other.hash)
    facts = [json.loads(Path(folder, "study.json").read_text())["about"] for folder in ("padded", "few")]
    assert [one["packing"] for one in facts] == [None, {"tokens_per_batch": 16}]
    constants = AttentionConstants.load(next(Path("few/constants").iterdir()))
    assert constants.metadata["packing"] == {"tokens_per_batch": 16}


def test_kept_features_serve_further_seeds(config: dict[str, Any]) -> None:
    kept = {"features": {"keep": True}}
    run(config | kept)
    files_before = {path: path.stat().st_mtime_ns for path in Path("out/features").rglob("*") if path.is_file()}
    assert files_before
    more = run(config | kept | {"seeds": [0, 1, 2]})
    assert {path: path.stat().st_mtime_ns for path in files_before} == files_before
    same_numbers(more, run(config | {"seeds": [0, 1, 2]}, output="fresh"))


def test_rankings_that_learn_depend_neither_on_the_process_nor_on_others(config: dict[str, Any]) -> None:
    def rank(output: str, criteria: list[str]) -> HeadRanking:
        torch.manual_seed(len(criteria))  # what another process happens to have
        run(config | {"criteria": criteria}, output=output)
        (path,) = Path(output).glob("rankings/*gate*")
        return HeadRanking.load(path)

    assert rank("together", ["taylor", "gate"]) == rank("alone", ["gate"])


def test_criteria_that_depend_on_the_order_of_rows_get_a_random_one(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files may be sorted by label: one half would teach a gate the opposite of the other."""
    labels = [number // 8 for number in range(16)]
    for split in ("train", "validation"):
        rows = [{"sentence": f"a film {number}", "label": one, "idx": number} for number, one in enumerate(labels)]
        write_rows(tmp_path / f"{split}.jsonl", rows)
    config["tasks"] = {"sst2": _task("SST2DataModule", str(tmp_path))}
    seen = dict[str, list[int]]()

    def watched(criterion: Any, inputs: Any) -> HeadRanking:
        seen[criterion] = [int(label) for batch in inputs.batches for label in batch.get("labels", [])]
        return rank_heads(criterion, inputs)

    monkeypatch.setattr(work, "rank_heads", watched)
    run(config | {"criteria": ["taylor", "gate", "greedy:8"], "shares": [0.5], "seeds": [0]})
    assert seen["taylor"] == labels
    assert seen["gate"] != labels
    assert sorted(seen["gate"]) == labels
    assert seen["greedy:8"] == seen["gate"]
    assert len(set(seen["greedy:8"][:8])) == 2


def test_heads_of_a_task_with_a_probe_are_ranked_by_the_mean_of_their_hidden_states_too(config: dict[str, Any]) -> None:
    table = run(config | {"criteria": ["embedding:4"], "seeds": [0], "shares": [0.5]})
    assert set(table["criterion"]) == {"embedding:4"}
    (path,) = Path("out").glob("rankings/*embedding*")
    assert max(HeadRanking.load(path).scores or []) > 0


@pytest.mark.distributed
@pytest.mark.usefixtures("quick_workers")
def test_two_workers_give_the_table_of_one(
    config: dict[str, Any], encoder_folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    config["encoders"]["other"] = encoder_folders["roberta"]
    one = run(config, output="one")
    capsys.readouterr()
    two = run(config, "--num_workers", "2", output="two")
    same_numbers(one, two)
    assert "its parts are summed over 2 workers" in capsys.readouterr().out


class Killed(BaseException):
    """Simulates a kill: nothing in the package may catch it."""


@pytest.mark.parametrize("survivors", range(0, 17, 3))
def test_interrupted_between_any_two_files_it_ends_the_same(
    config: dict[str, Any], undisturbed: pd.DataFrame, survivors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, written = os.replace, []

    def replace(source: Any, target: Any) -> None:
        if len(written) == survivors:
            raise Killed
        written.append(target)
        whole(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("papa_lightning.files.writing.os.replace", replace)
        with pytest.raises(Killed):
            measure(config)
    same_numbers(measure(config), undisturbed)


def measure(config: dict[str, Any]) -> pd.DataFrame:
    """The study without command line and report."""
    settings = StudySettings(**config | {"probe": ProbeSettings(**config["probe"])})
    return Study(settings, "out").run(progress=False)


@pytest.fixture(scope="module")
def undisturbed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed") / "study"


@pytest.fixture(scope="module")
def undisturbed(undisturbed_folder: Path, encoder_folder: str, data_folder: str) -> pd.DataFrame:
    settings = small_study(encoder_folder, data_folder)
    settings |= {"probe": ProbeSettings(**settings["probe"])}
    return Study(StudySettings(**settings), undisturbed_folder).run(progress=False)


@pytest.fixture
def done(undisturbed: pd.DataFrame, undisturbed_folder: Path) -> pd.DataFrame:
    """The small study has run before, in the folder that tests write to."""
    shutil.copytree(undisturbed_folder, "out")
    return undisturbed


def test_killed_it_goes_on(config: dict[str, Any], undisturbed: pd.DataFrame) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(config))
    process = start(["study", "--config", "study.yaml", "--output", "out"], Path.cwd())
    while len(list(Path("out/cells").glob("*.json"))) < 2 and process.is_alive():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    left = {path.name for path in Path("out/cells").glob("*.json")}
    assert len(left) >= 2
    same_numbers(measure(config), undisturbed)


def test_a_folder_in_use_is_refused_by_name(
    config: dict[str, Any], done: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    with Study(StudySettings(**config | {"probe": ProbeSettings(**config["probe"])}), "out").folder.claimed():
        (kept := Path("out/features/.of_the_first")).mkdir(parents=True)
        with pytest.raises(SystemExit) as stopped:
            run(config | {"seeds": [5]})
        assert stopped.value.code == 2
        assert f"output is 'out', where process {os.getpid()} on" in capsys.readouterr().err
        assert kept.exists()
        assert main(["study", "--config", "study.yaml", "--output", "out", "--dry_run"])[0].missing
        assert len(list(Path("out/cells").glob("*.json"))) == 6
    assert len(run(config | {"seeds": [5]})) == 3 * 2, "and what it left is gone"
    assert not list(Path("out/features").iterdir())


def test_ctrl_c_ends_with_one_line(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work, "train_sets", interrupted)
        with pytest.raises(SystemExit) as stopped:
            run(config)
    assert stopped.value.code == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.endswith("papa: Interrupted: the same command goes on.")
    assert len(run(config)[lambda table: table.is_score]) == 6


def test_a_piece_that_fails_is_named(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    config["probe"]["learning_rate"] = 1e38
    with pytest.raises(SystemExit) as stopped:
        run(config)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "encoder tiny, task sst2, share 0, seeds 0, 1: the loss of seed 0 is not finite" in line


@pytest.mark.parametrize("number", ["0", "-1", "1000000", "2.5", "many"])
def test_numbers_of_workers_that_cannot_be_meant(
    number: str, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(config, "--num_workers", number)
    assert stopped.value.code == 2
    assert f"num_workers is {number}, but" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoders": {"tiny": "no/such/folder"}}, ["no/such/folder"]),
        ({"tasks": {"t": {"class_path": "NoDataModule"}}}, ["NoDataModule"]),
        ({"tasks": {"t": {"class_path": "DemoDataModule", "init_args": {"max_lenght": 9}}}}, ["max_lenght"]),
        (
            {"tasks": {"t": {"class_path": "DemoDataModule", "init_args": {"preset": "reference"}}}},
            ["preset", "default"],
        ),
        ({"criteria": ["luck"]}, ["luck"]),
        ({"probe": {"max_epochs": 0}}, ["max_epochs", "0"]),
        ({"features": {"budget_gigabytes": 1e-9}}, ["budget"]),
        ({"constants": ["average", "sequences:13"]}, ["sequences:13", "12"]),
        ({"device": "tpu9"}, ["device", "tpu9"]),
        ({"seeds": []}, ["seeds"]),
    ],
)
def test_bad_input_ends_with_one_line(
    config: dict[str, Any], changes: dict[str, Any], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(config | changes)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("kind", "words"),
    [("sequences:13", ["'sequences:13'", "has 12 training rows"]), ("other:longer", ["max_length 40", "24"])],
)
def test_constants_that_the_data_cannot_give_are_refused_before_anything_runs(
    config: dict[str, Any], capsys: pytest.CaptureFixture[str], kind: str, words: list[str]
) -> None:
    longer = {**config["tasks"]["sst2"]["init_args"], "max_length": 40}
    config["tasks"]["longer"] = {"class_path": "SST2DataModule", "init_args": longer}
    config["constants"] = ["average", kind]
    with pytest.raises(SystemExit) as stopped:
        run(config)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert all(word in line for word in words), line
    assert not Path("out").exists()


def test_a_report_of_no_study_ends_with_one_line(
    draw_report: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    draw_report()
    with pytest.raises(SystemExit) as stopped:
        main(["report", "nowhere"])
    assert stopped.value.code == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        ["demo"],
        ["defaults", "six_tasks"],
        ["defaults", "controls"],
        ["evidence"],
        ["evidence", "evidence_criteria"],
        ["graded"],
    ],
)
def test_every_shipped_study_runs(names: list[str], encoder_folder: str, data_folders: dict[str, str]) -> None:
    shipped: dict[str, Any] = {}
    for name in names:
        shipped |= yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    tasks = shipped.get("tasks") or {"sst2": _task("SST2DataModule", data_folders["sst2"])}
    shares = shipped["shares"]
    if names[0] == "evidence":  # a task of each kind, and one share between the ends
        tasks, shares = {name: tasks[name] for name in ("sst2", "ner")}, [0, 0.5, 1]
    for task, settings in tasks.items():
        folder = {"data_dir": data_folders.get(task, data_folders["sst2"])}
        settings["init_args"] = {"max_length": 24} | folder
    constants = [one for one in shipped.get("constants", ["average"]) if not re.fullmatch(r"sequences:\d\d+", one)]
    tiny = {"encoders": {next(iter(shipped["encoders"])): encoder_folder}, "tasks": tasks, "seeds": [0]}
    criteria = [one for one in shipped["criteria"] if not re.fullmatch(r"random:\d", one)]
    tiny |= {"probe": {"max_epochs": 1}, "constants": constants, "shares": shares, "criteria": criteria}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    configs = [f"--config={CONFIGS / name}.yaml" for name in names]
    table: Any = main(["study", *configs, "--config=tiny.yaml", "--output=out"])
    scores = table[table.is_score]
    assert set(scores.task) == set(tasks)
    assert set(scores.share) == {0, *shares, *shipped.get("control_shares", [])}
    assert set(scores.constants) == set(constants)
    assert scores.score.notna().all()


def test_every_shipped_configuration_is_run() -> None:
    run_here = {"demo", "defaults", "six_tasks", "controls", "evidence", "evidence_criteria", "graded"}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == run_here | {
        "budget",  # test_budget_command runs that
        *("embeddings", "evidence_embeddings"),  # test_embedding_studies runs these
        *("kinds", "heads", "kinds_digits", "kinds_converted"),  # and test_kinds_studies these
    }
