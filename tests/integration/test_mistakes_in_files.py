"""Mistakes in configuration files: file and line, and what was probably meant; options for parts of their values."""

from pathlib import Path

import pytest

from papa_lightning.cli.configurations import locate_configs, place_of
from papa_lightning.cli.main import main

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

STUDY = """encoders:
  small: nowhere
tasks:
  tickets:
    class_path: DemoDataModule
    init_args:
      max_length: 16
output: o
"""
FIT = """model:
  class_path: SequenceClassificationTask
  init_args:
    encoder: nowhere
data:
  class_path: DemoDataModule
trainer:
  callbacks:
  - class_path: ConstantAttention
    init_args:
      heads: all
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args:
      save_top_k: 1
"""


def refused(capsys: pytest.CaptureFixture[str], verb: str, text: str, *words: str) -> str:
    Path("mine.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--config", "mine.yaml", *words])
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("papa: error: ")]
    return line.removeprefix("papa: error: ")


@pytest.mark.parametrize(
    ("verb", "text", "message"),
    [
        ("study", f"{STUDY}share: [0]\n", "mine.yaml, line 9: there is no argument share. Did you mean 'shares'?"),
        ("study", f"{STUDY}probe:\n  max_epoch: 3\n", "mine.yaml, line 10: there is no argument probe.max_epoch. Did"),
        (
            "study",
            f"{STUDY}probe:\n  max_epochs: many\n",
            "mine.yaml, line 10: probe.max_epochs is many, but must be i",
        ),
        ("study", f"{STUDY}shares: [0, 2]\n", "mine.yaml, line 9: shares has 2.0, but a share of heads lies"),
        (
            "study",
            STUDY.replace("init_args", "init_arg"),
            "init_arg, but a task is a data module: class_path, e.g. SST2D",
        ),
        (
            "fit",
            FIT.replace("trainer:", "trainr:"),
            "mine.yaml, line 8: there is no argument trainr.callbacks. Did you",
        ),
        ("fit", FIT.replace("heads", "head"), "mine.yaml, line 11: trainer.callbacks.head is no argument of Constant"),
        (
            "fit",
            FIT.replace("heads: all", "heads: some"),
            "mine.yaml, line 11: trainer.callbacks.heads is some, but must be 'all'",
        ),
        (
            "fit",
            FIT.replace("DemoData", "DmoData"),
            "mine.yaml, line 6: data is DmoDataModule, but must be the name or",
        ),
        ("fit", f"{FIT}trainer:\n  max_epochs: 3\n", "where the key 'trainer' of line 7 stands again in line 15: keep"),
        ("fit", "trainer:\n\tmax_epochs: 3\n", "no YAML: line 2, column 1: a tab, where YAML takes spaces only"),
        ("fit", "trainer:\n  max_epochs: [3\nmodel: x\n", "no YAML: line 3, column 6: expected ',' or ']'"),
        ("fit", "trainer:\n  max_epochs: 3\n   max_steps: 3\n", "line 3, column 13: a colon that makes no key here"),
        ("fit", "- a\n", "config is 'mine.yaml', which holds a list, but must have a key in each line"),
        ("study", "hello\n", "config is 'mine.yaml', which holds text, but must have a key"),
        ("study", "\n", "config is 'mine.yaml', which is empty"),
    ],
)
def test_the_line_names_file_and_line(verb: str, text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, verb, text)


def test_a_value_of_the_command_line_is_not_looked_for_in_files(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "study", f"{STUDY}shares: [0]\n", "--shares", "[2]")
    assert line.startswith("shares has 2")


def test_a_file_of_a_similar_name_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    Path("tickets.yaml").write_text(STUDY)
    assert "Did you mean 'tickets.yaml'?" in refused(capsys, "study", STUDY, "--config", "tikets.yaml")


def test_the_end_of_a_key_is_found_where_it_stands_once() -> None:
    Path("mine.yaml").write_text(STUDY)
    words = locate_configs(["study", "--config=mine.yaml"])
    assert place_of("max_length", "", words) == "mine.yaml, line 7"
    assert place_of("tasks.tickets", "DemoDataModule", words) == "mine.yaml, line 5"
    assert place_of("nothing", "", words) is None


def printed(capsys: pytest.CaptureFixture[str], verb: str, text: str, *words: str) -> list[str]:
    Path("mine.yaml").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--config", "mine.yaml", *words, "--print_config"])
    assert stopped.value.code == 0
    return [line.strip() for line in capsys.readouterr().out.splitlines()]


def test_options_change_parts_of_maps_at_any_depth(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(
        capsys, "study", STUDY, "--tasks.tickets.init_args.max_length", "32", "--tasks.tickets.max_train_examples=8"
    )
    assert {"class_path: DemoDataModule", "max_length: 32", "max_train_examples: 8", "small: nowhere"} <= {*lines}
    budget = "encoder: e\ntask:\n  class_path: DemoDataModule\n  init_args: {max_length: 16}\nwithin: 1%\noutput: o\n"
    lines = printed(capsys, "budget", budget, "--task.init_args.max_train_examples", "80")
    assert {"class_path: DemoDataModule", "max_length: 16", "max_train_examples: 80"} <= {*lines}
    lines = printed(capsys, "budget", budget, "--task", "{class_path: DemoDataModule}", "--task.init_args.seed", "1")
    assert "max_length: 16" not in lines
    assert "seed: 1" in lines


def test_a_later_file_wins_over_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    Path("later.yaml").write_text(STUDY.replace("max_length: 16", "max_length: 8"))
    option = ["--tasks.tickets.init_args.max_length", "32"]
    assert "max_length: 8" in printed(capsys, "study", STUDY, *option, "--config", "later.yaml")
    assert "max_length: 32" in printed(capsys, "study", STUDY, "--config", "later.yaml", *option)


def test_a_part_of_what_no_file_has_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'ticket', which no file or earlier option has. Did you mean 'tickets'?" in refused(
        capsys, "study", STUDY, "--tasks.ticket.init_args.max_length", "32"
    )


@pytest.mark.parametrize("item", ["0", "0.init_args", "ConstantAttention"])
def test_options_change_items_of_lists(item: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "fit", FIT, f"--trainer.callbacks.{item}.heads", "0.5", "--trainer.callbacks.save_top_k=3")
    assert {"heads: 0.5", "save_top_k: 3"} <= {*lines}  # without an item, the last one, as in jsonargparse
