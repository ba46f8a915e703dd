"""QLoRA beside LoRA: held-out DPO loss after the same steps, and peak memory, on one model and data file.

python benchmarks/quantised.py --model MODEL --data PAIRS.jsonl.gz --record

Each run is a separate process, so that its peak memory can be measured. All runs have the same config, except for
model.quant, and the same order of the data. With `--kinds`, `none` is LoRA on weights as they are stored.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any

from record import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--kinds", nargs="+", default=["none", "int8", "nf4"])
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=1024, help="token slots per micro-batch")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--held-out", type=float, default=0.03, help="share of the prompts")
    parser.add_argument("--record", action="store_true", help="append a row per run to benchmarks/results.jsonl")
    options = parser.parse_args()
    for kind in options.kinds:
        figures = run(options, kind)
        print(figures, flush=True)
        if options.record:
            names = ("dtype", "pairs", "steps", "lr", "rank", "tokens", "max_length", "held_out")
            settings = {name: getattr(options, name) for name in names}
            packages = {"bitsandbytes": version("bitsandbytes")} if kind == "nf4" else {}
            record("quantised", figures, {"kind": kind, "model": Path(options.model).name, **settings, **packages})


def run(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Train with one kind of base weights and return the figures of the run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "preftune", "dpo", "--model", options.model, "--data", options.data, "--lora"),
            *("--out", f"{folder}/run", f"model.dtype={options.dtype}", "model.compile=false", "data.as_chat=true"),
            *(f"data.max_length={options.max_length}", f"data.eval={options.held_out}", f"batch.pairs={options.pairs}"),
            *(f"batch.tokens={options.tokens}", f"train.max_steps={options.steps}", f"optim.lr={options.lr}"),
            *(f"lora.rank={options.rank}", "monitor=null"),
            *([] if kind == "none" else [f"model.quant={kind}"]),
        ]
        began = time.perf_counter()
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert child.stderr
        output = child.stderr.read()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - began
        if os.waitstatus_to_exitcode(status):
            sys.exit(f"the run failed:\n{output}")
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["split"] == "eval"]
    train = [line for line in lines if line["split"] == "train"]
    stored = re.search(r"quantised: ([\d,]+) weights in \w+, ([\d.,]+) MB instead of ([\d.,]+) MB", output)
    return {
        "kind": kind,
        "steps": len(train),
        "margin_at_step_1": train[0]["rewards/margins"],
        "held_out_loss_before": round(held_out[0]["loss"], 5),
        "held_out_loss": round(held_out[-1]["loss"], 5),
        "held_out_accuracy": round(held_out[-1]["rewards/accuracies"], 4),
        "quantised_weights": int(stored[1].replace(",", "")) if stored else 0,
        "stored_mb": float(stored[2].replace(",", "")) if stored else None,
        "before_mb": float(stored[3].replace(",", "")) if stored else None,
        "peak_gb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, 3),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    main()
