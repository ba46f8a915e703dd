"""Append results to results.jsonl: figures, the command, versions and machine, as one JSON object per line."""

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
    """Append a row for the benchmark `claim`."""
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
    """Return the commit of the measured code, with "+" if src/ has uncommitted changes."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "../src") else "")
