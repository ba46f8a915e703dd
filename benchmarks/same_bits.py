"""Count how many repetitions of one training step differ in any bit, on several threads and under load.

python benchmarks/same_bits.py --demo runs/demo --repeats 8000 --record

`--demo` is the output folder of `preftune demo`. A DPO run with the demo's config begins from its SFT model. In the
step `--step`, forward, backward, clipping and the update are repeated. Before each repetition, memory of a random size
is allocated, so that arrays move. `--load` other processes compute at the same time.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from record import record

from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, OptimConfig, TrainConfig
from preftune.methods import dpo
from preftune.train import loop
from preftune.train.display import Display

BUSY = "while True: sum(i * i for i in range(10 ** 6))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--demo", type=Path, required=True, help="output folder of preftune demo")
    parser.add_argument("--repeats", type=int, default=8000)
    parser.add_argument("--step", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--load", type=int, default=1, help="busy processes beside the step")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(options.load)]
    try:
        counts = repeat_step(options)
    finally:
        for process in busy:
            process.kill()
    figures = {"repeats": options.repeats, "different": options.repeats - max(counts.values()), "results": len(counts)}
    print(figures)
    if options.record:
        settings = {name: getattr(options, name) for name in ("step", "threads", "load", "dtype")}
        record("same bits", figures, settings)


def repeat_step(options: argparse.Namespace) -> Counter[str]:
    """Run DPO up to the step and repeat it. Return how often each result occurred, by its hash."""
    counts: Counter[str] = Counter()
    update = loop.update

    def repeated(task: Any, groups: Any, weights: Any, optimizer: Any, *rest: Any) -> Any:
        step = rest[2]
        if step == options.step:
            before = [master.detach().clone() for master in weights.masters]
            state = copy.deepcopy(optimizer.state_dict())
            for _ in range(options.repeats):
                moved = torch.empty(random.randrange(1 << 20))
                _, metrics, grad_norm = update(task, groups, weights, optimizer, *rest)
                counts[digest(weights.masters, metrics.means(), grad_norm)] += 1
                with torch.no_grad():
                    for master, value in zip(weights.masters, before, strict=True):
                        master.copy_(value)
                weights.publish()
                optimizer.load_state_dict(copy.deepcopy(state))
                del moved
        return update(task, groups, weights, optimizer, *rest)

    vars(loop)["update"] = repeated
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            model=ModelConfig(path=str(options.demo / "sft" / "final"), dtype=options.dtype),
            data=DataConfig(train=str(options.demo / "preferences.jsonl"), eval=0.1, max_length=128),
            optim=OptimConfig(lr=3e-4, schedule="cosine"),
            batch=BatchConfig(pairs=112),
            train=TrainConfig(max_steps=options.step),
            monitor=None,
            out=f"{folder}/run",
        )
        dpo.run(config, display=Display(quiet=True))
    return counts


def digest(weights: list[torch.Tensor], metrics: dict[str, float], grad_norm: float) -> str:
    """Return a hash of weights, metrics and gradient norm, to the last bit."""
    result = hashlib.sha256(repr((sorted(metrics.items()), grad_norm)).encode())
    for tensor in weights:
        result.update(tensor.detach().numpy().tobytes())
    return result.hexdigest()


if __name__ == "__main__":
    main()
