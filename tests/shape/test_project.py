"""The files around the code: workflows, hooks, issue forms, citation, bounds of the dependencies."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def read(path: Path) -> dict[Any, Any]:
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict)
    return content


def pinned(file: str) -> dict[str, str]:
    """The version of each package in a constraints file, by its normalised name."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    return {name.lower(): version for name, version in (line.split("==") for line in lines)}


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in read(workflow)["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read_and_cancels_older_runs(workflow: Path) -> None:
    content = read(workflow)
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["cancel-in-progress"] is True
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert "permissions" not in job


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_targets_and_scripts_that_exist(workflow: Path) -> None:
    commands = [step["run"] for step in steps(workflow) if "run" in step]
    assert commands
    targets = set(re.findall(r"^([a-z]+):", MAKEFILE, re.M))
    for command in commands:
        program, first = command.split()[:2]
        assert (program == "make" and first in targets) or (ROOT / program).is_file(), command


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_major_version_and_pip_is_cached(workflow: Path) -> None:
    for step in steps(workflow):
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]), step["uses"]
        if step.get("uses", "").startswith("actions/setup-python"):
            assert step["with"]["cache"] == "pip"
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"]["persist-credentials"] is False


def test_the_tests_run_on_the_oldest_and_the_newest_supported_versions() -> None:
    matrix = read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["include"]
    classified = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.M)
    assert classified[0] == PROJECT["requires-python"].removeprefix(">=")
    tested = [(entry["python"], entry["constraints"]) for entry in matrix if entry["os"] == "ubuntu-latest"]
    assert {(version, "constraints.txt") for version in classified} <= set(tested)
    assert {(classified[0], "constraints-oldest.txt"), (classified[-1], "constraints-newest.txt")} <= set(tested)
    assert all((ROOT / entry["constraints"]).is_file() for entry in matrix)


def test_the_oldest_versions_are_the_lower_bounds_of_the_dependencies() -> None:
    oldest, newest = pinned("constraints-oldest.txt"), pinned("constraints.txt")
    for requirement in map(Requirement, PROJECT["dependencies"]):
        name = requirement.name.lower()
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        assert re.fullmatch(rf"{re.escape(bound.version)}(\.0)*", oldest[name]), name
        assert requirement.specifier.contains(newest[name])


def test_the_hooks_use_the_pinned_ruff() -> None:
    repositories = read(ROOT / ".pre-commit-config.yaml")["repos"]
    (ruff,) = [entry for entry in repositories if entry["repo"].endswith("ruff-pre-commit")]
    assert ruff["rev"] == f"v{pinned('constraints.txt')['ruff']}"
    hooks = {hook["id"] for entry in repositories for hook in entry["hooks"]}
    assert {"ruff-check", "ruff-format", "end-of-file-fixer", "check-added-large-files", "mypy"} <= hooks


@pytest.mark.parametrize("form", [path for path in FORMS if path.name != "config.yml"], ids=lambda path: path.name)
def test_an_issue_form_has_labelled_fields(form: Path) -> None:
    content = read(form)
    assert {"name", "description", "body"} <= content.keys()
    fields = [entry for entry in content["body"] if entry["type"] != "markdown"]
    assert all(entry["attributes"]["label"] for entry in fields)
    assert len({entry["id"] for entry in fields}) == len(fields)


def test_issue_links_and_package_urls_are_pages_of_the_project() -> None:
    links = [entry["url"] for entry in read(ROOT / ".github/ISSUE_TEMPLATE/config.yml")["contact_links"]]
    home = PROJECT["urls"]["Homepage"]
    assert all(url.startswith(home) for url in [*links, *PROJECT["urls"].values()])


def test_the_citation_has_the_version_and_the_paper() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["authors"] == PROJECT["authors"]
    assert "Direct Preference Optimization" in citation["references"][0]["title"]


def test_the_release_check_accepts_the_version_and_refuses_another_tag() -> None:
    def check(tag: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([ROOT / "scripts" / "check-tag", tag], capture_output=True, text=True, check=False)

    assert check(f"v{PROJECT['version']}").returncode == 0, check(f"v{PROJECT['version']}").stdout
    assert check(PROJECT["version"]).returncode == 1
    assert "pyproject.toml has another version" in check("v9.9.9").stdout


def test_no_pickle_and_no_code_of_a_model_repository_is_loaded() -> None:
    """SECURITY.md promises this."""
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"torch\.load\b|^import (pickle|dill|joblib)|^from (pickle|dill|joblib)", text, re.M), path
        assert "trust_remote_code=True" not in text, path
