"""Projects of both packages of Lightning, with one of them installed or both, imported in every order."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import lightning_scenarios
import pytest

import papa_lightning

ROOT = Path(papa_lightning.__file__).parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | int | None]:
    """The error of each scenario, or None."""
    folder = tmp_path_factory.mktemp("scenarios")
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, lightning_scenarios.__file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("scenario", lightning_scenarios.SCENARIOS)
def test_callbacks_tasks_data_and_command_line_work(scenario: str, outcomes: dict[str, str | int | None]) -> None:
    assert outcomes[scenario] is None, outcomes[scenario]


def test_one_module_imports_lightning() -> None:
    importing = set()
    for file in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {name.split(".")[0] for name in names} & {"lightning", "pytorch_lightning", "lightning_fabric"}:
                importing.add(file.relative_to(ROOT).as_posix())
    assert importing == {"either_lightning.py"}
