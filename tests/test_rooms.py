"""The layers of the library: which room imports which, read from the source by `ast`."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = "stages.rlhf"

# room -> the rooms it may import, besides itself and the root of the library
LAYERS = {
    "root": (),
    "config": (),
    "runs": ("config",),
    "ingest": ("config",),
    "measure": (),
    "evidence": ("retrieval",),
    "model": ("config", "runs"),
    "decoding": ("config", "runs", "model"),
    "retrieval": ("config", "measure", "model"),
    "train": ("config", "runs", "model"),
    "reward": ("config", "runs", "model", "decoding", "train", "measure"),
    "ppo": ("config", "runs", "model", "decoding", "train", "measure", "reward", "evidence"),
    "report": ("config", "measure", "model"),
    "bot": ("config", "model", "decoding", "retrieval", "evidence", "reward"),
    "web": ("bot",),
    "plan": ("config", "runs", "ingest", "measure", "model", "train", "reward"),
}
MOST_MODULES = 10  # of a room
# modules that may be imported for a constant alone
CONSTANT_HOMES = {
    "stages.rlhf.files",
    "stages.rlhf.hub",  # the name of a pointer's file
    "stages.rlhf.precision",
    "stages.rlhf.records",
    "stages.rlhf.sizes",
    "stages.rlhf.model.roles",  # names of adapters, for code that is given the Roles
    "stages.rlhf.ingest.sources.items",
}


class Import(NamedTuple):
    """`importer` imports `module`; `names` from it, or none where the module itself is used."""

    importer: str
    module: str
    names: tuple[str, ...]


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted((ROOT / "stages").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports_of(name: str, tree: ast.Module, known: set[str]) -> Iterator[Import]:
    """Imports of modules in `known`, anywhere in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(name, a.name, ()) for a in node.names if a.name in known)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module
            plain = []
            for alias in node.names:
                if (inner := f"{node.module}.{alias.name}") in known:
                    yield Import(name, inner, ())
                else:
                    plain.append(alias.name)
            if plain and node.module in known:
                yield Import(name, node.module, tuple(plain))


IMPORTS = [i for name, tree in MODULES.items() for i in imports_of(name, tree, set(MODULES))]


def room_of(module: str) -> str | None:
    """The room of a module of the library; None for stages and the sample world."""
    if not module.startswith(LIBRARY):
        return None
    inner = module.removeprefix(LIBRARY).strip(".").split(".")
    return inner[0] if inner[0] in LAYERS else "root"


def upward(imports: list[Import]) -> list[str]:
    """Imports against the layers."""
    return [
        f"{i.importer} ({room}) imports {i.module} ({target or 'not the library'})"
        for i in imports
        if (room := room_of(i.importer)) is not None
        and (target := room_of(i.module)) not in (room, "root", *LAYERS[room])
    ]


def for_a_constant(imports: list[Import]) -> list[str]:
    """Imports of a module of the library for nothing but constants."""
    return [
        f"{i.importer} imports {i.module} for {', '.join(i.names)}"
        for i in imports
        if i.names
        and all(name.isupper() for name in i.names)
        and i.module.startswith(f"{LIBRARY}.")
        and i.module not in CONSTANT_HOMES
    ]


def cycle(imports: list[Import]) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    graph: dict[str, set[str]] = {}
    for i in imports:
        graph.setdefault(i.importer, set()).add(i.module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_rooms_import_downwards() -> None:
    assert not upward(IMPORTS)


def test_no_module_imports_itself_in_a_circle() -> None:
    assert not cycle(IMPORTS)


def test_no_module_is_imported_for_a_constant() -> None:
    assert not for_a_constant(IMPORTS)


@pytest.mark.parametrize("room", LAYERS)
def test_a_room_is_small_and_says_what_is_in_it(room: str) -> None:
    folder = ROOT / "stages" / "rlhf" / (room if room != "root" else "")
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert 0 < len(files) <= MOST_MODULES, files
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert not [name for name in files if f"`{name}`" not in text]


def test_every_folder_is_a_room() -> None:
    folders = {path.parent.name for path in (ROOT / "stages" / "rlhf").glob("*/__init__.py")}
    assert folders == set(LAYERS) - {"root"}


def test_stages_do_not_import_stages_and_the_library_imports_none() -> None:
    stages = {f"stages.{path.stem}" for path in (ROOT / "stages").glob("[!_]*.py")}
    assert not [i for i in IMPORTS if i.module in stages]


def test_what_breaks_a_layer_is_found() -> None:
    known = {f"{LIBRARY}.{name}" for name in ("measure.text", "model.roles", "ppo.core", "chat")}

    def imports(source: str, name: str = f"{LIBRARY}.measure.text") -> list[Import]:
        return list(imports_of(name, ast.parse(source), known))

    lazy = "def f():\n    from stages.rlhf.model import roles"
    assert upward(imports(lazy)) == [
        "stages.rlhf.measure.text (measure) imports stages.rlhf.model.roles (model)"
    ]
    assert upward(imports("import stages.rlhf.ppo.core"))
    assert not upward(imports("from stages.rlhf.chat import Codec"))
    assert for_a_constant(imports("from stages.rlhf.chat import TEMPLATE_2, FILE"))
    assert not for_a_constant(imports("from stages.rlhf.chat import FILE, Codec"))
    back = imports("from stages.rlhf.measure.text import fold", f"{LIBRARY}.chat")
    assert cycle([*back, *imports("from stages.rlhf.chat import Codec")])
