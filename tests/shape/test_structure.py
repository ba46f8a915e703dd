"""The structure of the code: lengths of files and functions, docstrings, unused config fields, generated pages."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

import preftune
from preftune.config import sampling, schema

SRC = Path(preftune.__file__).parent
FILES = sorted(SRC.rglob("*.py"))
ROOT = Path(__file__).resolve().parents[2]


def test_every_module_imports() -> None:
    for module in pkgutil.walk_packages([str(SRC)], "preftune."):
        if module.name != "preftune.__main__":
            importlib.import_module(module.name)


def test_files_and_functions_are_short() -> None:
    """Files have at most 420 lines, and functions at most 66."""
    for path in FILES:
        text = path.read_text()
        assert text.count("\n") <= 420, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 66, f"{path}: {node.name}"


def test_the_config_package_does_not_import_torch() -> None:
    for path in (SRC / "config").glob("*.py"):
        assert "import torch" not in path.read_text()


def fields(model: type[BaseModel]) -> set[str]:
    return set(model.model_fields)


def test_every_config_field_has_a_reader() -> None:
    """The name of each field is used as an attribute, or as a key of a stored config, outside of the config package."""
    nodes = [node for path in FILES if path.parent.name != "config" for node in ast.walk(ast.parse(path.read_text()))]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    keys = [node.slice for node in nodes if isinstance(node, ast.Subscript)]
    keys += [a for n in nodes if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "get" for a in n.args[:1]]
    used |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    sections = [
        value
        for value in (vars(schema) | vars(sampling)).values()
        if isinstance(value, type) and issubclass(value, schema.Section)
    ]
    for section in sections:
        assert fields(section) <= used | {"loss"}, section.__name__  # `loss` is read as `terms`


def test_public_functions_and_classes_are_documented() -> None:
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                short = (node.end_lineno or 0) - node.lineno < 4
                is_obvious = path.parent.name in ("config", "demo", "cli") or short
                assert ast.get_docstring(node) or is_obvious, f"{path}: {node.name}"


def test_generated_pages_are_current() -> None:
    """The generated parts of docs/ equal the output of scripts/docs.py."""
    script = SRC.parents[1] / "scripts" / "docs.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_page_has_a_placeholder() -> None:
    """@@...@@ marks values that are still missing while a page is written. It must not be committed."""
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]
    assert len(pages) > 8
    assert [page.name for page in pages if "@@" in page.read_text()] == []


@pytest.mark.parametrize(
    "path",
    [p for folder in ("benchmarks", "examples", "scripts") for p in sorted((ROOT / folder).glob("*.py"))],
    ids=str,
)
def test_scripts_import_existing_names(path: Path) -> None:
    """Other tests do not run the benchmarks, so a renamed function would not be noticed."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "preftune":
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                    alias.name
                )
