"""The source distribution and the wheel are built without network, are complete, and run without the source tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME = f"{PROJECT['name']}-{PROJECT['version']}"
IGNORED = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if line]
CONFIGS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}


def python(*arguments: str | Path, folder: Path, **environment: str) -> str:
    """The output of Python with these arguments. PYTHONPATH and pip's settings are not passed on."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and not key.startswith("PIP_")}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**own, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build_wheel(source: Path, out: Path) -> Path:
    """The wheel that pip builds from a folder or a source distribution."""
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    python("-m", "pip", "wheel", *options, "--wheel-dir", out, source, folder=out.parent)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without ignored files, because a build writes into its folder."""
    folder = tmp_path_factory.mktemp("source") / "preftune"
    shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(".git", *IGNORED))
    return folder


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    python("-c", f"import setuptools.build_meta as backend; backend.build_sdist({str(out)!r})", folder=source)
    return out / f"{NAME}.tar.gz"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the source distribution, as installers do."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel") / "dist")


def test_the_source_distribution_is_complete(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    folders = ("src", "tests", "docs", "examples", "benchmarks", "scripts", ".github")
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".md", ".yml", ".jsonl", ".typed")
    }
    wanted = {name for name in wanted if ".egg-info" not in name}
    wanted |= CONFIGS | {f"src/preftune/{name}" for name in CONFIGS}
    wanted |= {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "Makefile"}
    wanted |= {"pyproject.toml", "constraints.txt", "constraints-oldest.txt", ".ci/run", "scripts/check"}
    assert wanted <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{NAME}.dist-info/")}
        for name in CONFIGS:
            assert archive.read(f"preftune/{name}") == (ROOT / name).read_bytes()
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "preftune").rglob("*.py")}
    page = {f"preftune/people/page.{kind}" for kind in ("html", "css", "js")}
    assets = ROOT / "src" / "preftune" / "report" / "assets"
    page |= {path.relative_to(ROOT / "src").as_posix() for path in assets.rglob("*.*")}
    assert names == modules | page | {"preftune/py.typed"} | {f"preftune/{name}" for name in CONFIGS}


def test_the_wheel_built_from_the_checkout_is_the_same(wheel: Path, source: Path, tmp_path: Path) -> None:
    other = build_wheel(source, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(other) as two:
        assert {entry.filename: entry.CRC for entry in one.infolist() if "RECORD" not in entry.filename} == {
            entry.filename: entry.CRC for entry in two.infolist() if "RECORD" not in entry.filename
        }


def test_the_metadata_names_the_project_and_its_pages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_string(archive.read(f"{NAME}.dist-info/METADATA").decode())
    urls = dict(str(entry).split(", ", 1) for entry in metadata.get_all("Project-URL") or ())
    assert urls["Homepage"] == "https://github.com/preftune/preftune"
    assert {"Documentation", "Changelog", "Issues"} <= urls.keys()
    assert metadata["Author"] == "The preftune developers"
    classifiers = metadata.get_all("Classifier") or ()
    assert "Development Status :: 4 - Beta" in classifiers
    assert not [entry for entry in classifiers if "OS Independent" in entry or "Windows" in entry]


def test_the_installed_wheel_runs_without_the_source_tree(wheel: Path, tmp_path: Path) -> None:
    target, folder = tmp_path / "installed", tmp_path / "empty"
    folder.mkdir()
    options = ["--no-deps", "--no-index", "--quiet", "--target", target]
    python("-m", "pip", "install", *options, wheel, folder=folder)
    script = target / "bin" / "preftune"

    def preftune(*arguments: str) -> str:
        return python(script, *arguments, folder=folder, PYTHONPATH=str(target))

    place = python("-c", "import preftune; print(preftune.__file__)", folder=folder, PYTHONPATH=str(target)).strip()
    assert Path(place).is_relative_to(target)
    assert preftune("--version") == f"preftune {PROJECT['version']}\n"
    assert "\n  init " in preftune("--help")
    assert "\nppo  " in preftune("init")
    assert "wrote dpo.yaml" in preftune("init", "dpo", "model.path=mine")
    assert "path: mine" in (folder / "dpo.yaml").read_text()
