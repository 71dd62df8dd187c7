"""The code of a stage: every file of this repository that its module imports, each by a hash.

A file's hash is that of its syntax tree without docstrings: comments, docstrings and layout rerun
nothing, any other edit reruns exactly the stages that import the file. Stage `check` writes these
hashes, one JSON per stage, for DVC to compare; tests hold the closure to what Python really loads.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGE = "stages"


def stage_names(root: Path = ROOT) -> list[str]:
    """Every stage: the modules at the top of the package."""
    return sorted(f.stem for f in (root / PACKAGE).glob("*.py") if f.stem != "__init__")


def code_hashes(stage: str, root: Path = ROOT) -> dict[str, str]:
    """{path from the root: sha256} of all code that a stage runs, and of its templates.

    Raises ValueError where a file is not Python, or imports relatively.
    """
    seen: set[Path] = set()
    todo = {root / PACKAGE / f"{stage}.py"}
    found: dict[str, str] = {}
    while todo:
        file = todo.pop()
        seen.add(file)
        tree = _parse(file)
        todo |= set(_imports(tree, file, root)) - seen
        if any(not isinstance(node, ast.Expr) for node in tree.body):
            found[file.relative_to(root).as_posix()] = _tree_hash(file)
        for template in _templates(tree, file):
            found[template.relative_to(root).as_posix()] = _bytes_hash(template)
    return dict(sorted(found.items()))


def read_fingerprint(file: Path) -> dict[str, str]:
    """What stage `check` wrote. Raises ValueError where it is missing."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file; stage check writes it: run `dvc repro`")
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def check_fingerprint(stage: str, file: Path, root: Path = ROOT) -> dict[str, str]:
    """The stage's hashes; DVC compared those in `file`, so they must be the same.

    Raises ValueError naming the code that is newer than the fingerprint.
    """
    written, now = read_fingerprint(file), code_hashes(stage, root)
    changed = sorted(n for n in {*written, *now} if written.get(n) != now.get(n))
    if changed:
        raise ValueError(
            f"{file} is stale: {', '.join(changed)} changed since stage check;"
            f" run `dvc repro {stage}` without --single-item"
        )
    return now


@cache
def _parsed(file: Path, stamp: tuple[int, int]) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{file}, line {error.lineno}: not Python: {error.msg}") from error


def _parse(file: Path) -> ast.Module:
    stat = file.stat()
    return _parsed(file, (stat.st_mtime_ns, stat.st_size))


def _imports(tree: ast.Module, file: Path, root: Path) -> Iterator[Path]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{file}, line {node.lineno}: relative import; use absolute ones")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == PACKAGE:
                for length in range(1, len(parts) + 1):
                    yield from _module_file(root.joinpath(*parts[:length]))


def _module_file(path: Path) -> list[Path]:
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return [file for file in candidates if file.is_file()][:1]


def _templates(tree: ast.Module, file: Path) -> list[Path]:
    """Templates that a module names in a string and reads at run time."""
    names = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return [file.with_name(name) for name in sorted(names) if _is_template(file, name)]


def _is_template(file: Path, name: str) -> bool:
    return name.endswith(".jinja") and "/" not in name and file.with_name(name).is_file()


DEFINITIONS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def _hash_of(file: Path, stamp: tuple[int, int]) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))  # a copy: the bodies are changed
    for node in ast.walk(tree):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


def _tree_hash(file: Path) -> str:
    stat = file.stat()
    return _hash_of(file, (stat.st_mtime_ns, stat.st_size))


def _bytes_hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
