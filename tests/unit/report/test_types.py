"""The types of the figures' scripts, checked by tsc where it is installed. They need no build step."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[3] / "src" / "preftune" / "report" / "assets"
TSC = os.environ.get("PREFTUNE_TSC") or shutil.which("tsc")


@pytest.mark.skipif(not TSC, reason="no tsc: npm install typescript, and set PREFTUNE_TSC to its path")
def test_the_scripts_are_well_typed() -> None:
    files = [ASSETS / name for name in ("types.d.ts", "math.js", "core.js", "start.js")]
    options = [
        "--allowJs",
        "--checkJs",
        "--strict",
        "--noEmit",
        "--target",
        "es2022",
        "--lib",
        "es2022,dom,dom.iterable",
    ]
    assert TSC
    command = [TSC, *options, *map(str, files), *map(str, sorted((ASSETS / "figures").glob("*.js")))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
