"""The documentation says what the code says."""

import ast
import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import papa_lightning

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), *(ROOT / "examples").rglob("*.md")])


def tool(name: str) -> ModuleType:
    """A module of tools/."""
    return load(ROOT / "tools" / f"{name}.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def messages() -> set[str]:
    """All texts in the package, with … where a value goes."""
    found = set()
    for path in (ROOT / "papa_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


MESSAGES = messages()
#: Groups of entry points, which look like names of modules.
GROUPS = {text for text in MESSAGES if re.fullmatch(r"papa_lightning\.[a-z_]+", text)}
HEADINGS = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_heading_of_the_troubleshooting_page_is_a_message(heading: str) -> None:
    assert any(heading in message for message in MESSAGES)


def test_there_are_headings() -> None:
    assert len(HEADINGS) > 20
    assert not any("no such words" in message for message in MESSAGES)


@pytest.mark.parametrize("page", ["api.md", "api_rooms.md"])
def test_the_pages_of_names_are_those_of_the_code(page: str) -> None:
    made = tool("make_api_pages").PAGES[page]()
    assert (DOCS / page).read_text(encoding="utf-8") == made, (
        f"docs/{page} is not what the code exports: run `make docs`"
    )
    assert "::: papa_lightning.swap_attention" in tool("make_api_pages").api_page()


def resolves(name: str) -> bool:
    """Whether a dotted name of the package leads to a module or to something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_and_paths_of_the_package_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.-])papa_lightning(?:\.[A-Za-z_]\w*)+", text)) - GROUPS
    for module, imported in re.findall(r"from (papa_lightning[\w.]*) import ([\w, ]+)", text):
        names |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    gone = sorted(name for name in names if not resolves(name))
    files = set(re.findall(r"(?<![\w./-])((?:papa_lightning|tests|tools|examples|docs)/[\w./-]*\w)", text))
    gone += sorted(file for file in files if not (ROOT / file).exists())
    assert not gone, f"{path.name} names {gone}, which do not exist (any more)"


#: Configurations on the pages that stand for one of the reader.
OWN = {"config.yaml", "config_with_constants.yaml", "sst2-study.yaml", "tickets-study.yaml", "whole.yaml"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_configurations_come_with_the_package(path: Path) -> None:
    found = re.findall(r"--config[ =]([\w./-]+\.yaml)", path.read_text(encoding="utf-8"))
    named = {name for name in found if Path(name).name not in OWN}
    shipped = [one.as_posix() for one in (ROOT / "papa_lightning" / "configs").rglob("*.yaml")]
    gone = sorted(name for name in named if not any(one.endswith(f"/{name}") for one in shipped))
    gone = [name for name in gone if not (ROOT / name).exists()]
    assert not gone, f"{path.name} names configurations {gone}, which are not in papa_lightning/configs"


def test_every_page_is_in_the_contents() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}, (
                target
            )


def test_the_tables_of_commands_are_those_of_the_parsers() -> None:
    tables = tool("make_command_tables")
    text = tables.PAGE.read_text(encoding="utf-8")
    assert tables.with_tables(text) == text, "docs/command_line.md is not what the parsers say: run `make docs`"


def test_the_contract_table_names_hooks_that_exist() -> None:
    text = (DOCS / "callbacks.md").read_text()
    table = text[text.index("## The contract") : text.index("## Checkpoints")]
    hooks = set(re.findall(r"`((?:on|state|setup)\w*)`", table))
    assert {"setup", "on_train_start", "on_test_start", "state_dict"} <= hooks
    for hook in hooks:
        assert callable(getattr(papa_lightning.HeadGates, hook)), hook


def test_arguments_of_callbacks_are_all_listed() -> None:
    text = (DOCS / "callbacks.md").read_text()
    for callback in (papa_lightning.ConstantAttention, papa_lightning.HeadGates, papa_lightning.AttentionImages):
        for name in list(inspect.signature(callback).parameters):
            assert f"`{name}`" in text, name
