"""Pairs per second and peak memory of a DPO step, compared with TRL on the same token ids.

    python benchmarks/dpo_step.py --model 44m --data hh --hh hh_harmless_test.jsonl.gz --record

Every system runs in a separate process, one after another, `--repeats` times. The median is reported.

    preftune         the default of a run: shared prompts, reference scored once (this pass is timed separately)
    preftune-online  shared prompts, a frozen reference that runs in every step
    preftune-rows    one padded row per response, reference scored once: neither sharing nor packing
    preftune-pairs   preftune, with each judgement of a group as a separate pair
    preftune-compiled  preftune with compiled blocks and rows of constant lengths, all compiled before the first step
    preftune-compiled-any  the same, compiled once for rows of any length
    trl              TRL's DPOTrainer by default: gradient checkpointing, reference in every step, not sorted by length
    trl-best         its fastest settings: no checkpointing, precomputed reference, batches grouped by length, and the
                     batch size per device that is fastest in one step (of those that divide the pairs of a step)
    plain            a loop in plain torch over padded rows, reference scored once (plain_step.py)
    flash-pref       the same loop inside the context of flash-pref, which shares prompts (GPU)
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_step import run_plain
from record import record
from workloads import LIMIT, SHAPES, as_separate_pairs, build_groups, build_model, useful_flops

OURS = ("preftune", "preftune-online", "preftune-rows", "preftune-pairs", "preftune-compiled", "preftune-compiled-any")
SYSTEMS = (*OURS, "trl", "trl-best", "plain", "flash-pref")
OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
LR = 1e-5


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="44m", help=f"{', '.join(SHAPES)} with random weights, or a model folder")
    parser.add_argument("--max-length", type=int, default=LIMIT, help="limit of tokens, for --data hh and mix")
    parser.add_argument("--data", choices=["hh", "mix", "groups", "tldr", "like-hh"], default="like-hh")
    parser.add_argument("--hh", help="HH-RLHF file")
    parser.add_argument("--mix", help="preference file with long texts")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--lora", type=int, default=0, help="rank of an adapter on all linear layers; 0: full tuning")
    parser.add_argument("--pairs", type=int, default=8, help="judgements per step")
    parser.add_argument("--tokens", type=int, help="token slots per micro-batch of preftune; default: as in a run")
    parser.add_argument("--steps", type=int, default=6, help="measured steps")
    parser.add_argument("--warm", type=int, default=2, help="steps before the measured ones")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--systems", default="preftune,preftune-online,preftune-rows,trl,trl-best")
    parser.add_argument("--batches", type=int, nargs="+", help="pairs per device that trl-best may choose from")
    parser.add_argument("--record", action="store_true", help="append the figures to results.jsonl")
    parser.add_argument("--one", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)  # for --one trl-best
    options = parser.parse_args(arguments)
    if options.data == "groups" and options.pairs % 6:
        parser.error("--pairs must be a multiple of 6 for groups, which have six judgements each")
    if options.tokens is None:
        options.tokens = 4096 if options.dtype == "bf16" else 1024
    return options


def main() -> None:
    options = parse()
    if options.one:
        print("RESULT " + json.dumps(measure(options)))
        return
    names = options.systems.split(",")
    runs_of: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    batches = options.batches or [n for n in range(1, options.pairs + 1) if options.pairs % n == 0]
    more = {"trl-best": [f"--batch={fastest_batch(batches)}"]} if "trl-best" in names else {}
    for name in names * options.repeats:
        try:
            runs_of[name].append(run_separately(name, *more.get(name, [])))
        except MemoryError as error:
            print(error, flush=True)
        else:
            print(f"{name:21} {line(runs_of[name][-1])}", flush=True)
    figures: dict[str, Any] = {name: median_run(runs) for name, runs in runs_of.items() if runs}
    figures |= {"out of memory": [name for name in names if name not in figures]}
    figures["gemm_gflops"] = max(run["gemm_gflops"] for runs in runs_of.values() for run in runs)
    print(table(figures, names))
    if options.record:
        record("dpo step", figures, {k: v for k, v in vars(options).items() if k not in ("record", "one", "batch")})


def fastest_batch(batches: Sequence[int], arguments: Sequence[str] | None = None, timeout: float | None = None) -> int:
    """Return the number of pairs per device with which a step of TRL is fastest, of those that fit in memory."""
    if len(batches) == 1:
        return batches[0]
    speeds = {}
    for batch in batches:
        try:
            more = (f"--batch={batch}", "--steps=1", "--warm=0")
            speeds[batch] = run_separately("trl-best", *more, arguments=arguments, timeout=timeout)["pairs_per_s"]
        except MemoryError:
            break  # larger batches do not fit either
    if not speeds:
        raise SystemExit("trl-best does not fit in memory even with one pair per device")
    print("trl-best, one step:", ", ".join(f"batch {n} {speed:.3f} pairs/s" for n, speed in speeds.items()), flush=True)
    return max(speeds, key=lambda batch: speeds[batch])


def run_separately(
    name: str, *more: str, arguments: Sequence[str] | None = None, timeout: float | None = None
) -> dict[str, Any]:
    """Measure one system in a new process, with the options in `arguments` (default: those of this process).

    Raises MemoryError if it runs out of memory or is killed for it, and TimeoutExpired after `timeout` seconds.
    """
    command = [sys.executable, __file__, *(sys.argv[1:] if arguments is None else arguments), "--one", name, *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
    for text in done.stdout.splitlines():
        if text.startswith("RESULT "):
            result: dict[str, Any] = json.loads(text.removeprefix("RESULT "))
            return result
    if done.returncode == -signal.SIGKILL or any(text in done.stderr for text in OUT_OF_MEMORY):
        raise MemoryError(f"{name} ran out of memory")
    raise SystemExit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run one system and return its figures."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    per_group = 6 if options.data == "groups" else 1
    count = (options.steps + options.warm) * max(1, options.pairs // per_group)
    files = {"hh": options.hh, "mix": options.mix}
    groups = build_groups(options.data, count, files, options.model, options.max_length)
    peak = gemm(dtype, device)
    reset_peak(device)
    run = {"trl": run_trl, "trl-best": run_trl, "plain": run_plain, "flash-pref": run_plain}.get(
        options.one, run_preftune
    )
    data = groups if options.one in OURS and options.one != "preftune-pairs" else as_separate_pairs(groups)
    result = run(options, data, dtype, device)
    # batches grouped by length start with the longest: without it, trl-best would look faster than it is
    warm = 0 if options.one == "trl-best" else options.warm
    steps = result.pop("step_s")[warm:]
    seconds = sum(steps)
    cached = options.one not in ("preftune-online", "trl")
    measured = groups[warm * max(1, options.pairs // per_group) :]
    flops = useful_flops(measured, build_model(options.model, torch.float32, "meta"), cached, bool(options.lora))
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss  # fmt: skip
    return {
        "pairs_per_s": sum(len(g.judgements) for g in measured) / seconds,
        "peak_gb": memory / 1e9,
        "reserved_gb": torch.cuda.max_memory_reserved() / 1e9 if device == "cuda" else None,
        "gemm_gflops": peak,
        "useful_mfu": flops / seconds / 1e9 / peak,
        "step_s": statistics.median(steps),
        **result,
    }


def run_preftune(options: argparse.Namespace, groups: list[Any], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Run the training loop of preftune with a log that records times and losses."""
    from preftune.config.schema import LossTerm, OptimConfig, TrainConfig
    from preftune.data.layout import Budget, micro_batches
    from preftune.lifecycle.packing_probe import choose_layout
    from preftune.lifecycle.task import ResponseTask
    from preftune.methods.objective import bind_objective
    from preftune.model.adapter import add_lora
    from preftune.model.compile import compile_blocks
    from preftune.model.logprobs import Scorer
    from preftune.model.memory import keep_freed_memory
    from preftune.model.reference import AdapterOff, Cached, Frozen, Reference, fill, store_key
    from preftune.model.reference_cache import Store
    from preftune.train.loop import fit
    from preftune.train.optim import Weights, build_optimizer

    if device == "cpu" and dtype == torch.bfloat16:
        keep_freed_memory()  # as a run does
    model = build_model(options.model, dtype, device)
    if options.lora:
        model = add_lora(model, options.lora, 2.0 * options.lora, "all-linear")
    scorer = Scorer.of(model)
    layout, _ = choose_layout(scorer, "rows" if options.one == "preftune-rows" else "shared")
    constant = options.one == "preftune-compiled"
    if options.one.startswith("preftune-compiled"):
        compile_blocks(model, constant)
    budget = Budget(layout, options.tokens, constant)
    reference: Reference
    begin = time.perf_counter()
    if options.one != "preftune-online":
        store = Store(
            store_key("benchmark", dtype, layout), Path(tempfile.mkdtemp())
        )  # empty, so that all groups are scored
        fill(store, scorer, groups, lambda part: micro_batches(part, budget))
        reference = Cached(store, torch.device(device))
    else:
        reference = AdapterOff.of(scorer) if options.lora else Frozen.copy_of(model)
    cached_s = time.perf_counter() - begin
    task = ResponseTask(
        scorer, reference, bind_objective([LossTerm(name="sigmoid", parameters={"beta": 0.1})]), groups, [], budget
    )
    in_order = in_file_order(groups, options.pairs)
    if options.one.startswith("preftune-compiled"):
        begin = time.perf_counter()
        compile_lengths(task, in_order)
        print(f"compiled in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    weights = Weights(model)
    optimizer = build_optimizer(weights.masters, "adamw", LR, 0.0)
    reset_peak(device)

    log = Log()
    optim = OptimConfig(lr=LR, schedule="constant", warmup=0)
    for _ in fit(task, in_order, 0, weights, optimizer, optim, TrainConfig(), log):
        pass
    return {"step_s": np.diff(log.times).tolist(), "losses": log.losses, "reference_s": cached_s}


class Log:
    """A log for the training loop that records times and losses."""

    def __init__(self) -> None:
        from preftune.train.metrics import Tally

        self.tally, self.losses = Tally(), list[float]()
        self.evaluation_due = False
        self.times = [time.perf_counter()]

    def log_train(self, _step: int, metrics: dict[str, float]) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(metrics["loss"])

    def save(self, *_: Any) -> None: ...

    def planned(self, _step: int, total: int) -> int:
        return total

    def save_if_due(self, *_: Any) -> None: ...

    def keep_last_state(self) -> None: ...

    def log_halved(self, *_: Any) -> None: ...

    def reached(self, *_: Any, **__: Any) -> None: ...

    def stop_requested(self) -> bool:
        return False


def compile_lengths(task: Any, steps: Sequence[Any]) -> None:
    """Run one batch of each length in the steps, so that compilation is not measured as part of a step."""
    batches = [batch for plan in steps for batch in task.micro_batches([task.groups[i] for i in plan.members])]
    for batch in {len(batch.ids_T): batch for batch in batches}.values():
        task.loss_of(batch).loss_sum.backward()
    task.scorer.model.zero_grad()


def in_file_order(groups: Sequence[Any], pairs: int) -> list[Any]:
    """Return steps of `pairs` judgements in the order of the list, which is random and the same for all systems."""
    from preftune.data.steps import Step

    steps: list[Step] = []
    members: list[int] = []
    filled = 0
    for index, group in enumerate(groups):
        members.append(index)
        filled += len(group.judgements)
        if filled >= pairs or index == len(groups) - 1:
            steps.append(Step(len(steps) + 1, 0, tuple(members)))
            members, filled = [], 0
    return steps


def run_trl(options: argparse.Namespace, pairs: list[Any], dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Run TRL's DPOTrainer on rows of token ids; on a GPU, after a short warm-up run that is not measured."""
    rows = [
        {
            "prompt_ids": g.prompt_ids.tolist(),
            "chosen_ids": g.response_ids[0].tolist(),
            "rejected_ids": g.response_ids[1].tolist(),
            "length": len(g.prompt_ids) + max(len(r) for r in g.response_ids),
        }
        for g in pairs
    ]
    if device == "cuda":
        trained_by_trl(options, rows[: 2 * options.pairs], dtype, device)
        reset_peak(device)
    return trained_by_trl(options, rows, dtype, device)


def trained_by_trl(
    options: argparse.Namespace, rows: list[dict[str, Any]], dtype: torch.dtype, device: str
) -> dict[str, Any]:
    """Run TRL once. Fully trained weights are fp32 under autocast, as TRL loads them; under an adapter, `dtype`."""
    import peft
    import transformers
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from trl import DPOConfig, DPOTrainer

    best, batch = options.one == "trl-best", options.batch or options.pairs
    times: list[float] = []

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not times:
                times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter())

    empty = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<pad>": 2}, unk_token="<s>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=empty, eos_token="</s>", pad_token="<pad>")
    stored = dtype if options.lora else torch.float32
    adapter = peft.LoraConfig(
        r=options.lora, lora_alpha=2 * options.lora, target_modules="all-linear", task_type="CAUSAL_LM"
    ) if options.lora else None  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=options.pairs // batch,
            learning_rate=LR,
            lr_scheduler_type="constant",
            warmup_steps=0,
            num_train_epochs=1,
            max_length=options.max_length,
            beta=0.1,
            bf16=dtype == torch.bfloat16,
            use_cpu=device == "cpu",
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
            dataloader_pin_memory=device == "cuda",
            gradient_checkpointing=not best,
            precompute_ref_log_probs=best,
            precompute_ref_batch_size=4 * options.pairs if best else None,
            train_sampling_strategy="group_by_length" if best else "sequential",
            remove_unused_columns=not best,
        )
        begin = time.perf_counter()
        trainer = Trainer(
            model=build_model(options.model, stored, device),
            ref_model=None if best or options.lora else build_model(options.model, stored, device),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[Watch()],
        )
        reference_s = time.perf_counter() - begin
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"step_s": np.diff(times).tolist(), "losses": losses, "reference_s": reference_s, "batch": batch}


def reset_peak(device: str) -> None:
    """Forget the peak memory of what has run so far on a GPU."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def gemm(dtype: torch.dtype, device: str) -> float:
    """Return the best GFLOP/s of a square matrix product, the peak that this process reaches on the machine."""
    emulated = device == "cpu" and dtype == torch.bfloat16 and not torch.cpu.get_capabilities().get("avx512_bf16")
    n, best = 8192 if device == "cuda" else 512 if emulated else 2048, 0.0
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    for _ in range(6):
        begin = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * n**3 / (time.perf_counter() - begin) / 1e9)
    return best


def median_run(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the run with the median speed, with the range of all speeds."""
    ranked = sorted(runs, key=lambda run: run["pairs_per_s"])
    speeds = [run["pairs_per_s"] for run in ranked]
    return {**ranked[len(ranked) // 2], "range": [min(speeds), max(speeds)]}


def line(run: dict[str, Any]) -> str:
    """Return the figures of one run as a line of text."""
    return (
        f"{run['pairs_per_s']:8.3f} pairs/s  {run['peak_gb']:6.2f} GB  useful {run['useful_mfu']:6.1%} of "
        f"{run['gemm_gflops']:.0f} GFLOP/s  reference {run['reference_s']:.1f} s  "
        f"loss {run['losses'][0]:.4f} -> {run['losses'][-1]:.4f}"
    )


def table(figures: dict[str, Any], names: Sequence[str]) -> str:
    """Return the ratios to TRL as lines of text."""
    lines = [""]
    for peer in ("trl", "trl-best"):
        for name in (name for name in names if not name.startswith("trl") and {name, peer} <= figures.keys()):
            speed = figures[name]["pairs_per_s"] / figures[peer]["pairs_per_s"]
            memory = figures[name]["peak_gb"] / figures[peer]["peak_gb"]
            lines.append(f"{name:21} against {peer:9} {speed:6.2f}x pairs/s, {memory:5.2f}x peak memory")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
