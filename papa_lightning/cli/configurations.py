"""Configuration files of a command: where they are found, and whether a parser may read them."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml

from papa_lightning.errors import PapaError

_SHIPPED = Path(__file__).parents[1] / "configs"
#: Folder of the shipped configurations of a verb, where it does not have the verb's name.
_FOLDERS = {"budget": "study"}


def shipped() -> dict[str, Path]:
    """The configurations that come with the package, by name: paths relative to their folder, with ``/``."""
    found = {path.relative_to(_SHIPPED).as_posix(): path for path in _SHIPPED.rglob("*.yaml")}
    return dict(sorted(found.items(), key=lambda item: (item[0].count("/"), item[0])))


def shipped_path(name: str, verb: str) -> Path:
    """Path of a configuration of the package, as sst2.yaml or study/demo.yaml; the verb's own folder comes first."""
    found = shipped()
    for candidate in (f"{_FOLDERS.get(verb, verb)}/{name}", name):
        if candidate in found:
            return found[candidate]
    stems = {Path(one).stem for one in found}
    alike = get_close_matches(Path(name).stem, stems, cutoff=0.7)
    near = ", ".join(one for stem in alike for one in found if Path(one).stem == stem)
    raise PapaError(
        f"config is {name!r}, which is neither a file nor a configuration of the package: `papa configs` lists "
        f"these.{f' Similar: {near}.' if near else ''}"
    )


def locate_configs(words: Sequence[str]) -> list[str]:
    """The words of a command with the paths of its configuration files.

    After ``--config`` or ``-c`` stands the path of a file, or the name of a configuration of the package; a file wins.
    """
    found, is_value = list(words), False
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in ("-c", "--config") and equals:
            found[place] = f"{option}={_located(value, words[0])}"
        elif is_value:
            found[place] = _located(word, words[0])
        is_value = word in ("-c", "--config")
    return found


def _located(value: str, verb: str) -> str:
    """Path of a configuration file; addresses, and configurations that are given as text, stay as they are."""
    path = Path(value)
    if not path.exists() and not set(value) & set(":{\n"):
        return str(shipped_path(value, verb))
    if path.is_file():
        _check(path)
    return value


def _check(path: Path) -> None:
    """Refuse files on which a parser fails with a page of text, or never ends."""
    try:
        if _contains_itself(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), [], set()):
            raise PapaError(f"config is {str(path)!r}, where a value contains itself (by an alias): write it out.")
    except UnicodeDecodeError as error:
        raise PapaError(f"config is {str(path)!r}, which is not UTF-8 ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise PapaError(f"config is {str(path)!r}, which nests too deeply: make it flatter.") from error
    except yaml.YAMLError as error:
        raise PapaError(f"config is {str(path)!r}, which is no YAML: {' '.join(str(error).split())}") from error


def _contains_itself(node: yaml.Node | None, above: list[yaml.Node], seen: set[int]) -> bool:
    if node in above:
        return True
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return False
    seen.add(id(node))
    children = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else [pair])]
    return any(_contains_itself(child, [*above, node], seen) for child in children)
