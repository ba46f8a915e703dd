"""The packages and their imports are exactly those of the table in docs/develop/design.md."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import preftune

SRC = Path(preftune.__file__).parent
DESIGN = Path(__file__).resolve().parents[2] / "docs" / "develop" / "design.md"
FILES = sorted(SRC.rglob("*.py"))
LARGEST_SHARE = 0.15
#: Files that import the module of a command by its name, a constant such as "methods.dpo", after they read the config.
BY_NAME = {"api/training.py", "cli/main.py"}


def table() -> dict[str, set[str]]:
    """Each package and what it may import, in the order of the table."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", DESIGN.read_text(), re.M)
    return {package: {name.strip() for name in names.split(",") if name.strip()} for package, names in rows}


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported_modules(path: Path) -> set[str]:
    """The modules of preftune that a file imports, at the top or inside a function."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "preftune":
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            modules |= {name if name in MODULES else str(node.module) for name in submodules}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.Constant) and path.relative_to(SRC).as_posix() in BY_NAME:
            modules |= {f"preftune.{node.value}"} & MODULES.keys()
    return modules - {module_name(path)}


def package_of(module: str) -> str:
    return "__init__" if module == "preftune" else module.split(".")[1]


def test_the_table_lists_exactly_the_imports() -> None:
    """An import that the table does not allow fails, and so does one that it allows and nothing uses."""
    imports: dict[str, set[str]] = {package_of(module): set() for module in MODULES}
    for module, path in MODULES.items():
        imports[package_of(module)] |= {package_of(name) for name in imported_modules(path)} - {package_of(module)}
    assert table() == imports


def test_a_package_imports_only_packages_above_it_in_the_table() -> None:
    above: set[str] = set()
    for package, imports in table().items():
        assert imports <= above, package
        above.add(package)


def test_no_module_imports_itself_through_others() -> None:
    graph = {module: imported_modules(path) for module, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the modules of a circle


def test_only_these_files_import_modules_by_name() -> None:
    dynamic = {path.relative_to(SRC).as_posix() for path in FILES if "import_module(" in path.read_text()}
    assert dynamic == {"__init__.py", *BY_NAME}


def test_no_package_exceeds_its_share_of_all_lines() -> None:
    lines: dict[str, int] = {}
    for module, path in MODULES.items():
        lines[package_of(module)] = lines.get(package_of(module), 0) + path.read_text().count("\n")
    largest = max(lines, key=lambda package: lines[package])
    assert lines[largest] <= LARGEST_SHARE * sum(lines.values()), (largest, lines[largest])
