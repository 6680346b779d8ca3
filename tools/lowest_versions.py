"""Print the lowest versions of the direct dependencies that pyproject.toml allows, as constraints for pip.

    python tools/lowest_versions.py > floors.txt
    pip install --constraint floors.txt --editable '.[dev]'

A job of the CI runs the tests with them. Of a package that several lists name the highest floor counts. Extras named on
the command line count beside the runtime dependencies; without any, `dev`.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def floors(project: dict[str, Any], extras: list[str]) -> dict[str, Version]:
    """The lowest version of each package that the runtime dependencies and some extras allow.

    Args:
        project: The table `project` of pyproject.toml.
        extras: Names of optional dependencies that count too.

    Raises:
        SystemExit: For a dependency without a lowest version, and for an unknown extra.
    """
    optional = project["optional-dependencies"]
    unknown = sorted(set(extras) - set(optional))
    if unknown:
        raise SystemExit(f"extras are {unknown}, but must be among {sorted(optional)}.")
    found: dict[str, Version] = {}
    for text in [*project["dependencies"], *(text for extra in extras for text in optional[extra])]:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        lowest = [Version(one.version) for one in requirement.specifier if one.operator in (">=", "==", "~=")]
        if not lowest:
            raise SystemExit(f"{text!r} has no lowest version: add one to pyproject.toml, with its reason.")
        name = canonicalize_name(requirement.name)
        found[name] = max([*lowest, found.get(name, lowest[0])])
    return dict(sorted(found.items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=["dev"], help="optional dependencies that count too")
    content = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    for package, version in floors(content["project"], parser.parse_args().extras).items():
        print(f"{package}=={version}")
