"""The house rules as a test: floors, homes, sizes. See ``pipeline/README.md`` for why."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
FLOORS = {
    0: set("ground records errors presets".split()),
    1: set("job source template gateways limits lease accounting journal sink progress".split()),
    2: set("client pool simulator".split()),
    3: set(
        "owner moved workspace preflight sending run entry wishes selection signals results export status verify plan trial models billing ending".split()
    ),
    4: {"cli", "__init__", "__main__"},
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
SIDEWAYS = {("records", "ground"), ("ground", "errors"), ("job", "limits"), ("limits", "lease"), ("sink", "journal")}
HOMES = {
    "aiohttp": {"client.session", "simulator"},
    "httptools": {"client.wire"},
    "aiohappyeyeballs": {"client.wire"},
    "aiolimiter": {"limits.rates"},
    "click": {"cli"},
    "jinja2": {"template"},
    "pyarrow": {"source", "sink", "results"},
    "pydantic": {"job"},
    "sqlite3": {"journal", "verify"},
    "tqdm": {"progress.display"},
    "uvloop": {"entry"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_dotted(path) for path in FILES}


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def _dotted_imports(path: Path) -> set[str]:
    """What a file imports of ours when it is itself imported, or later: each module by its full name."""
    tree = _tree(path)
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pipeline"):
            parts = {f"{node.module}.{name.name}" for name in node.names} & MODULES
            names |= parts or {str(node.module)}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    module = _module(path)
    assert module in FLOOR_OF, (
        f"{module} stands on no floor: say on which in tests/test_floors.py and pipeline/README.md"
    )
    if FLOOR_OF[module] == 4:
        return
    tree = _tree(path)
    for name in _imports(tree):
        if not name.startswith("pipeline.") or (other := name.split(".")[1]) == module:
            continue
        below = FLOOR_OF[other] < FLOOR_OF[module]
        same = FLOOR_OF[other] == FLOOR_OF[module] and FLOOR_OF[module] in (2, 3)
        assert below or same or (module, other) in SIDEWAYS, f"{path.name} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_used_at_home_only(path: Path) -> None:
    tree = _tree(path)
    for name in _imports(tree):
        top = name.split(".")[0]
        if top in HOMES:
            at_home = any(f"{_dotted(path)}.".startswith(f"pipeline.{home}.") for home in HOMES[top])
            assert at_home, f"{top} is at home in {sorted(HOMES[top])}, not in {path.name}"


def test_no_files_import_each_other_in_circles() -> None:
    """Not even within a folder; its ``__init__`` is imported with each of its files, so it may need them, not they it."""
    files = {_dotted(path): _dotted_imports(path) for path in FILES if FLOOR_OF[_module(path)] < 4}
    needs = {file: {other for other in files if other in names} - {file} for file, names in files.items()}
    while needs:
        free = {file for file, others in needs.items() if not others & needs.keys()}
        assert free, f"these import each other: {sorted(needs)}"
        needs = {file: others for file, others in needs.items() if file not in free}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350, f"{path.name} is full: split the room"
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 50, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_and_public_name_has_a_docstring(path: Path) -> None:
    tree = _tree(path)
    assert ast.get_docstring(tree), f"{path.name} does not say what it is"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_broad_excepts_stand_where_they_are_allowed() -> None:
    allowed = {"unreadable.py": 1, "__init__.py": 1, "entry.py": 1}
    for path in FILES:
        found = len(re.findall(r"except (?:Exception|BaseException)\b", path.read_text(encoding="utf-8")))
        cleanup = len(re.findall(r"except BaseException:\n(?:.*\n){0,3}?\s+raise\b", path.read_text(encoding="utf-8")))
        assert found - cleanup <= allowed.get(path.name, 0), f"{path.name} has a broad except too many"


def test_heavy_libraries_are_not_imported_for_help() -> None:
    import subprocess

    code = "import sys, pipeline.cli; print(*sorted(m for m in ('aiohttp', 'pyarrow', 'pydantic', 'jinja2', 'sqlite3', 'tqdm') if m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == []


def test_the_public_names_are_few_sorted_and_there() -> None:
    import pipeline as package

    names = package.__all__
    assert len(names) <= 12
    assert sorted(names) == names
    for name in names:
        assert getattr(package, name).__name__ == name
    from pipeline.run import Run  # noqa: F401 - importing the module must not hide the function of its name

    assert callable(package.run)


def test_the_readme_names_every_module_and_file_of_the_floors() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    table = text[text.index("## Floors") : text.index("Libraries have homes")]
    for path in FILES:
        module = path.relative_to(PACKAGE).parts[0]
        assert f"`{module.removesuffix('.py')}" in table, f"{module} is not in the table of pipeline/README.md"
    for folder in ("ground", "limits", "pool", "workspace", "preflight", "sending", "billing", "progress"):
        line = next(line for line in table.splitlines() if f"`{folder}/`" in line)
        for path in (PACKAGE / folder).glob("[!_]*.py"):
            assert f"`{path.stem}`" in line, f"{folder}/{path.name} is not in the table of pipeline/README.md"
