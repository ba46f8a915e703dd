"""The command `preftune demo`, which runs offline in about 90 seconds on two cores.

generate reviews -> train a tokenizer and an SFT model -> sample groups of responses -> label them with the true reward
-> DPO with several beta -> sample again -> compare reward and KL with best of n and the closed-form optimum
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from preftune.chat.render import Renderer
from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, OptimConfig, SFTConfig, TrainConfig
from preftune.data.tokenize_groups import Limits, tokenize
from preftune.demo import pipeline, rlhf, world
from preftune.demo.report import write_report
from preftune.demo.results import NEXT_STEPS, DemoResults, Tuned
from preftune.errors import RunError, writing
from preftune.formats.account import Account
from preftune.formulas import implicit_reward
from preftune.measures.frontier import Floats, Point, measure
from preftune.methods import dpo, sft
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.load import load_model, locate
from preftune.model.logprobs import Scorer
from preftune.report.figures.tilt import Response
from preftune.scoring import response_logps
from preftune.train.display import Display, peak_bytes
from preftune.types import PreferenceGroup

MARK = "preftune-demo.json"


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of the demo."""

    reviews: int
    samples: int
    betas: tuple[float, ...]
    evaluation: int
    yardstick: int
    width: int = 128
    layers: int = 3
    ppo: rlhf.PPOScale = field(default_factory=rlhf.PPOScale)


TILT_SAMPLES, TILT_RESPONSES = 1000, 12
GROUP_SIZE = 8  # responses that are compared with each other
FULL = Scale(reviews=8000, samples=24, betas=(1.0, 0.3, 0.1), evaluation=8, yardstick=96)
FAST = Scale(
    reviews=3500, samples=8, betas=(0.1,), evaluation=4, yardstick=24, width=64, layers=2, ppo=rlhf.PPOScale((0.1,), 15)
)


def run(out: Path, *, fast: bool = False, with_ppo: bool = False, console: Console | None = None) -> DemoResults:
    """Run the demo in the folder `out`, print the results and return them."""
    began = time.perf_counter()
    console = console or Console(
        highlight=False, emoji=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120
    )
    scale = FAST if fast else FULL
    display = Display(console=console if console.is_terminal else None, quiet=not console.is_terminal)
    _make_empty(out)
    with _own_cache(out):
        prompts, tokenizer, reference_path, reference, sft_nats, entropy = train_reference(out, scale, display, console)
        console.print(f"[3/5] sampling {scale.samples} reviews for each of {len(prompts)} prompts, and labelling pairs")
        ids = [tokenizer(p)["input_ids"] for p in prompts]
        drawn = sample(reference, tokenizer, ids, Sampling(scale.samples, seed=1))
        write_groups(out / "preferences.jsonl", prompts, drawn)
        of_reference = Scorer.of(reference)
        unseen = sample(reference, tokenizer, ids, Sampling(scale.evaluation, seed=3))

        console.print(f"[4/5] DPO with beta {', '.join(f'{b:g}' for b in scale.betas)}")
        tuned, policies, dpo_s = tune(out, scale, display, console, tokenizer, ids, of_reference, unseen)

        def measure_folder(name: str, folder: Path) -> Point:
            policy = Scorer.of(load_model(locate(str(folder)), torch.float32))
            fresh = sample(policy.model, tokenizer, ids, Sampling(scale.evaluation, seed=2))
            return point_of(name, policy, of_reference, fresh)

        ppo_points, compared = [], pipeline.recorded()
        if with_ppo:
            console.print("[4/5] for comparison: a reward model on the same pairs, then PPO")
            rl = rlhf.points(out, reference_path, scale.ppo, measure_folder, display, console.print)
            ppo_points, reached = rl.points, (tuned[-1].point.reward, rl.points[-1].reward)
            size = sum(p.numel() * p.element_size() for p in reference.parameters())
            compared = pipeline.measured((dpo_s, rl.reward_model_s, rl.ppo_s), rl.folder, size, reached)

        console.print("[5/5] comparing reward and KL with the optimum")
        yardstick = sample(reference, tokenizer, ids, Sampling(scale.yardstick, seed=11))
        tilted = prompts[len(prompts) // 2]
        results = DemoResults(
            prompts=prompts,
            reward_PM=rewards(yardstick),
            yardstick_texts=[s.texts for s in yardstick],
            tilt_prompt=tilted,
            tilt_responses=tilt_responses(tilted, tokenizer, of_reference, policies),
            tilt_drawn=TILT_SAMPLES,
            pipeline=compared,
            start=measure("SFT", np.zeros((len(unseen), scale.evaluation)), rewards(unseen)),
            tuned=tuned,
            sft_nats=sft_nats,
            entropy=entropy,
            before=[s.texts for s in unseen],
            ppo=ppo_points,
        )
        write_report(out, results)
    show(console, results)
    seconds = time.perf_counter() - began
    console.print(f"Next, with your own data:  {',  '.join(NEXT_STEPS)}")
    console.print(
        f"Finished in {seconds:.0f} s, peak memory {peak_bytes() / 1e9:.2f} GB. Report: {out / 'report.html'}"
    )
    return results


def tune(
    out: Path,
    scale: Scale,
    display: Display,
    console: Console,
    tokenizer: Any,
    ids: Sequence[Sequence[int]],
    reference: Scorer,
    unseen: Sequence[Sampled],
) -> tuple[list[Tuned], dict[float, Scorer], float]:
    """Train with each beta. Return the measured policies, their models, and the seconds of the last training."""
    tuned: list[Tuned] = []
    policies: dict[float, Scorer] = {}
    seconds = 0.0
    for beta in scale.betas:
        began = time.perf_counter()
        folder = train_dpo(out, beta, display)
        seconds = time.perf_counter() - began
        policies[beta] = policy = Scorer.of(load_model(locate(str(folder)), torch.float32))
        fresh = sample(policy.model, tokenizer, ids, Sampling(scale.evaluation, seed=2))
        tuned.append(measure_policy(beta, out, policy, reference, fresh, unseen))
        console.print(f"      {tuned[-1].line()}")
    return tuned, policies, seconds


def train_reference(
    out: Path, scale: Scale, display: Display, console: Console
) -> tuple[list[str], Any, Path, Any, float, float]:
    """Generate reviews and train the SFT model on them.

    Return the prompts, the tokenizer, the folder of the model and the model, and the nats per new review under the
    model and under the grammar.
    """
    console.print(f"[1/5] generating {scale.reviews} reviews with a small grammar (offline; files in {out}/)")
    rng = random.Random(0)
    prompts = world.prompts()
    reviews = [world.write(rng.choice(prompts), rng) for _ in range(scale.reviews)]
    for review in reviews[:2]:
        console.print(f"      {review.prompt}{review.text}   true reward {world.true_reward(review.text):+.2f}")

    console.print("[2/5] SFT: training a tokenizer and a small Llama model from scratch on the reviews")
    tokenizer = make_tokenizer([r.prompt + r.text for r in reviews])
    model = make_model(len(tokenizer), scale)
    reference_path = train_sft(out, reviews, model, tokenizer, display)
    reference = load_model(locate(str(reference_path)), torch.float32)
    sft_nats, entropy = compare_with_grammar(Scorer.of(reference), tokenizer, prompts)
    console.print(f"      held-out loss {sft_nats:.2f} nats per review (best possible: {entropy:.2f})")
    return prompts, tokenizer, reference_path, reference, sft_nats, entropy


def tilt_responses(prompt: str, tokenizer: Any, reference: Scorer, policies: Mapping[float, Scorer]) -> list[Response]:
    """Return up to TILT_RESPONSES responses to a prompt, the likeliest sample for each reward, with their log-probs.

    The likeliest samples alone are all facts without a reward, for which the optimum equals the reference.
    """
    [drawn] = sample(reference.model, tokenizer, [tokenizer(prompt)["input_ids"]], Sampling(TILT_SAMPLES, seed=7))
    logp = response_logps(reference, [drawn.group])[0]
    likeliest: dict[float, int] = {}
    for index, (text, ended) in enumerate(zip(drawn.texts, drawn.ended, strict=True)):
        reward = round(world.true_reward(text), 6)
        if ended and text.strip() and (reward not in likeliest or logp[index] > logp[likeliest[reward]]):
            likeliest[reward] = index
    chosen = sorted(likeliest.values(), key=lambda index: -logp[index])[:TILT_RESPONSES]
    few = replace(drawn.group, response_ids=tuple(drawn.group.response_ids[index] for index in chosen))
    tuned = {beta: response_logps(policy, [few])[0] for beta, policy in policies.items()}
    return [
        Response(
            drawn.texts[index].strip(),
            world.true_reward(drawn.texts[index]),
            float(logp[index]),
            {beta: float(values[place]) for beta, values in tuned.items()},
        )
        for place, index in enumerate(chosen)
    ]


def make_tokenizer(texts: Sequence[str]) -> Any:
    """Train a byte-level BPE tokenizer with BOS and EOS on `texts`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def make_model(vocabulary: int, scale: Scale) -> Any:
    """Return a Llama model with random weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=scale.width,
        intermediate_size=scale.width * 8 // 3 // 16 * 16,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def train_sft(out: Path, reviews: Sequence[world.Review], model: Any, tokenizer: Any, display: Display) -> Path:
    _write(out / "reviews.jsonl", [{"prompt": r.prompt, "completion": r.text} for r in reviews])
    config = SFTConfig(
        model=ModelConfig(path="demo", dtype="fp32"),
        data=DataConfig(train=str(out / "reviews.jsonl"), max_length=128),
        optim=OptimConfig(lr=4e-3, schedule="cosine", warmup=0.05),
        batch=BatchConfig(pairs=32),
        out=str(out / "sft"),
    )
    return sft.run(config, model=model, tokenizer=tokenizer, display=display)


def train_dpo(out: Path, beta: float, display: Display) -> Path:
    config = DPOConfig(
        model=ModelConfig(path=str(out / "sft" / "final"), dtype="fp32"),
        data=DataConfig(train=str(out / "preferences.jsonl"), eval=0.1, max_length=128),
        loss={"name": "sigmoid", "beta": beta},
        optim=OptimConfig(lr=3e-4, schedule="cosine"),
        batch=BatchConfig(pairs=112),
        train=TrainConfig(epochs=2, eval_every=34),
        report_pairs=1024,
        out=str(out / f"dpo-beta-{beta:g}"),
    )
    return dpo.run(config, display=display)


def write_groups(path: Path, prompts: Sequence[str], drawn: Sequence[Sampled]) -> None:
    """Write groups of GROUP_SIZE responses with all pairs, labelled with their Bradley-Terry probability."""
    rows = []
    for prompt, sampled in zip(prompts, drawn, strict=True):
        for begin in range(0, len(sampled.texts), GROUP_SIZE):
            texts = sampled.texts[begin : begin + GROUP_SIZE]
            reward = [world.true_reward(text) for text in texts]
            order = sorted(range(len(texts)), key=lambda i: -reward[i])
            judgements = [
                {"better": b, "worse": w, "probability": 1 / (1 + math.exp(reward[w] - reward[b]))}
                for b, w in combinations(order, 2)
                if reward[b] > reward[w]
            ]
            if judgements:
                ended = list(sampled.ended[begin : begin + GROUP_SIZE])
                rows.append({"prompt": prompt, "responses": texts, "judgements": judgements, "ended": ended})
    _write(path, rows)


def measure_policy(
    beta: float, out: Path, policy: Scorer, reference: Scorer, fresh: Sequence[Sampled], unseen: Sequence[Sampled]
) -> Tuned:
    """Measure reward and KL on own samples, and implicit and true reward on new samples of the reference."""
    new = [s.group for s in unseen]
    implicit = implicit_reward(response_logps(policy, new), response_logps(reference, new), beta)
    lines = [json.loads(line) for line in (out / f"dpo-beta-{beta:g}" / "metrics.jsonl").read_text().splitlines()]
    point = point_of(f"DPO, beta {beta:g}", policy, reference, fresh)
    return Tuned(beta, point, implicit, rewards(unseen), lines, [s.texts for s in fresh])


def point_of(name: str, policy: Scorer, reference: Scorer, fresh: Sequence[Sampled]) -> Point:
    """Measure true reward and sequence KL on a policy's own samples."""
    groups = [s.group for s in fresh]
    kl = response_logps(policy, groups) - response_logps(reference, groups)
    return measure(name, kl, rewards(fresh))


def rewards(drawn: Sequence[Sampled]) -> Floats:
    return np.array([[world.true_reward(text) for text in s.texts] for s in drawn])


def show(console: Console, results: DemoResults) -> None:
    """Print curves, samples before and after DPO, and the expected and measured values."""
    for tuned in results.tuned:
        losses, margins = tuned.curve("loss"), tuned.curve("rewards/margins")
        console.print(
            f"beta {tuned.beta:<5g} loss {sparkline(losses)} {losses[0]:.3f} to {losses[-1]:.3f}"
            f"   margin {sparkline(margins)} {margins[0]:.3f} to {margins[-1]:.3f}"
        )
    console.print()
    samples = Table(title="samples before and after DPO (true reward)", title_justify="left", box=None)
    for header in ("prompt", "SFT", results.strongest.point.name):
        samples.add_column(header, overflow="fold")
    for row in results.samples(3):
        samples.add_row(*row)
    console.print(samples)
    console.print()
    table = Table(title="expected and measured", title_justify="left", box=None)
    for header in ("", "expected", "measured", ""):
        table.add_column(header)
    for check in results.checks():
        table.add_row(check.name, check.expected, check.measured, "ok" if check.ok else "NOT AS EXPECTED")
    console.print(table)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Return a curve as one line of text."""
    marks = "▁▂▃▄▅▆▇█"
    chunks = np.array_split(np.asarray(values, dtype=float), min(width, len(values)))
    means = np.array([chunk.mean() for chunk in chunks])
    spread = float(means.max() - means.min()) or 1.0
    return "".join(marks[int((m - means.min()) / spread * (len(marks) - 1))] for m in means)


def compare_with_grammar(model: Scorer, tokenizer: Any, prompts: Sequence[str]) -> tuple[float, float]:
    """Return the nats per new review under the model, and under the grammar, which no model can beat."""
    rng = random.Random(1)
    reviews = [world.write(rng.choice(prompts), rng) for _ in range(400)]
    groups = [PreferenceGroup(r.prompt, (r.text,)) for r in reviews]
    tokens = tokenize(groups, Renderer.of(tokenizer), Limits(128), Account("new reviews"))
    return -float(response_logps(model, tokens).mean()), -float(np.mean([r.logp for r in reviews]))


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _make_empty(out: Path) -> None:
    """Create the folder, or empty it if it holds an earlier demo. Raises RunError for other contents."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).is_file():
            fix = "choose a different --out"
            raise RunError("the folder is not empty and not from a demo", where=str(out), fix=fix)
        shutil.rmtree(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).write_text("{}\n")


@contextmanager
def _own_cache(out: Path) -> Iterator[None]:
    """Use a cache folder in `out`, so that the demo writes nothing elsewhere."""
    previous = os.environ.get("PREFTUNE_CACHE")
    os.environ["PREFTUNE_CACHE"] = str(out / "cache")
    try:
        yield
    finally:
        if previous is None:
            del os.environ["PREFTUNE_CACHE"]
        else:
            os.environ["PREFTUNE_CACHE"] = previous
