"""The documentation says what the code says."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

import papa_lightning

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROOMS = (
    "attention",
    "benchmark",
    "calibration",
    "callbacks",
    "criteria",
    "datamodules",
    "encoders",
    "export",
    "figures",
    "from_scratch",
    "study",
    "tasks",
)


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
HEADINGS = re.findall(r"^### (.*)$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_heading_of_the_troubleshooting_page_is_a_message(heading: str) -> None:
    assert any(heading in message for message in MESSAGES)


def test_there_are_headings() -> None:
    assert len(HEADINGS) > 20
    assert not any("no such words" in message for message in MESSAGES)


def test_the_pages_of_names_have_all_public_names() -> None:
    text = (DOCS / "api.md").read_text() + (DOCS / "api_rooms.md").read_text()
    listed = set(re.findall(r"^::: (papa_lightning\.[\w.]+)$", text, flags=re.MULTILINE))
    objects = [resolve(name) for name in listed]
    missing = [
        name
        for name in papa_lightning.__all__
        if name != "__version__" and not any(getattr(papa_lightning, name) is one for one in objects)
    ]
    for room in ROOMS:
        module = importlib.import_module(f"papa_lightning.{room}")
        missing += [
            f"{room}.{name}" for name in module.__all__ if not any(getattr(module, name) is one for one in objects)
        ]
    assert missing == []


def resolve(name: str) -> object:
    """What a full name stands for; fails for one that is gone."""
    module, _, rest = name.rpartition(".")
    # Not import_module alone: a function may have the name of the module that it is in.
    importlib.import_module(module)
    return getattr(sys.modules[module], rest)


def test_every_page_is_in_the_contents() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    assert sorted(listed) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", sorted(path.name for path in [*DOCS.glob("*.md"), ROOT / "README.md"]))
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page if page == "README.md" else DOCS / page
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
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from make_command_tables import PAGE, with_tables
    finally:
        sys.path.pop(0)
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text, "docs/command_line.md is not what the parsers say: run `make docs`"


@pytest.mark.parametrize(
    "verb",
    ["fit", "validate", "test", "predict", "calibrate", "rank", "study", "report", "plan", "benchmark", "export"],
)
def test_every_verb_has_a_section(verb: str) -> None:
    assert f"\n### papa {verb}\n" in (DOCS / "command_line.md").read_text()


def test_the_contract_table_names_hooks_that_exist() -> None:
    text = (DOCS / "callbacks.md").read_text()
    table = text[text.index("## The contract") : text.index("## Checkpoints")]
    hooks = set(re.findall(r"`((?:on|state|setup)\w*)`", table))
    assert {"setup", "on_train_start", "on_test_start", "state_dict"} <= hooks
    for hook in hooks:
        assert callable(getattr(papa_lightning.HeadGates, hook)), hook


def test_arguments_of_callbacks_are_all_listed() -> None:
    import inspect

    text = (DOCS / "callbacks.md").read_text()
    for callback in (papa_lightning.ConstantAttention, papa_lightning.HeadGates, papa_lightning.AttentionImages):
        for name in list(inspect.signature(callback).parameters):
            assert f"`{name}`" in text, name
