"""Plain words: expressions that make readers stop are kept out of code, messages, tests and documentation."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "benchmarks", "examples", "scripts")
CODE = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path != Path(__file__))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob(".github/**/*.md")])
OTHERS = sorted(
    [
        *(ROOT / name for name in ("Makefile", "pyproject.toml", "CITATION.cff", ".pre-commit-config.yaml")),
        *(ROOT / "configs").rglob("*.yaml"),
        *ROOT.glob(".github/**/*.yml"),
    ]
)

#: Expression -> what to write instead.
TICS = {
    r"\bis said\b|\bsays so\b|\bsaid so\b|\bsay so\b": "is reported, prints",
    r"\bgoes on\b|\bgo on\b|\bwent on\b|\bgoing on\b": "resumes, continues",
    r"\bcomes? to (?:the|other|an?|rest|nothing|\d)": "yields, reaches, is",
    r"\bturned round\b|\bwrong way round\b|\bthe other way round\b": "flipped, swapped",
    r"\bstands? (?:in|for|with|beside|there|at|twice|still)\b": "is in, means, is recorded in",
    r"\bwhat is done is kept\b|\bit answered is kept\b|\bwas answered is kept\b": "completed results are saved",
    r"\bnothing of (?:it|them)\b|\bnone of it\b": "say the thing itself",
    r"\bas far as\b": "say the thing itself",
    r"\bnowhere\b|\bwhoever\b": "say who or where",
    r"\bof (?:its|their|his) own\b": "leave it out, or say whose",
    r"\bby itself\b|\bby themselves\b": "leave it out, or alone, separately",
    r"\b(?:nats|tokens|bytes|seconds|requests|numbers?|rewards?|pairs|steps|slots|FLOPs?|multiply-adds)"
    r" an? (?:token|prompt|step|second|response|epoch|round|pair|row|group|slot)\b": "per token, per prompt, per step",
    r"\bthat is none\b|\bthat are none\b|\bthat is no\b|\bwhich is no\b": "is not a, a malformed",
    r"\bso many\b|\bso much\b": "N, the number itself",
    r"\ball the same\b": "nevertheless, leave it out",
}
#: Names of variables that hide what they hold.
NAMES = {"found", "known", "said", "given", "asked", "told"}
#: Where an expression is right: (file, text that contains it). The instructions of judges keep their wording, because
#: saved verdicts depend on it.
EXCEPTIONS = {
    ("src/preftune/rewards/chat_grades.py", "then end with a line of its own that is exactly"),
    ("src/preftune/rewards/judges.py", "end with a line of its own that is exactly one of"),
}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The comments, strings and function names of a Python file, with their lines; the lines of any other file."""
    if path.suffix != ".py":
        text = re.sub(r"^```.*?^```$", lambda match: "\n" * match[0].count("\n"), path.read_text(), flags=re.M | re.S)
        yield from enumerate(text.splitlines(), start=1)
        return
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            yield token.start[0], token.string
        elif token.type == tokenize.NAME and token.string.startswith("test_"):
            yield token.start[0], token.string.replace("_", " ")


def tics(path: Path) -> list[str]:
    name = str(path.relative_to(ROOT))
    return [
        f"{name}:{line}: {match[0]!r}: write {instead}"
        for line, text in texts(path)
        for tic, instead in TICS.items()
        for match in re.finditer(tic, " ".join(text.split()), re.IGNORECASE)
        if not any(name == file and part in text for file, part in EXCEPTIONS)
    ]


def assigned(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The names that a file gives to variables and parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg


@pytest.mark.parametrize("path", [*CODE, *PAGES, *OTHERS], ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_are_plain(path: Path) -> None:
    assert tics(path) == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_variables_say_what_they_hold(path: Path) -> None:
    names = sorted({f"{path.name}:{line}: {name}" for line, name in assigned(ast.parse(path.read_text()))})
    assert [name for name in names if name.rpartition(" ")[2] in NAMES] == []


def test_the_list_of_exceptions_is_used() -> None:
    for file, part in EXCEPTIONS:
        assert part in (ROOT / file).read_text(), (file, part)
