"""Compare the peak memory and time that --dry-run predicts with those of the run.

python benchmarks/plan.py CONFIG.yaml [a.b=value ...] --record
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("config", help="config of a dpo run")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFTUNE_CACHE"] = (
            f"{folder}/cache"  # empty, so that the run scores the reference as the plan assumes
        )
        run = [sys.executable, "-m", "preftune", "dpo", options.config, *options.overrides, f"out={folder}/run"]
        plan = subprocess.run([*run, "--dry-run"], capture_output=True, text=True, check=False).stderr
        memory, spent = re.search(r"memory: ([\d.]+) GB", plan), re.search(r"time: about ([\d.]+) (s|min|h)", plan)
        if not memory or not spent:
            sys.exit(f"no plan in:\n{plan}")
        began = time.perf_counter()
        child = subprocess.Popen([*run, "--quiet"])
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        if os.waitstatus_to_exitcode(status):
            sys.exit("the run failed")
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    figures = {
        "predicted_gb": float(memory[1]),
        "peak_gb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, 2),
        "predicted_s": float(spent[1]) * UNITS[spent[2]],
        "seconds": round(seconds, 1),
        "steps": len([line for line in map(json.loads, lines) if line["split"] == "train"]),
    }
    print(figures)
    if options.record:
        names = [Path(part).name for part in (options.config, *options.overrides)]
        record("plan", figures, {"config": names[0], "overrides": names[1:]})


if __name__ == "__main__":
    main()
