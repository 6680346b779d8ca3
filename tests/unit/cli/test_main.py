"""The start of a command: what it imports, the order of verbs, and names that are imported when asked for."""

import subprocess
import sys

import pytest

from papa_lightning.cli.main import main, summaries
from papa_lightning.cli.trainer import PapaTrainer
from papa_lightning.cli.trainer_help import trainer_summaries
from papa_lightning.cli.verbs.registry import summary

#: As the script `papa` begins, and what it has imported at its end.
AS_PAPA = """
import json, sys
sys.argv[:] = ["papa", *sys.argv[1:]]
from papa_lightning.cli.main import main
try:
    main()
finally:
    heavy = [name for name in ("torch", "lightning", "transformers", "pandas", "matplotlib") if name in sys.modules]
    import papa_lightning
    assert "calibrate" in papa_lightning.__all__ and not hasattr(papa_lightning, "configs_of_mine")
    print(json.dumps(heavy))
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["configs"], ["stduy"]])
def test_help_imports_no_library_that_takes_seconds(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", AS_PAPA, *words], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_summaries_of_the_trainer_are_those_of_its_docstrings() -> None:
    assert trainer_summaries() == {
        name: summary(getattr(PapaTrainer, name))
        for name in ("fit", "calibrate", "rank", "predict", "validate", "test")
    }


def test_verbs_come_in_the_order_of_a_day() -> None:
    names = [name for name, _ in summaries()]
    told = ["study", "report", "budget", "fit", "validate", "test", "predict", "calibrate", "rank"]
    assert [name for name in names if name in told] == told


def test_a_script_completes_verbs_arguments_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    script = main(["completion", "bash"])
    assert isinstance(script, str)
    assert script.strip() == capsys.readouterr().out.strip()
    for word in ("--trainer.max_epochs", "--seeds", "sst2.yaml", "budget"):
        assert word in script


def test_completion_says_what_it_needs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit):
        main(["completion", "bash"])
    assert "pip install 'papa-lightning[completion]'" in capsys.readouterr().err
