"""Which files of this repository a stage imports, read from the source without importing it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA_FILES = {  # read at run time
    "stages/rlhf/chat.py": ["stages/rlhf/chat_template.jinja"],
    "stages/rlhf/report/html.py": ["stages/rlhf/report/report.html.jinja"],
}


def _module_file(name: str) -> Path | None:
    path = ROOT / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imported(file: Path) -> set[Path]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import; imports are absolute here"
            names = [node.module or ""]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "stages" and (target := _module_file(name)):
                found.add(target)
                parents = name.split(".")[:-1]
                found |= {
                    p
                    for n in range(1, len(parents) + 1)
                    if (p := _module_file(".".join(parents[:n])))
                }
    return found


def _has_code(file: Path) -> bool:
    body = ast.parse(file.read_text(encoding="utf-8")).body
    return any(not isinstance(node, ast.Expr) for node in body)


def code_of(stage_file: Path) -> set[str]:
    """Paths, from the root, of all code that a stage runs; bare docstrings left out."""
    seen: set[Path] = set()
    todo = {stage_file}
    while todo:
        file = todo.pop()
        seen.add(file)
        todo |= _imported(file) - seen
    files = {str(file.relative_to(ROOT)) for file in seen if _has_code(file)}
    return files | {data for file in files for data in DATA_FILES.get(file, [])}
