"""Imports inside the package: one direction from room to room, no circles, and no module named like its function."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "papa_lightning"
#: The rooms and modules of the package, from the ground up. A room imports from the lines above its own only.
ORDER = (
    {"text", "progress", "version"},
    {"errors"},
    {"checks", "registry", "runtime", "tag_schemes", "either_lightning"},
    {"files", "configuration", "figures"},
    {"ranking"},
    {"kernels"},
    {"attention"},
    {"encoders"},
    {"calibration"},
    {"embeddings"},
    {"lightning_project"},
    {"datamodules"},
    {"callbacks"},
    {"tasks"},
    {"from_scratch"},
    {"criteria"},
    {"atlas"},
    {"study", "export"},
    {"benchmark"},
    {"public"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


def name_of(path: Path) -> str:
    """The name of a module without that of the package; a folder goes by its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path, for_types_too: bool) -> set[str]:
    """The modules of the package that a module imports, at its top or inside a function."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not for_types_too:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ]
    for node in ast.walk(tree):
        names = [one.name for one in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            top, _, inner = name.partition(".")
            if top != PACKAGE.name:
                continue
            # `from a.b import c`: c is a module, or something in a.b, or a public name of the package itself.
            found.add(inner if inner in MODULES else inner.rpartition(".")[0] or "__init__")
    return found


GRAPH = {name: imports_of(path, for_types_too=True) for name, path in MODULES.items()}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_every_room_has_a_place_in_the_order() -> None:
    unknown = sorted({room_of(name) for name in MODULES} - set(LEVEL))
    assert not unknown, f"{unknown} have no place in ORDER of this test: add each below the rooms that import it."


def test_imports_are_found() -> None:
    assert "encoders" in {room_of(name) for name in GRAPH["calibration.collect"]}
    assert set().union(*GRAPH.values()) <= set(MODULES)


def test_no_import_goes_upward() -> None:
    upward = [
        f"{name} imports {imported}"
        for name, imports in GRAPH.items()
        for imported in sorted(imports)
        if room_of(name) != room_of(imported) and LEVEL[room_of(imported)] >= LEVEL[room_of(name)]
    ]
    assert not upward, (
        "imports against the order of the rooms (ORDER in this test): "
        + "; ".join(upward)
        + ". Move what is needed to "
        "the lower room, or pass it in as an argument."
    )


def test_there_is_no_circle() -> None:
    graph = {name: imports_of(path, for_types_too=False) for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        message = f"modules import each other: {circle}. Move what both need to a module below them."
        raise AssertionError(message) from None


def test_no_module_has_a_function_of_its_own_name() -> None:
    """Other than the entry point, and verbs, whose functions have the names of their commands."""
    # The name would stand for the function or for the module, by the order of imports.
    same = [
        name
        for name, path in MODULES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and node.name == name.rpartition(".")[2]
        and not name.startswith(("cli.main", "cli.verbs."))
    ]
    assert not same, f"{same} have a function of the module's own name: rename the module after what it is about."
