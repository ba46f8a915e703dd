"""A scalar reward model distilled from an implicit reward: how well the two agree on held-out prompts.

    python benchmarks/distil.py --policy runs/small-hh-dpo/final --reference runs/small-hh-sft/final \\
        --data hh_harmless_test.jsonl.gz --out runs/distil --record

The responses of the training prompts are labelled with the implicit reward (`preftune pairs --soft --reward
implicit:POLICY,REFERENCE,BETA`); the labels of the data are not used. `preftune reward` trains on these labels,
starting from the reference. Then both rewards score the held-out pairs. Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from record import record
from scipy.stats import spearmanr

from preftune.config.schema import BatchConfig, DataConfig, ModelConfig, OptimConfig, RewardConfig, TrainConfig
from preftune.data.convert import group_rows
from preftune.data.read_groups import read_groups
from preftune.data.select import SelectionOptions
from preftune.data.split import hold_out
from preftune.methods import reward
from preftune.rewards.open import open_reward
from preftune.train.display import Display
from preftune.types import PreferenceGroup, content
from preftune.workflows import pairs, score

QUIET = Display(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--policy", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--data", required=True, help="preference pairs")
    parser.add_argument("--out", type=Path, default=Path("runs/distil"))
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--held-out", type=float, default=0.2)
    parser.add_argument(
        "--characters", type=int, default=700, help="maximum length of a pair, prompt and longer response"
    )
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    groups = [group for group in read_groups(options.data)[0] if longest(group) <= options.characters]
    train, held_out = hold_out(groups, options.held_out)
    for name, part in (("responses", train), ("held-out", held_out)):
        rows = [json.dumps(row) + "\n" for row in group_rows(part)]
        (options.out / f"{name}.jsonl").write_text("".join(rows))
    model = distilled(options)
    data = DataConfig(train=str(options.out / "held-out.jsonl"))
    implicit = margins(score.ScoreOptions(options.policy, options.reference, data, options.beta), options)
    scalar = margins(score.RewardScoreOptions(str(model), data), options)
    figures = {
        "pairs": [len(train), len(held_out)],
        "same_sign": float(np.mean(np.sign(implicit) == np.sign(scalar))),
        "pearson": float(np.corrcoef(implicit, scalar)[0, 1]),
        "spearman": float(spearmanr(implicit, scalar).statistic),
        "spread": [float(implicit.std()), float(scalar.std())],
        "accuracy_implicit": float(np.mean(implicit > 0)),
        "accuracy_distilled": float(np.mean(scalar > 0)),
    }
    print(json.dumps(figures, indent=1))
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        record("distilled reward", figures, settings | {"data": Path(options.data).name})


def longest(group: PreferenceGroup) -> int:
    """Return the number of characters of the prompt with the longest response."""
    return len(content(group.prompt)) + max(len(content(response)) for response in group.responses)


def distilled(options: argparse.Namespace) -> Path:
    """Label the responses and train the reward model. Return its folder."""
    labelled = options.out / "labelled.jsonl"
    if not labelled.is_file():
        implicit = open_reward(f"implicit:{options.policy},{options.reference},{options.beta}")
        pairs.run(str(options.out / "responses.jsonl"), labelled, SelectionOptions("all", soft=True), implicit, QUIET)
    config = RewardConfig(
        model=ModelConfig(path=options.reference, dtype="fp32"),
        data=DataConfig(train=str(labelled), max_length=options.max_length),
        optim=OptimConfig(lr=options.lr),
        batch=BatchConfig(pairs=32),
        train=TrainConfig(epochs=options.epochs),
        normalise=False,
        out=str(options.out / "reward"),
    )
    return reward.run(config, display=QUIET)


def margins(score_options: Any, options: argparse.Namespace) -> Any:
    """Return the held-out margins in the order of the data."""
    out = options.out / f"{type(score_options).__name__.lower()}.jsonl"
    lines = score.run(score_options, out, QUIET).read_text().splitlines()
    return np.array([json.loads(line)["margin"] for line in lines])


if __name__ == "__main__":
    main()
