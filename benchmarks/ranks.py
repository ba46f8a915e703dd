"""Runs on several ranks beside one process and the plan: losses, weights, memory per rank, bytes between ranks.

python benchmarks/ranks.py --model MODEL --data PAIRS.jsonl.gz --loss sigmoid --record

Each rank counts the bytes of its weights, gradients and optimizer state, and those that collectives bring it, with a
dispatch mode of torch. Peaks of memory are those of the operating system. CPU and gloo only; the model is stored in
fp32 first, so that its file can be mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__)
MEMORY = 16_000_000_000  # of a rank, for the plan; it changes only the share for stored logits
RUNS = ((1, "whole"), (2, "whole"), (2, "sharded"), (4, "whole"), (4, "sharded"))


def main() -> None:
    if "--in-rank" in sys.argv:
        in_rank(Path(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--loss", default="sigmoid", help="a loss of dpo, or sft")
    parser.add_argument("--runs", nargs="+", default=[f"{ranks}-{way}" for ranks, way in RUNS])
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--tokens", type=int, default=512, help="token slots per micro-batch")
    parser.add_argument("--max-length", type=int, default=192)
    parser.add_argument("--set", nargs="*", default=[], help="more settings of the config")
    parser.add_argument("--record", action="store_true", help="append a row per run to benchmarks/results.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store_fp32(options.model, root / "model")
        os.environ["PREFTUNE_CACHE"] = str(root / "cache")  # of the reference log-probs: the same for all runs
        for name in options.runs:
            ranks, _, way = name.partition("-")
            figures = measured(options, root, int(ranks), way)
            print(json.dumps(figures), flush=True)
            if options.record:
                from record import record

                names = ("loss", "pairs", "steps", "lr", "tokens", "max_length", "set")
                settings = {name: getattr(options, name) for name in names}
                record("ranks", figures, {"model": Path(options.model).name, **settings})


def store_fp32(model: str, folder: Path) -> None:
    """Save a model in fp32, with its tokenizer."""
    import transformers

    transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model).save_pretrained(folder)


def measured(options: argparse.Namespace, root: Path, ranks: int, way: str) -> dict[str, Any]:
    """Run a command on `ranks` ranks, and return what they measured, the distance from one process, and the plan."""
    method = "sft" if options.loss == "sft" else "dpo"
    settings = [method, f"model.path={root / 'model'}", f"data.train={options.data}", "model.dtype=fp32"]
    settings += ["model.compile=false", f"batch.pairs={options.pairs}", f"batch.tokens={options.tokens}"]
    settings += [f"data.limit={options.pairs * options.steps}", f"train.max_steps={options.steps}", "train.log_every=1"]
    settings += [f"data.max_length={options.max_length}", f"optim.lr={options.lr}", "train.save_end=false"]
    settings += ["monitor=null", f"loss={options.loss}"] if method == "dpo" else []
    settings += options.set
    out = root / f"{ranks}-{way}"
    began = time.perf_counter()
    per_rank = run_ranks(ranks, way, [*settings, f"out={out}"], root)
    figures = {"ranks": ranks, "way": way, "seconds": round(time.perf_counter() - began, 1)}
    figures |= {name: max(values[name] for values in per_rank) for name in per_rank[0]}
    figures |= difference(root / "1-whole", out)
    if way == "sharded":
        figures |= plan([*settings, f"out={root / 'plan'}"], ranks)
    return figures


def run_ranks(ranks: int, way: str, arguments: list[str], root: Path) -> list[dict[str, float]]:
    """Run a command on `ranks` processes with one thread each, and return what each rank measured."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": port, "PREFTUNE_WEIGHTS": way, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    files = [root / f"{ranks}-{way}-{rank}.json" for rank in range(ranks)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE), "--in-rank", str(file), *arguments],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, file in enumerate(files)
    ]
    outputs = [process.communicate()[1] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit("the run failed:\n" + "\n".join(outputs))
    return [json.loads(file.read_text()) for file in files]


class Received(TorchDispatchMode):
    """Counts the bytes that collectives bring to this rank, as if each piece came once from the rank that has it."""

    def __init__(self, world: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.share, self.bytes = (world - 1) / world, {"gathered": 0.0, "reduced": 0.0, "summed": 0.0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "c10d" in name or "_c10d_functional" in name:
            size = sum(t.numel() * t.element_size() for t in tensors_of(args[0]))
            if "reduce_scatter" in name:  # the input is whole
                size = sum(t.numel() * t.element_size() for t in tensors_of(args[1])) if "_base" in name else size
                self.bytes["reduced"] += self.share * size
            elif "allgather" in name or "all_gather" in name:  # the output is whole
                self.bytes["gathered"] += self.share * size
            elif "allreduce" in name or "all_reduce" in name:  # pieces are reduced, then gathered
                self.bytes["summed"] += 2 * self.share * size
        return func(*args, **(kwargs or {}))


def tensors_of(value: Any) -> list[torch.Tensor]:
    """Return the tensors in nested lists."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_of(part)] if isinstance(value, list | tuple) else []


class Peak:
    """The largest anonymous memory of this process since `reset`, sampled by a thread. Mapped files do not count."""

    def __init__(self) -> None:
        self.largest, self.start = 0, status("RssAnon")
        threading.Thread(target=self._sample, daemon=True).start()

    def reset(self) -> None:
        self.largest = 0

    def read(self) -> int:
        return max(self.largest, status("RssAnon")) - self.start

    def _sample(self) -> None:
        while True:
            self.largest = max(self.largest, status("RssAnon"))
            time.sleep(0.005)


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of this rank's parts of tensors; those that share their memory count once."""
    from preftune.ranks.shard import local

    parts = {part.data_ptr(): part for part in map(local, tensors) if part.numel()}
    return sum(part.numel() * part.element_size() for part in parts.values())


def in_rank(file: Path, arguments: list[str]) -> None:
    """Run a command in this rank, measure its updates, and write the figures."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import preftune.methods.dpo
    import preftune.methods.sft
    from preftune.cli.main import run

    torch.set_num_threads(1)
    loop: Any = preftune.train.loop
    update, clip, accumulate = loop.update, loop.clip, loop._accumulate
    peak, figures, sums = Peak(), dict[str, float](), Counter[str]()

    def measured_clip(gradients: list[torch.Tensor], norm: float) -> Any:
        figures["gradient_bytes"] = bytes_of(gradients)
        return clip(gradients, norm)

    def measured_passes(task: Any, batches: Any, count: Any, extra: Any = ()) -> Any:
        sums["micro_batches"] += len(batches) + len(extra)
        return accumulate(task, batches, count, extra)

    def measured_update(task: Any, groups: Any, weights: Any, optimizer: Any, *more: Any) -> Any:
        figures.setdefault("peak_before_steps", peak.read())
        peak.reset()
        with Received(int(os.environ["WORLD_SIZE"])) as received:
            result = update(task, groups, weights, optimizer, *more)
        figures["peak_of_a_step"] = peak.read()
        figures["weight_bytes"] = bytes_of([*task.scorer.model.parameters(), *(m.detach() for m in weights.masters)])
        states = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
        figures["optimizer_bytes"] = bytes_of(value for value in states if value.dim())
        for name, value in received.bytes.items():
            sums[f"{name}_bytes"] += round(value)
        sums["steps"] += 1
        return result

    loop.update, loop.clip, loop._accumulate = measured_update, measured_clip, measured_passes
    code = run(arguments)
    steps = sums.pop("steps")
    file.write_text(json.dumps(figures | {name: round(value / steps, 2) for name, value in sums.items()}))
    sys.exit(code)


def status(name: str) -> int:
    """Return a size of this process from /proc, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def difference(one: Path, other: Path) -> dict[str, Any]:
    """Return the largest differences of losses, gradient norms and final weights."""
    from safetensors.torch import load_file

    expected, actual = ([json.loads(line) for line in (f / "metrics.jsonl").open()] for f in (one, other))
    pairs = [(a, b) for a, b in zip(expected, actual, strict=True) if a["split"] == "train"]
    first, second = (load_file(folder / "final" / "model.safetensors") for folder in (one, other))
    moved = {name: (first[name].double() - second[name].double()) for name in first}
    return {
        "losses": [round(b["loss"], 7) for _, b in pairs],
        "loss_difference": max(abs(a["loss"] - b["loss"]) for a, b in pairs),
        "norm_difference": max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in pairs),
        "weight_difference": max(float(value.abs().max()) for value in moved.values()),
    }


def plan(arguments: list[str], ranks: int) -> dict[str, Any]:
    """Return what --dry-run --ranks predicts, in bytes."""
    from preftune.cli.training import config_from
    from preftune.lifecycle.cluster import Cluster, choose_slots, memory_parts, micro_batches, traffic
    from preftune.lifecycle.cluster_model import read_shape
    from preftune.lifecycle.cluster_run import work_of

    config = config_from(arguments[0], arguments[1:], None, [], False, None)
    cluster, work, shape = Cluster(ranks, MEMORY), work_of(config), read_shape(config)
    slots = choose_slots(shape, config, cluster, work)
    count = micro_batches(cluster, work, slots)
    scored = -(-slots * work.scored // work.slots)
    memory = memory_parts(shape, config, cluster, slots, scored)
    return {
        "planned_memory": memory,
        "planned_received": traffic(shape, config, cluster, count),
        "planned_micro_batches": count,
    }


if __name__ == "__main__":
    main()
