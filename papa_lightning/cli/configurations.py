"""Configuration files of a command: where they are found, and whether a parser may read them."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

import yaml

from papa_lightning.errors import PapaError, similar_file

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
    end = f". Similar: {near}." if near else similar_file(name) or "."
    raise PapaError(
        f"config is {name!r}, which is neither a file nor a configuration of the package (`papa configs` lists "
        f"these){end}"
    )


def locate_configs(words: Sequence[str]) -> list[str]:
    """The words of a command with the paths of its configuration files.

    After ``--config`` or ``-c`` stands the path of a file, or the name of a configuration of the package; a file wins.
    """
    found = list(words)
    for place, option, value in _named(words):
        located = _located(value, words[0])
        found[place] = f"{option}={located}" if option else located
    return found


def _named(words: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Place, option and value of the configuration files of a command; the option is empty if it is a word before."""
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in ("-c", "--config") and equals:
            yield place, option, value
        elif place and words[place - 1] in ("-c", "--config"):
            yield place, "", word


def place_of(key: str, value: str, words: Sequence[str]) -> str | None:
    """File and line of a key in the configuration files of a command, as "study.yaml, line 3"; None if in none.

    Args:
        key: Names of the key with dots between them; without ``init_args`` and ``class_path``. The last of them are
            enough where no other key ends with them.
        value: The value that the key has there; empty for any.
        words: The words of the command, after :func:`locate_configs`.
    """
    files = [name for _, _, name in _named(words) if Path(name).is_file()]
    keys = [
        (one, f"{name}, line {at.start_mark.line + 1}", text)
        for name in files[::-1]  # the last file decides
        for one, at, text in _keys(yaml.compose(Path(name).read_text(encoding="utf-8"), Loader=yaml.SafeLoader))
    ]
    alike = [one for one in keys if one[0].endswith(f".{key}")]
    found = [one for one in keys if one[0] == key] or (alike if len(alike) == 1 else [])
    found.sort(key=lambda one: one[2] != value)
    return found[0][1] if found else None


def _keys(node: yaml.Node | None, above: str = "") -> Iterator[tuple[str, yaml.Node, str]]:
    """The keys of a file, each with its node and the text of its value; items of lists have the key of the list."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item, above)
    elif isinstance(node, yaml.MappingNode):
        for name, inner in node.value:
            own = [] if name.value in ("init_args", "class_path", "dict_kwargs") else [str(name.value)]
            key = ".".join([above] * bool(above) + own)
            yield key, name, inner.value if isinstance(inner, yaml.ScalarNode) else ""
            yield from _keys(inner, key)


def _located(value: str, verb: str) -> str:
    """Path of a configuration file; addresses, and configurations that are given as text, stay as they are."""
    path = Path(value)
    if path.is_dir():
        raise PapaError(f"config is {value!r}, a folder: pass the path of a YAML file in it.")
    if not path.exists() and not set(value) & set(":{\n"):
        return str(shipped_path(value, verb))
    if path.is_file():
        _check(path)
    return value


def _check(path: Path) -> None:
    """Refuse files on which a parser fails with a page of text, never ends, or takes the last of two values."""
    name = str(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if _contains_itself(node, [], set()):
            raise PapaError(f"config is {name!r}, where a value contains itself (by an alias): write it out.")
    except UnicodeDecodeError as error:
        raise PapaError(f"config is {name!r}, which is not UTF-8 ({error}): save it as UTF-8.") from error
    except RecursionError as error:
        raise PapaError(f"config is {name!r}, which nests too deeply: make it flatter.") from error
    except yaml.MarkedYAMLError as error:
        raise PapaError(f"config is {name!r}, which is no YAML: {_syntax(error)}") from error
    except yaml.YAMLError as error:
        raise PapaError(f"config is {name!r}, which is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(node, yaml.MappingNode):
        found = "is empty" if node is None else f"holds {'a list' if isinstance(node, yaml.SequenceNode) else 'text'}"
        raise PapaError(f"config is {name!r}, which {found}, but must have a key in each line: `max_length: 64`.")
    _check_keys(node, name)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """Line, column and reason of an error of syntax."""
    mark, problem = error.problem_mark or error.context_mark, " ".join(str(error.problem or error.context).split())
    if "'\\t'" in problem:
        problem = "a tab, where YAML takes spaces only"
    elif problem == "mapping values are not allowed here":
        problem = "a colon that makes no key here: the line is indented too far, or a text with a colon needs quotes"
    began = error.context_mark
    since = f" (in what begins in line {began.line + 1})" if began and mark and began.line != mark.line else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}{since}" if mark else problem


def _check_keys(node: yaml.Node, name: str) -> None:
    """Refuse a key that stands twice: a parser takes the last one silently."""
    if not isinstance(node, yaml.CollectionNode):
        return
    seen: dict[str, int] = {}
    for child in node.value:
        if isinstance(child, tuple):
            key, line = str(child[0].value), child[0].start_mark.line + 1
            if key in seen and key != "<<":
                raise PapaError(
                    f"config is {name!r}, where the key {key!r} of line {seen[key]} stands again in line {line}: keep "
                    "one."
                )
            seen[key] = line
        _check_keys(child[1] if isinstance(child, tuple) else child, name)


def _contains_itself(node: yaml.Node | None, above: list[yaml.Node], seen: set[int]) -> bool:
    if node in above:
        return True
    if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
        return False
    seen.add(id(node))
    children = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else [pair])]
    return any(_contains_itself(child, [*above, node], seen) for child in children)
