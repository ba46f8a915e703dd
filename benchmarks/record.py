"""Rows of results.jsonl: a figure, the command that made it, the versions and the machine. One JSON object a line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from preftune.train.run import machine

RESULTS = Path(__file__).with_name("results.jsonl")


def record(claim: str, figures: dict[str, Any], settings: dict[str, Any]) -> None:
    """Append a row."""
    facts = machine()
    row = {
        "claim": claim,
        "figures": figures,
        "settings": settings,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": facts["versions"],
        "machine": facts["machine"],
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def commit() -> str:
    """The commit of the code that was measured; "+" if it had changes."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "../src") else "")
