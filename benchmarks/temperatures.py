"""Win rates over sampling temperatures: SFT, DPO, PPO and best of n on the same prompts, with two control judges.

    python benchmarks/temperatures.py --model stories260k --runs runs/comparison --record

The policies are those of `benchmarks/comparison.py`, one of each kind per seed. The prompts use names that no policy
was trained on. At every temperature, the responses are compared with the same ones: for each prompt, the better one
of two samples of the model at temperature 1. The judges are VADER, which is the true reward here, and two controls:
the longer text and a random choice. Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from record import record
from sentiment import NEW_TOKENS, TEMPLATES

from preftune.config.schema import DataConfig
from preftune.data.select import SelectionOptions
from preftune.files import write_rows
from preftune.model.generate import Sampling
from preftune.rewards.open import open_reward
from preftune.train.display import Display
from preftune.workflows import pairs, winrate
from preftune.workflows import sample as samples
from preftune.workflows.sample import SampleOptions
from preftune.workflows.winrate import WinRateOptions

OTHERS = [
    "Rose", "John", "Emma", "Jake", "Kim", "Bob", "Ann", "Dan", "Sue", "Joe", "Kate", "Nick", "Jane", "Bill", "Mary",
    "Fred", "Ruby", "Sean", "Tina", "Paul", "Nora", "Mark", "Lola", "Luke", "Ivy", "Eric", "Dora", "Carl", "Beth",
    "Alan", "Gus", "Hope", "Ian", "Joy", "Kurt", "Lena", "Mike", "Nell", "Otto", "Pam",
]  # fmt: skip
QUIET = Display(quiet=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", required=True, help="the model from which the policies were trained")
    parser.add_argument("--runs", type=Path, required=True, help="output folder of benchmarks/comparison.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--policies", nargs="+", default=["preferred-ft", "dpo-0.2", "dpo-0.1", "ppo-0.1"])
    parser.add_argument("--n", type=int, default=16, help="n of best of n, selected by the trained reward model")
    parser.add_argument("--reward", default="vader", help="the true reward")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0])
    parser.add_argument("--out", type=Path, default=Path("runs/temperatures"))
    parser.add_argument("--record", action="store_true", help="append a row to benchmarks/results.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = comparison_data(options)
    rates: dict[str, dict[str, Any]] = {}
    for judge in (options.reward, "length", "random"):
        by_seed = [rates_of_seed(options, data, judge, seed) for seed in options.seeds]
        rates[judge] = {name: averaged([seed[name] for seed in by_seed]) for name in by_seed[0]}
        for name, by_temperature in rates[judge].items():
            cells = [f"{t}: {r['rate']:.3f} ({r['rate_sd']:.3f})" for t, r in by_temperature.items()]
            print(f"{judge:8}{name:20}" + "  ".join(cells))
    if options.record:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if k != "record"}
        record("win rate over temperatures", rates, settings | {"model": Path(options.model).name})


def comparison_data(options: argparse.Namespace) -> Path:
    """Write pairs of the model's samples, of which the better one is chosen. Return the file."""
    out: Path = options.out
    prompts, chosen = out / "prompts.jsonl", out / "pairs.jsonl"
    if not chosen.is_file():
        write_rows(prompts, ({"prompt": template.format(name)} for template in TEMPLATES for name in OTHERS))
        data, sampling = DataConfig(train=str(prompts)), Sampling(2, NEW_TOKENS, seed=99)
        sampling_options = SampleOptions(options.model, data, sampling, dtype="fp32")
        sampled = samples.run(sampling_options, options.out / "samples.jsonl", QUIET)
        pairs.run(str(sampled), chosen, SelectionOptions("best-worst"), open_reward(options.reward), QUIET)
    return chosen


def rates_of_seed(options: argparse.Namespace, data: Path, judge: str, seed: int) -> dict[str, Any]:
    """Return the win rates of the policies of one seed by short name and temperature."""
    folder = options.runs / f"seed-{seed}"
    policies = {"the model": options.model}
    policies |= {name: str(folder / name / "final") for name in options.policies}
    policies[f"best of {options.n}"] = f"best:{options.n},{options.model},{folder / 'reward-model' / 'final'}"
    win_rate_options = WinRateOptions(
        tuple(policies.values()),
        DataConfig(train=str(data)),
        judge,
        temperatures=tuple(options.temperatures),
        max_new_tokens=NEW_TOKENS,
        seed=seed,
        dtype="fp32",
    )
    rates = winrate.run(win_rate_options, options.out / f"seed-{seed}", QUIET)
    print(f"{judge}, seed {seed}", flush=True)
    return {name: rates[policy] for name, policy in policies.items()}


def averaged(by_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, the standard deviation of the win rate, and the mean half-width of its interval."""
    result = {}
    for temperature in by_seed[0]:
        rates = [seed[temperature] for seed in by_seed]
        result[temperature] = {
            "rate": mean(r.rate for r in rates),
            "rate_sd": stdev(r.rate for r in rates) if len(rates) > 1 else 0.0,
            "half_interval": mean((r.high - r.low) / 2 for r in rates),
            "length_adjusted": mean(r.length_adjusted for r in rates),
            "words": mean(r.words for r in rates),
            "other_words": mean(r.other_words for r in rates),
            "prompts": rates[0].wins + rates[0].ties + rates[0].losses,
        }
    return result


if __name__ == "__main__":
    main()
