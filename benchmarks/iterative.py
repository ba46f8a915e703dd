"""Compare iterative DPO with offline DPO on the same number of judgements: reward and KL after every round.

    python benchmarks/iterative.py --model stories260k --out runs/iterative --record

Every round samples `--n` responses per prompt from the current policy, judges all pairs by the true reward, and trains
one epoch with the first model as the reference. Offline DPO trains once on rounds * n responses of the first model, in
groups of n, at the same betas and at `--offline-betas`, which gives a curve of reward against KL. With --offline-model,
it trains on the responses of another model, as with most published data. Rerun the same command to resume. Different
seeds can run at the same time in the same folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import record
from sentiment import NAMES, TEMPLATES

from preftune.chat.open import ChatOptions
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
    parser.add_argument("--offline-model", help="model that writes the responses for offline DPO (default: --model)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--n", type=int, default=8, help="responses per prompt and round")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--lr-decay", type=float, default=1.0, help="factor on the learning rate from round to round")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of a round's steps")
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
    results = {}
    for beta in options.betas:
        curves = [iterated(options, prompts, beta, seed) for seed in options.seeds]
        results[f"iterative, beta {beta:g}"] = averaged(curves)
    for beta in (*options.offline_betas, *options.betas):
        results[f"offline, beta {beta:g}"] = averaged(
            [[offline(options, prompts, beta, seed)] for seed in options.seeds]
        )
    for name, curve in results.items():
        print(name, "  ".join(f"{p['score']:.3f} at {p['kl']:.2f}" for p in curve))
    (options.out / "summary.json").write_text(json.dumps(results, indent=1))
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        claim = "dpo on another model's responses" if options.offline_model else "iterative dpo"
        record(claim, results, settings | {"model": Path(options.model).name})


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
    """Run offline DPO on as many judgements, in groups of n, and evaluate it."""
    folder = options.out / f"offline-beta-{beta:g}-seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    prefs = options.out / f"offline-seed-{seed}.jsonl"
    quiet = Display(quiet=True)
    if not prefs.is_file():
        text = ""
        for part in range(options.rounds):
            sampling = Sampling(options.n, options.max_new_tokens, seed=seed * 1000 + part)
            drawn = options.out / f"offline-seed-{seed}-{part}.samples.jsonl"
            samples.run(
                SampleOptions(options.offline_model or options.model, str(prompts), sampling, dtype="fp32"),
                drawn,
                quiet,
            )
            chosen = drawn.with_suffix(".prefs.jsonl")
            pairs.run(str(drawn), chosen, SelectionOptions("all", soft=True), open_reward(options.reward), quiet)
            text += chosen.read_text()
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
    eval_prompts = read_prompt_data(settings.data).train
    reward = open_reward(options.reward)
    scores = iterate.evaluated(settings, folder / "evaluation.json", str(final), eval_prompts, reward, ChatOptions())
    print(
        f"beta {beta:g}, seed {seed}: offline {scores['objective/score']:.3f} at {scores['objective/kl']:.2f}",
        flush=True,
    )
    return scores


def averaged(curves: list[list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Return the mean and standard deviation over seeds for every round."""
    result = []
    for same in zip(*curves, strict=True):
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
