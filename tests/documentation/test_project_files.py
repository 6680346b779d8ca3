"""Files around the package that name its version, its dependencies or its commands."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.version import Version

import papa_lightning

ROOT = Path(__file__).parents[2]


def lowest_versions() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lowest_versions", ROOT / "tools" / "lowest_versions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_highest_of_several_floors_counts() -> None:
    project = {
        "dependencies": ["torch>=2.6", "Some_Thing[extra]>=1.2,<3"],
        "optional-dependencies": {"dev": ["torch>=2.7", "old>=1; python_version < '3'"], "docs": ["torch>=3"]},
    }
    found = lowest_versions().floors(project, ["dev"])
    assert {name: str(version) for name, version in found.items()} == {"torch": "2.7", "some-thing": "1.2"}


@pytest.mark.parametrize(("dependency", "extra"), [("torch", "dev"), ("torch<3", "dev"), ("torch>=2", "devel")])
def test_floors_that_are_missing_are_refused(dependency: str, extra: str) -> None:
    project = {"dependencies": [dependency], "optional-dependencies": {"dev": []}}
    with pytest.raises(SystemExit, match=r"has no lowest version|extras are"):
        lowest_versions().floors(project, [extra])


def test_the_citation_and_the_changelog_name_this_version() -> None:
    release = Version(papa_lightning.__version__).base_version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == release
    dated = re.findall(r"^## \[([\d.]+)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert dated[0] == (release, citation["date-released"])


def steps(path: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_call_targets_that_the_makefile_has(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    called = {target for step in steps(path) for target in re.findall(r"\bmake (\w+)", step.get("run", ""))}
    assert called <= targets
    assert called


def test_the_other_files_of_the_host_are_yaml() -> None:
    names = [".pre-commit-config.yaml", ".github/dependabot.yml"]
    paths = [ROOT / name for name in names] + sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(paths) == 5
    assert all(isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict) for path in paths)
