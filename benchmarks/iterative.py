"""Iterative DPO compared with offline DPO for the same number of judgements: reward and KL after every round.

    python benchmarks/iterative.py --model stories260k --out runs/iterative --record

Each round samples `--n` responses per prompt from the current policy, judges all pairs with the true reward, and trains
one epoch with the first model as the reference. Offline DPO is one round with rounds * n responses from the first
model, in groups of n, at the same betas and at others, which gives a curve of reward over KL. With --offline-model, its
responses come from another model, as in most published data sets. Rerun the same command to resume. Seeds may run in
parallel in the same folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import record
from sentiment import NAMES, TEMPLATES

from preftune.config.sampling import IterateConfig, PromptConfig, SampleConfig, SelectConfig
from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, OptimConfig, TrainConfig
from preftune.data.select import SelectionOptions
from preftune.lifecycle.data import read_prompt_data
from preftune.methods import dpo
from preftune.model.generate import Sampling
from preftune.rewards.open import open_reward
from preftune.train.display import Display
from preftune.workflows import iterate, pairs
from preftune.workflows import sample as samples
from preftune.workflows.sample import SampleOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="folder of a small story model")
    parser.add_argument("--reward", default="vader", help="the true reward")
    parser.add_argument("--out", type=Path, default=Path("runs/iterative"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--betas", type=float, nargs="*", default=[0.1, 0.05])
    parser.add_argument(
        "--offline-betas", type=float, nargs="*", default=[0.3, 0.2, 0.15], help="additional betas for offline DPO"
    )
    parser.add_argument("--offline-model", help="model that writes the responses for offline DPO; default: --model")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--n", type=int, default=8, help="responses per prompt and round")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--lr-decay", type=float, default=1.0, help="factor on the learning rate per round")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps of a round")
    parser.add_argument("--groups", type=int, default=8, help="groups per step")
    parser.add_argument("--reference", choices=["fixed", "refreshed"], default="fixed")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--evaluation", type=int, default=8, help="new responses per prompt in every evaluation")
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    prompts = options.out / "prompts.jsonl"
    rows = [{"prompt": template.format(name)} for template in TEMPLATES for name in NAMES]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curves = {}
    for beta in options.betas:
        by_seed = [iterated(options, prompts, beta, seed) for seed in options.seeds]
        curves[f"iterative, beta {beta:g}"] = averaged(by_seed)
    for beta in (*options.offline_betas, *options.betas):
        by_seed = [[offline(options, prompts, beta, seed)] for seed in options.seeds]
        curves[f"offline, beta {beta:g}"] = averaged(by_seed)
    for name, curve in curves.items():
        print(name, "  ".join(f"{p['score']:.3f} at {p['kl']:.2f} nats" for p in curve))
    (options.out / "summary.json").write_text(json.dumps(curves, indent=1))
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        claim = "dpo on another model's responses" if options.offline_model else "iterative dpo"
        record(claim, curves, settings | {"model": Path(options.model).name})


def iterated(options: argparse.Namespace, prompts: Path, beta: float, seed: int) -> list[dict[str, float]]:
    """Run iterative DPO. Return the evaluations before the first round and after each round."""
    out = options.out / f"beta-{beta:g}-seed-{seed}"
    config = IterateConfig(
        model=ModelConfig(path=options.model, dtype="fp32"),
        data=PromptConfig(train=str(prompts)),
        reward=options.reward,
        rounds=options.rounds,
        max_length=256,
        sample=SampleConfig(n=options.n, max_new_tokens=options.max_new_tokens, evaluation=options.evaluation),
        pairs=SelectConfig(select="all", soft=True),
        reference=options.reference,
        lr_decay=options.lr_decay,
        loss={"name": "sigmoid", "beta": beta},
        optim=OptimConfig(lr=options.lr, schedule="cosine", warmup=options.warmup),
        batch=BatchConfig(pairs=options.n * (options.n - 1) // 2 * options.groups),
        train=TrainConfig(seed=seed),
        out=str(out),
    )
    iterate.run(config, display=Display(quiet=True))
    files = [out / "start.json", *sorted(out.glob("round-*/evaluation.json"))]
    print(f"beta {beta:g}, seed {seed}: iterated", flush=True)
    return [json.loads(file.read_text()) for file in files]


def offline(options: argparse.Namespace, prompts: Path, beta: float, seed: int) -> dict[str, float]:
    """Run one round with as many judgements, in groups of n responses from one model. Return its evaluation."""
    folder = options.out / f"offline-beta-{beta:g}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    prefs = options.out / f"offline-seed-{seed}.jsonl"
    quiet = Display(quiet=True)
    if not prefs.is_file():
        text = ""
        for part in range(options.rounds):
            sampling = Sampling(options.n, options.max_new_tokens, seed=seed * 1000 + part)
            sampled = options.out / f"offline-seed-{seed}-{part}.samples.jsonl"
            model, data = options.offline_model or options.model, DataConfig(train=str(prompts))
            samples.run(SampleOptions(model, data, sampling, dtype="fp32"), sampled, quiet)
            judged = sampled.with_suffix(".prefs.jsonl")
            pairs.run(str(sampled), judged, SelectionOptions("all", soft=True), open_reward(options.reward), quiet)
            text += judged.read_text()
        prefs.write_text(text)
    config = DPOConfig(
        model=ModelConfig(path=options.model, dtype="fp32"),
        data=DataConfig(train=str(prefs), max_length=256),
        loss={"name": "sigmoid", "beta": beta},
        optim=OptimConfig(lr=options.lr, schedule="cosine", warmup=options.warmup),
        batch=BatchConfig(pairs=options.n * (options.n - 1) // 2 * options.groups),
        train=TrainConfig(seed=seed),
        out=str(folder / "dpo"),
    )
    final = dpo.run(config, display=quiet)
    settings = IterateConfig(
        model=ModelConfig(path=options.model, dtype="fp32"),
        data=PromptConfig(train=str(prompts)),
        reward=options.reward,
        sample=SampleConfig(max_new_tokens=options.max_new_tokens, evaluation=options.evaluation),
        train=TrainConfig(seed=seed),
        out=str(folder),
    )
    groups = read_prompt_data(settings.data).train
    reward = open_reward(options.reward)
    result = iterate.evaluated(settings, folder / "evaluation.json", str(final), groups, reward, None)
    score, kl = result["objective/score"], result["objective/kl"]
    print(f"beta {beta:g}, seed {seed}: offline, reward {score:.3f} at a KL of {kl:.2f} nats", flush=True)
    return result


def averaged(by_seed: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Return means and standard deviations over seeds for every round."""
    result = []
    for same in zip(*by_seed, strict=True):
        scores, kls = [p["objective/score"] for p in same], [p["objective/kl"] for p in same]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in (scores, kls)]
        diversity = mean(p["diversity"] for p in same)
        result.append(
            {
                "score": mean(scores),
                "kl": mean(kls),
                "score_sd": spread[0],
                "kl_sd": spread[1],
                "diversity": diversity,
            }
        )
    return result


if __name__ == "__main__":
    main()
