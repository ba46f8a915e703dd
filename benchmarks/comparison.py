"""The comparison of the DPO paper: DPO and other methods, including reward model and PPO, by reward and KL.

    python benchmarks/comparison.py --model stories260k --out runs/comparison --record

For each seed, responses are sampled from the model and judged with the true reward. Every method trains on these
judgements, except that PPO with the true reward uses the reward itself. `preftune eval frontier` measures reward and
KL of all policies, of best of n and of the closed-form optimum. The cost of each step is measured: seconds, peak memory
and generated tokens. Model, prompts and reward can be changed. Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
import yaml
from record import record
from sentiment import NAMES, TEMPLATES
from svg import plane

from preftune.chat.render import Renderer
from preftune.data.prompts import encode_prompts, read_prompts
from preftune.model.generate import Sampling, sample
from preftune.model.load import load_model, load_tokenizer, locate
from preftune.report.figures.frontier import Policy, frontier
from preftune.report.page import Page, write_page
from preftune.rewards.open import open_reward
from preftune.rewards.reward import PromptResponse, rewards_of


class Method(NamedTuple):
    """A run of one method: its command, its config without the model, and the number of models in memory."""

    command: str
    settings: dict[str, Any]
    models: int


class PlanePoint(NamedTuple):
    """A point of the figure."""

    name: str
    kl: float
    reward: float
    kl_se: float
    reward_se: float


def methods(options: argparse.Namespace, folder: Path) -> dict[str, Method]:
    """Return all runs of a seed in order. The reward model comes before the runs that use it."""
    groups, hard, best = (str(folder / name) for name in ("groups.jsonl", "hard.jsonl", "best.jsonl"))
    pairs = options.group * (options.group - 1) // 2 * 8
    common = {"batch": {"pairs": pairs}, "train": {"epochs": options.epochs}}
    tuned = {"lr": options.lr, "schedule": "cosine"}

    def data(file: str) -> dict[str, Any]:
        return {"train": file, "max_length": options.max_length}

    def ppo(reward: str, coefficient: float) -> Method:
        settings = {
            "data": {"train": str(folder / "prompts.jsonl")},
            "reward": reward,
            "rollout": {"prompts": 32, "responses": 4, "max_new_tokens": options.max_new_tokens},
            "ppo": {"kl_coef": coefficient, "epochs": 2},
            "optim": {"lr": options.ppo_lr, "schedule": "linear"},
            "train": {"epochs": 10_000, "max_steps": options.ppo_steps},
        }
        return Method("ppo", settings, 4 if reward != options.reward else 3)

    runs = {
        "Preferred-FT": Method(
            "sft", {"data": data(best), "optim": tuned, "batch": {"pairs": 32}, "train": {"epochs": 2}}, 1
        ),
        "unlikelihood": Method(
            "dpo", {**common, "data": data(hard), "optim": tuned, "loss": {"name": "unlikelihood", "alpha": 0.3}}, 1
        ),
    }
    for beta in options.betas:
        loss = {"name": "sigmoid", "beta": beta}
        runs[f"DPO {beta:g}"] = Method("dpo", {**common, "data": data(groups), "optim": tuned, "loss": loss}, 1)
    reward = {**common, "data": {**data(groups), "eval": 0.1}, "optim": {"lr": 1e-3, "schedule": "cosine"}}
    runs["reward model"] = Method("reward", {**reward, "normalise": False}, 1)
    for coefficient in options.kl_coefs:
        runs[f"PPO {coefficient:g}"] = ppo(str(folder / "reward-model" / "final"), coefficient)
    for coefficient in options.true_kl_coefs:
        runs[f"PPO true reward {coefficient:g}"] = ppo(options.reward, coefficient)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder of the model from which all methods start")
    parser.add_argument("--prompts", type=Path, help="rows with `prompt`; default: openings of children's stories")
    parser.add_argument("--reward", default="vader", help="the true reward: vader, or file.py:function")
    parser.add_argument("--out", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=64, help="judged responses per prompt")
    parser.add_argument("--group", type=int, default=8, help="responses per group; all pairs in a group are judged")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.4, 0.2, 0.1])
    parser.add_argument("--kl-coefs", type=float, nargs="+", default=[0.5, 0.2])
    parser.add_argument("--true-kl-coefs", type=float, nargs="+", default=[0.2])
    parser.add_argument("--ppo-steps", type=int, default=60)
    parser.add_argument("--ppo-lr", type=float, default=1e-4)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--evaluation", type=int, default=8, help="new samples per prompt for each policy")
    parser.add_argument("--yardstick", type=int, default=128, help="samples per prompt for best of n and the optimum")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    for seed in options.seeds:
        one_seed(options, seed)
    summarise(options)


def one_seed(options: argparse.Namespace, seed: int) -> None:
    """Run all steps of one seed in a separate folder."""
    folder = options.out / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    step(folder, "judgements", lambda: judge(options, folder, seed))
    for name, method in methods(options, folder).items():
        step(folder, name, lambda name=name, method=method: tune(options, folder, seed, name, method))  # type: ignore[misc]
    step(folder, "frontier", lambda: measure(options, folder, seed))


def step(folder: Path, name: str, work: Callable[[], dict[str, Any]]) -> None:
    """Run a step, unless it is in costs.json, and record its cost there."""
    path = folder / "costs.json"
    costs = json.loads(path.read_text()) if path.is_file() else {}
    if name in costs:
        return
    start, cpu_start = time.perf_counter(), time.process_time()
    facts = work()
    cpu_seconds, seconds = time.process_time() - cpu_start, time.perf_counter() - start
    costs[name] = {"cpu_seconds": round(cpu_seconds, 1), "seconds": round(seconds, 1), **facts}
    path.write_text(json.dumps(costs, indent=1))
    print(f"{folder.name}: {name}: {costs[name]}", flush=True)


def judge(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """Write groups with all judgements and soft labels, the same with hard labels, and each group's best response."""
    prompts = folder / "prompts.jsonl"
    rows = [{"prompt": template.format(name)} for template in TEMPLATES for name in NAMES]
    text = options.prompts.read_text() if options.prompts else "".join(json.dumps(row) + "\n" for row in rows)
    prompts.write_text(text)
    source = locate(options.model)
    tokenizer, model = load_tokenizer(source), load_model(source, torch.float32)
    groups, account = read_prompts(str(prompts))
    encoded = encode_prompts(groups, Renderer.of(tokenizer), 1 << 20, account)
    samples = sample(
        model,
        tokenizer,
        [p.ids.tolist() for p in encoded],
        Sampling(options.samples, options.max_new_tokens, seed=seed + 1000),
    )
    reward = open_reward(options.reward)
    soft, hard, best = [], [], []
    for prompt, sampled in zip(encoded, samples, strict=True):
        responses = [
            PromptResponse(prompt.text, t, e, prompt.origin) for t, e in zip(sampled.texts, sampled.ended, strict=True)
        ]
        scores = rewards_of(reward, responses, "judging")
        for begin in range(0, len(scores), options.group):
            members = range(begin, min(begin + options.group, len(scores)))
            order = sorted(members, key=lambda i: -scores[i])
            pairs = [
                (b - begin, w - begin, scores[b] - scores[w])
                for b, w in combinations(order, 2)
                if scores[b] > scores[w]
            ]
            row = {
                "prompt": prompt.text,
                "responses": [sampled.texts[i] for i in members],
                "ended": [bool(sampled.ended[i]) for i in members],
            }
            if not pairs:
                continue
            soft_judgements = [
                {"better": b, "worse": w, "probability": 1 / (1 + math.exp(-gap))} for b, w, gap in pairs
            ]
            soft.append({**row, "judgements": soft_judgements})
            hard.append({**row, "judgements": [{"better": b, "worse": w} for b, w, _ in pairs]})
            top = order[0]
            ended = [bool(sampled.ended[top])]
            best.append({"prompt": prompt.text, "responses": [sampled.texts[top]], "ended": ended, "judgements": []})
    for name, labelled in (("groups", soft), ("hard", hard), ("best", best)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    return {"generated_tokens": sum(len(ids) for s in samples for ids in s.group.response_ids)}


def tune(options: argparse.Namespace, folder: Path, seed: int, name: str, method: Method) -> dict[str, Any]:
    """Run one method in a separate process. Its config is written next to its run folder."""
    short = name.lower().replace(" ", "-")
    settings = dict(method.settings)
    settings["train"] = {**settings["train"], "seed": seed}
    config = {"model": {"path": options.model, "dtype": "fp32"}, **settings, "out": str(folder / short)}
    file = folder / f"{short}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    facts: dict[str, Any] = {"models": method.models}
    facts |= process(["-m", "preftune", method.command, str(file), "--quiet"])
    lines = [json.loads(line) for line in (folder / short / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["split"] == "train"]
    if method.command == "ppo":
        rollout = method.settings["rollout"]
        responses = rollout["prompts"] * rollout["responses"]
        facts["generated_tokens"] = round(sum(line["responses/tokens"] * responses for line in train))
    held_out = [line for line in lines if line["split"] == "eval"]
    if method.command == "reward":
        facts |= {key: round(held_out[-1][key], 4) for key in ("rewards/accuracies", "calibration/ece")}
    return facts


def measure(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, Any]:
    """Run `preftune eval frontier` for all policies of the seed."""
    policies = [name for name in methods(options, folder) if name != "reward model"]
    command = ["-m", "preftune", "eval", "frontier", "--reference", options.model, "--reward", options.reward]
    for name in policies:
        command += ["--policy", str(folder / name.lower().replace(" ", "-"))]
    command += ["--prompts", str(folder / "prompts.jsonl"), "--out", str(folder / "frontier"), "--quiet"]
    command += ["--samples", str(options.evaluation), "--yardstick", str(options.yardstick)]
    command += ["--max-new-tokens", str(options.max_new_tokens), "--seed", str(seed + 2000), "--dtype", "fp32"]
    return process(command)


def process(arguments: Sequence[str]) -> dict[str, float]:
    """Run Python with these arguments. Return its peak memory and CPU time; exit if it fails."""
    child = subprocess.Popen([sys.executable, *arguments])
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"failed: {' '.join(arguments)}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_gb": round(peak / 1e9, 2), "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1)}


def summarise(options: argparse.Namespace) -> None:
    """Write frontier.html and summary.json with means over seeds, and print a table."""
    folders = [options.out / f"seed-{seed}" for seed in options.seeds]
    frontiers = [json.loads((folder / "frontier" / "frontier.json").read_text()) for folder in folders]
    costs = [json.loads((folder / "costs.json").read_text()) for folder in folders]
    names = [name for name in methods(options, folders[0]) if name != "reward model"]
    policies = {}
    for name in names:
        short = name.lower().replace(" ", "-")
        points = [facts["policies"][short][0] for facts in frontiers]
        policies[name] = {
            **{key: mean(p[key] for p in points) for key in ("kl", "reward")},
            **{f"{key}_sd": stdev(p[key] for p in points) if len(points) > 1 else 0.0 for key in ("kl", "reward")},
        }
    lines = {
        kind: [
            {"name": same[0]["name"], "kl": mean(p["kl"] for p in same), "reward": mean(p["reward"] for p in same)}
            for same in zip(*(facts[kind] for facts in frontiers), strict=False)
        ]
        for kind in ("optimum", "best of n")
    }
    start = mean(next(iter(facts["policies"].values()))[0]["reward"] for facts in frontiers)
    mean_costs = {
        name: {key: mean(c[name][key] for c in costs if key in c[name]) for key in costs[-1][name]}
        for name in ("judgements", *methods(options, folders[0]))
    }
    summary = {"reference": start, "policies": policies, **lines, "costs": mean_costs}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    draw(options.out / "frontier.html", summary, len(folders))
    for name, p in policies.items():
        result = f"reward {p['reward']:.3f} ({p['reward_sd']:.3f})  KL {p['kl']:.3f} ({p['kl_sd']:.3f})"
        print(f"{name:<22} {result}  {mean_costs[name]}")
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        record("comparison", summary, settings | {"model": Path(options.model).name})


def draw(path: Path, summary: dict[str, Any], seeds: int) -> None:
    """Plot all policies by reward and KL, with one series per method."""
    lines = {
        "optimum": [(0.0, summary["reference"])] + [(p["kl"], p["reward"]) for p in summary["optimum"]],
        "best of n": [(p["kl"], p["reward"]) for p in summary["best of n"]],
    }
    series: dict[str, list[PlanePoint]] = {"reference": [PlanePoint("reference", 0.0, summary["reference"], 0.0, 0.0)]}
    for name, p in summary["policies"].items():
        method = name.rstrip("0123456789. ")
        point = PlanePoint(name, p["kl"], p["reward"], p["kl_sd"] / math.sqrt(seeds), p["reward_sd"] / math.sqrt(seeds))
        series.setdefault(method, []).append(point)
    shown = [
        Policy(p.name, "reference" if method == "reference" else "ppo" if "PPO" in method else "policy", p.kl, p.reward,
               p.kl_se, p.reward_se)
        for method, points in series.items()
        for p in points
    ]  # fmt: skip
    curve = [(kl, reward, 0.0, 100.0) for kl, reward in lines["optimum"]]
    card = frontier(shown, curve, 0, f"means over {seeds} seeds; intervals are over seeds", policy_name="policies")
    write_page(path, Page("DPO compared with a reward model and PPO", card.sentence, parts=[card]))
    points = {m: [(p.name, p.kl, p.reward, 1.96 * p.kl_se, 1.96 * p.reward_se) for p in s] for m, s in series.items()}
    plane(path.with_suffix(".svg"), f"Reward against KL, means over {seeds} seeds", lines, points, max_kl=4.0)


if __name__ == "__main__":
    main()
