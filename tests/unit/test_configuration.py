"""Errors of jsonargparse, Lightning and torch as the installed versions raise them, on one line."""

from argparse import ArgumentError
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, Literal

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.trainer.connectors import checkpoint_connector

from papa_lightning.cli.errors import _CONNECTOR, _RESTORING, origin
from papa_lightning.configuration import account


class Sized:
    """A class that a configuration names."""

    def __init__(self, size: int = 1) -> None:
        self.size = size


def refusal(type_: Any, *words: str) -> str:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--part", type=type_, required=True)
    with pytest.raises(ArgumentError) as raised:
        parser.parse_args(list(words))
    return account(str(raised.value))


@pytest.mark.parametrize(
    ("type_", "words", "line"),
    [
        (int, ["--part", "abc"], "part is abc, but must be int"),
        (int | None, ["--part", "abc"], "part is abc, but must be int or null"),
        (Literal["a", "b"], ["--part", "c"], "part is c, but must be 'a', 'b'"),
        (Sequence[int] | None, ["--part", "abc"], "part is abc, but must be "),
        (Sized, ["--part", "Nonsense"], "part is Nonsense, but must be the name or the import path of a class"),
        (
            Sized,
            ["--part", f"{__name__}.Sized", "--part.width", "1"],
            "part.width is no argument of Sized: choose from size",
        ),
        (Sized, ["--part", f"{__name__}.Sized", "--part.sizes", "1"], "of Sized. Did you mean 'size'?"),
        (Sized, ["--part", "torch.nn.Linear"], "part is torch.nn.Linear, which is no Sized"),
        (Sized | None, ["--part", "torch.nn.Linea"], "part is torch.nn.Linea, which cannot be used: module 'torch.nn'"),
        (Literal["apple", "pear"], ["--part", "aple"], "part is aple, but must be 'apple', 'pear'. Did you mean 'ap"),
        (Sequence[int], ["--part", "0,1"], "part is 0,1, but must be a list: [0,1]"),
        (Sized, ["--part", f"{__name__}.Sized", "--part.size", "big"], "part.size is big, but must be int"),
        (int, [], "the following arguments are required: part"),
    ],
)
def test_patterns_read_the_installed_jsonargparse(type_: Any, words: list[str], line: str) -> None:
    found = refusal(type_, *words)
    assert line in found, (
        f"jsonargparse {version('jsonargparse')} words its errors in another way ({found!r}): adapt the patterns of "
        "papa_lightning/configuration.py, and the floor in pyproject.toml"
    )
    assert "\n" not in found


def test_lightning_restores_checkpoints_where_it_is_looked_for() -> None:
    assert checkpoint_connector.__file__.endswith(_CONNECTOR)
    found = [name for name in vars(checkpoint_connector._CheckpointConnector) if name.startswith(_RESTORING)]
    assert {"restore", "restore_model", "restore_callbacks", "resume_start"} <= {*found}, (
        f"Lightning {version('lightning')} restores checkpoints elsewhere: adapt papa_lightning/cli/errors.py"
    )


def test_a_logger_whose_package_is_missing() -> None:
    message = """Does not validate against any of the Union subtypes
    Errors:
      - Problem with given class_path 'lightning.pytorch.loggers.WandbLogger':
          Requirement 'wandb>=0.12.10' not met. HINT: Try running `pip install -U 'wandb>=0.12.10'`
      - Expected a <class 'bool'>"""
    assert account(message) == "lightning.pytorch.loggers.WandbLogger: Requirement 'wandb>=0.12.10' not met"


def test_torch_refuses_other_keys_where_it_is_looked_for() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.nn.Linear(1, 1).load_state_dict({})
    assert origin(raised.value).loading, (
        f"torch {torch.__version__} refuses state dicts elsewhere: adapt Origin.loading of papa_lightning/cli/errors.py"
    )
