"""The house rules as a test: floors, homes, sizes. See ``pipeline/README.md`` for why."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"
FLOORS = {
    0: set("frozen records errors presets jsonio boot folders disk visible readable plural".split()),
    1: set(
        "job source template gateways stream failures secret unreadable budget drift retry hours patience poison tokens accounting lease journal sink progress".split()
    ),
    2: set("client wire session backlog packs books outage away slots rates judge pool display simulator".split()),
    3: set(
        "guards flow moved owner footing workspace feed wishes clearing sending run entry signals selection results export status verify trial ending preflight plan "
        "models billing reckoning reuse".split()
    ),
    4: {"cli", "__init__", "__main__"},
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
SIDEWAYS = {("records", "frozen"), ("disk", "errors"), ("sink", "journal"), ("job", "hours")}
HOMES = {
    "aiohttp": {"session", "simulator"},
    "httptools": {"wire"},
    "aiohappyeyeballs": {"wire"},
    "aiolimiter": {"rates"},
    "click": {"cli", "demo"},
    "jinja2": {"template"},
    "pyarrow": {"source", "sink", "results"},
    "pydantic": {"job"},
    "sqlite3": {"journal", "verify"},
    "tqdm": {"display"},
    "uvloop": {"entry"},
}
LAZY = {"pyarrow", "tqdm", "uvloop"}
FILES = sorted(PACKAGE.rglob("*.py"))


def _module(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""


def _typing_only(tree: ast.Module) -> set[str]:
    return {
        name
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for name in _imports(node)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    module = _module(path)
    assert module in FLOOR_OF, (
        f"{module} stands on no floor: say on which in tests/test_floors.py and pipeline/README.md"
    )
    if FLOOR_OF[module] == 4:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in _imports(tree):
        if not name.startswith("pipeline.") or (other := name.split(".")[1]) == module:
            continue
        below = FLOOR_OF[other] < FLOOR_OF[module]
        same = FLOOR_OF[other] == FLOOR_OF[module] and FLOOR_OF[module] in (2, 3)
        assert below or same or (module, other) in SIDEWAYS, f"{path.name} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_library_is_used_at_home_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in _imports(tree):
        top = name.split(".")[0]
        if top in HOMES:
            assert _module(path) in HOMES[top], f"{top} is at home in {sorted(HOMES[top])}, not in {path.name}"


def test_modules_of_one_floor_do_not_go_in_circles() -> None:
    needs: dict[str, set[str]] = {}
    for path in FILES:
        names = _imports(ast.parse(path.read_text(encoding="utf-8")))
        inner = {name.split(".")[1] for name in names if name.startswith("pipeline.")}
        needs.setdefault(_module(path), set()).update(inner - {_module(path)})
    needs = {module: others for module, others in needs.items() if FLOOR_OF[module] < 4}
    while needs:
        free = {module for module, others in needs.items() if not others & needs.keys()}
        assert free, f"these import each other: {sorted(needs)}"
        needs = {module: others for module, others in needs.items() if module not in free}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_are_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350, f"{path.name} is full: split the room"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 50, f"{path.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_file_and_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
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
