"""Verbs: registered once, found everywhere; configurations are found by name from any folder."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fresh_processes import in_a_new_process

from papa_lightning import PapaError
from papa_lightning.cli.configurations import locate_configs, shipped
from papa_lightning.cli.main import main
from papa_lightning.cli.verbs.registry import VERBS

TOOLS = Path(__file__).parents[2] / "tools"
pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def greet(name: str, *, times: int = 1, loudly: bool = False) -> str:
    """Greet by name.

    Args:
        name: Name of a person.
        times: Number of greetings.
        loudly: Use capital letters.
    """
    text = " ".join([f"hello {name}"] * times)
    return text.upper() if loudly else text


@pytest.fixture
def toy() -> Iterator[None]:
    VERBS["greet"] = greet
    yield
    del VERBS["greet"]


@pytest.mark.usefixtures("toy")
def test_a_registered_verb_is_in_the_help_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "    greet       Greet by name.\n" in capsys.readouterr().out
    assert main(["greet", "Ada"]) == "hello Ada"
    assert main(["greet", "Ada", "--loudly"]) == "HELLO ADA"
    Path("greet.yaml").write_text("times: 2\nloudly: true\n")
    assert main(["greet", "Ada", "--config", "greet.yaml", "--loudly", "false"]) == "hello Ada hello Ada"
    with pytest.raises(SystemExit):
        main(["greet", "Ada", "--times", "often"])
    assert capsys.readouterr().err == "papa: error: times is often, but must be int\n"
    with pytest.raises(SystemExit):
        main(["great"])
    assert "greet" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_a_registered_verb_is_in_the_tables_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from make_command_tables import command_tables

    section = command_tables().partition("### papa greet\n\n")[2].partition("\n\n###")[0]
    assert section.splitlines() == [
        "Greet by name.", "", "| argument | default | |", "| --- | --- | --- |",
        "| `NAME` | required | Name of a person. |", "| `--times` | `1` | Number of greetings. |",
        "| `--loudly` | `false` | Use capital letters. |",
    ]  # fmt: skip


def test_a_broken_verb_of_another_package_leaves_the_help_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from importlib.metadata import EntryPoint

    entry = EntryPoint("broken", "no_such_package:verb", "papa_lightning.verbs")
    monkeypatch.setitem(VERBS.__dict__, "_offered", {"broken": entry})
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "    broken      cannot be imported: " in capsys.readouterr().out


def imported_by_help() -> list[str]:
    with pytest.raises(SystemExit):
        main(["--help"])
    return [name for name in sys.modules if name.startswith(("papa_lightning.study", "papa_lightning.benchmark"))]


def test_help_imports_neither_studies_nor_benchmarks() -> None:
    assert in_a_new_process(imported_by_help) == []


@pytest.mark.parametrize(
    ("verb", "name", "found"),
    [
        ("fit", "demo.yaml", "demo.yaml"),
        ("study", "demo.yaml", "study/demo.yaml"),
        ("study", "study/demo.yaml", "study/demo.yaml"),
        ("budget", "budget.yaml", "study/budget.yaml"),
        ("benchmark", "tiny.yaml", "benchmark/tiny.yaml"),
        ("rank", "encoders/minilm.yaml", "encoders/minilm.yaml"),
        ("fit", "kinds/aft_full.yaml", "kinds/aft_full.yaml"),
        ("study", "sst2.yaml", "sst2.yaml"),
    ],
)
def test_names_of_shipped_configurations(verb: str, name: str, found: str) -> None:
    path = str(shipped()[found])
    assert locate_configs([verb, "--config", name, "--x", name]) == [verb, "--config", path, "--x", name]
    assert locate_configs([verb, f"--config={name}", "-c", name]) == [verb, f"--config={path}", "-c", path]


def test_a_file_in_the_working_folder_wins() -> None:
    Path("demo.yaml").write_text("seed_everything: 7\n")
    words = ["fit", "--config", "demo.yaml"]
    assert locate_configs(words) == words


@pytest.mark.parametrize("text", ["{seed_everything: 1}", "seed_everything: 1", "https://host/x.yaml"])
def test_texts_and_addresses_are_left_alone(text: str) -> None:
    assert locate_configs(["fit", "--config", text]) == ["fit", "--config", text]


def test_an_unknown_name_lists_similar_ones() -> None:
    with pytest.raises(PapaError, match=r"config is 'sst.yaml', .*Similar: sst2.yaml\.$"):
        locate_configs(["fit", "--config", "sst.yaml"])


def test_fit_reads_shipped_configurations_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "defaults.yaml", "--config", "sst2.yaml", "--print_config"])
    assert stopped.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["class_path"].endswith("SST2DataModule")
    assert config["trainer"]["max_epochs"] == 15


def test_the_encoder_of_a_shipped_study_is_replaced_on_the_command_line(encoder_folder: str) -> None:
    plans = main(
        ["study", "--config", "demo.yaml", "--encoders.MiniLM-L6", encoder_folder, "--output", "o", "--dry_run"]
    )
    assert plans
    assert not Path("o", "results.csv").exists()


def test_configs_are_listed_printed_and_copied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == list(shipped())
    printed = capsys.readouterr().out
    assert "sst2.yaml                       SST-2: whether a film review is positive. Accuracy.\n" in printed
    main(["configs", "sst2.yaml"])
    assert capsys.readouterr().out == shipped()["sst2.yaml"].read_text()
    main(["configs", "study/demo.yaml", "--output", "mine.yaml"])
    assert Path("mine.yaml").read_bytes() == shipped()["study/demo.yaml"].read_bytes()
    capsys.readouterr()
    for words, message in (
        (["sst2.yaml", "--output", "mine.yaml"], "output is 'mine.yaml', which exists"),
        (["nothing.yaml"], "config is 'nothing.yaml', which is neither"),
        (["--output", "x.yaml"], "no configuration is named"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["configs", *words])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    main(["configs", "sst2.yaml", "--output", "mine.yaml", "--replace"])
    assert Path("mine.yaml").read_bytes() == shipped()["sst2.yaml"].read_bytes()
