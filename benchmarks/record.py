"""Append rows to results.jsonl: figures, the command that measured them, versions and machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from preftune.train.machine import machine

RESULTS = Path(__file__).with_name("results.jsonl")


def record(
    claim: str, figures: dict[str, Any], settings: dict[str, Any], path: Path = RESULTS, command: str | None = None
) -> None:
    """Append a row with the figures of `claim` to results.jsonl, or to the file `path`.

    `command` measured them; by default, it is this process, a script of benchmarks/.
    """
    facts = machine()
    row = {
        "claim": claim,
        "figures": figures,
        "settings": settings,
        "command": command or " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": facts["versions"],
        "machine": facts["machine"],
    }
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def commit() -> str:
    """Return the commit of the measured code, with "+" if src has uncommitted changes; "unknown" without git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--", "../src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
