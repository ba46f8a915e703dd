"""preftune demo: from nothing to a frontier, offline, in about a minute on two cores.

write reviews -> tokenizer and SFT from scratch -> sample groups -> judge them by the true reward
-> DPO at several beta -> sample again -> reward against KL, beside best-of-n and the closed-form optimum
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from preftune.data.groups import Limits, tokenize
from preftune.demo import rlhf, world
from preftune.demo.findings import Finding, Findings, Tuned, write_report
from preftune.errors import RunError, writing
from preftune.formats.account import Account
from preftune.measures.frontier import Floats, Point, measure, response_logps
from preftune.methods import dpo, sft
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.load import load_model, locate
from preftune.model.logprobs import Scorer
from preftune.train.display import Display
from preftune.types import PreferenceGroup

MARK = "preftune-demo.json"


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything. `group` responses are judged against each other."""

    reviews: int
    samples: int
    group: int
    betas: tuple[float, ...]
    epochs: int
    evaluation: int
    width: int = 128
    layers: int = 3
    ppo: rlhf.Amount = field(default_factory=rlhf.Amount)


FULL = Scale(reviews=8000, samples=24, group=8, betas=(1.0, 0.3, 0.1), epochs=2, evaluation=8)
FAST = Scale(
    reviews=3500,
    samples=8,
    group=8,
    betas=(0.1,),
    epochs=2,
    evaluation=4,
    width=64,
    layers=2,
    ppo=rlhf.Amount((0.1,), 15),
)


def run(out: Path, *, fast: bool = False, with_ppo: bool = False, console: Console | None = None) -> Findings:
    """Do everything below `out`, show it, and return the numbers of the final table."""
    began = time.perf_counter()
    console = console or Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    scale = FAST if fast else FULL
    display = Display(console=console if console.is_terminal else None, quiet=not console.is_terminal)
    _fresh(out)
    with _own_cache(out):
        console.print(
            f"[1/5] writing {scale.reviews} reviews with a small grammar (no network is used; files in {out}/)"
        )
        rng = random.Random(0)
        prompts = world.prompts()
        reviews = [world.write(rng.choice(prompts), rng) for _ in range(scale.reviews)]
        for review in reviews[:2]:
            console.print(f"      {review.prompt}{review.text}   true reward {world.true_reward(review.text):+.2f}")

        console.print("[2/5] SFT: a tokenizer and a small Llama from scratch learn to write reviews")
        tokenizer = make_tokenizer([r.prompt + r.text for r in reviews])
        model = make_model(len(tokenizer), scale)
        reference_path = train_sft(out, reviews, model, tokenizer, display)
        reference = load_model(locate(str(reference_path)), torch.float32)
        sft_nats, entropy = compare_with_grammar(Scorer.of(reference), tokenizer, prompts)
        console.print(f"      {sft_nats:.2f} nats for a new review; the grammar that wrote it needs {entropy:.2f}")

        console.print(
            f"[3/5] sampling {scale.samples} reviews for each of {len(prompts)} prompts, judged by the true reward"
        )
        ids = [tokenizer(p)["input_ids"] for p in prompts]
        drawn = sample(reference, tokenizer, ids, Sampling(scale.samples, seed=1))
        write_groups(out / "preferences.jsonl", prompts, drawn, scale.group)
        of_reference = Scorer.of(reference)
        unseen = sample(reference, tokenizer, ids, Sampling(scale.evaluation, seed=3))

        console.print(f"[4/5] DPO at beta = {', '.join(f'{b:g}' for b in scale.betas)}")
        tuned = []
        for beta in scale.betas:
            folder = train_dpo(out, beta, scale, display)
            policy = Scorer.of(load_model(locate(str(folder)), torch.float32))
            fresh = sample(policy.model, tokenizer, ids, Sampling(scale.evaluation, seed=2))
            tuned.append(judge_policy(beta, out, policy, of_reference, fresh, unseen))
            console.print(f"      {tuned[-1].line()}")

        def judged(name: str, folder: Path) -> Point:
            policy = Scorer.of(load_model(locate(str(folder)), torch.float32))
            fresh = sample(policy.model, tokenizer, ids, Sampling(scale.evaluation, seed=2))
            return point_of(name, policy, of_reference, fresh)

        with_reward_model = []
        if with_ppo:
            console.print("[4/5] and the pipeline that DPO replaces: a reward model from the same judgements, then PPO")
            with_reward_model = rlhf.points(out, reference_path, scale.ppo, judged, display, console.print)

        console.print("[5/5] the frontier")
        start = measure("SFT", np.zeros((len(unseen), scale.evaluation)), rewards(unseen))
        before = [s.texts for s in unseen]
        findings = Findings(prompts, rewards(drawn), start, tuned, sft_nats, entropy, before, with_reward_model)
        write_report(out, findings)
    show(console, findings)
    spent, peak = time.perf_counter() - began, peak_bytes()
    console.print(f"{spent:.0f} s, {peak / 1e9:.2f} GB at most. Pictures and samples: {out / 'report.html'}")
    console.print("Your own data next:  preftune data check prefs.jsonl   then   preftune dpo configs/dpo.yaml")
    return findings


def peak_bytes() -> int:
    """Return the peak memory of this process; 0 on Windows, where Python has no `resource` module."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer with BOS and EOS, fitted to `texts`."""
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
    """A Llama with random weights."""
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
    rows = [{"prompt": r.prompt, "completion": r.text} for r in reviews]
    _write(out / "reviews.jsonl", rows)
    config = SFTConfig(
        model=ModelConfig(path="demo", dtype="fp32"),
        data=DataConfig(train=str(out / "reviews.jsonl"), max_length=128),
        optim=OptimConfig(lr=4e-3, schedule="cosine", warmup=0.05),
        batch=BatchConfig(pairs=32),
        out=str(out / "sft"),
    )
    return sft.run(config, model=model, tokenizer=tokenizer, display=display)


def train_dpo(out: Path, beta: float, scale: Scale, display: Display) -> Path:
    config = DPOConfig(
        model=ModelConfig(path=str(out / "sft" / "final"), dtype="fp32"),
        data=DataConfig(train=str(out / "preferences.jsonl"), eval=0.1, max_length=128),
        loss={"name": "sigmoid", "beta": beta},
        optim=OptimConfig(lr=3e-4, schedule="cosine"),
        batch=BatchConfig(pairs=112),
        train=TrainConfig(epochs=scale.epochs),
        out=str(out / f"dpo-beta-{beta:g}"),
    )
    return dpo.run(config, display=display)


def write_groups(path: Path, prompts: Sequence[str], drawn: Sequence[Sampled], size: int) -> None:
    """Groups of `size` responses with all their judgements; the soft label is the Bradley-Terry probability."""
    rows = []
    for prompt, sampled in zip(prompts, drawn, strict=True):
        for begin in range(0, len(sampled.texts), size):
            texts = sampled.texts[begin : begin + size]
            reward = [world.true_reward(text) for text in texts]
            order = sorted(range(len(texts)), key=lambda i: -reward[i])
            judgements = [
                {"better": b, "worse": w, "probability": 1 / (1 + math.exp(reward[w] - reward[b]))}
                for b, w in combinations(order, 2)
                if reward[b] > reward[w]
            ]
            if judgements:
                ended = list(sampled.ended[begin : begin + size])
                rows.append({"prompt": prompt, "responses": texts, "judgements": judgements, "ended": ended})
    _write(path, rows)


def judge_policy(
    beta: float,
    out: Path,
    policy: Scorer,
    reference: Scorer,
    fresh: Sequence[Sampled],
    unseen: Sequence[Sampled],
) -> Tuned:
    """Reward and KL on the policy's own samples; implicit against true reward on new samples of the reference."""
    new = [s.group for s in unseen]
    implicit = beta * (response_logps(policy, new) - response_logps(reference, new))
    lines = [json.loads(line) for line in (out / f"dpo-beta-{beta:g}" / "metrics.jsonl").read_text().splitlines()]
    point = point_of(f"DPO, beta {beta:g}", policy, reference, fresh)
    return Tuned(beta, point, implicit, rewards(unseen), lines, [s.texts for s in fresh])


def point_of(name: str, policy: Scorer, reference: Scorer, fresh: Sequence[Sampled]) -> Point:
    """True reward and sequence KL of a policy's own samples."""
    groups = [s.group for s in fresh]
    kl = response_logps(policy, groups) - response_logps(reference, groups)
    return measure(name, kl, rewards(fresh))


def rewards(drawn: Sequence[Sampled]) -> Floats:
    return np.array([[world.true_reward(text) for text in s.texts] for s in drawn])


def show(console: Console, findings: Findings) -> None:
    """Curves, samples before and after, and what was expected against what came out."""
    for tuned in findings.tuned:
        losses, margins = tuned.curve("loss"), tuned.curve("rewards/margins")
        console.print(
            f"beta {tuned.beta:<5g} loss {sparkline(losses)} {losses[0]:.3f} to {losses[-1]:.3f}"
            f"   margin {sparkline(margins)} {margins[0]:.3f} to {margins[-1]:.3f}"
        )
    console.print()
    samples = Table(title="samples before and after (true reward)", title_justify="left", box=None)
    for head in ("prompt", "SFT", findings.strongest.point.name):
        samples.add_column(head, overflow="fold")
    for prompt, before, after in findings.samples(3):
        samples.add_row(prompt, *(f"{text.strip()} ({world.true_reward(text):+.2f})" for text in (before, after)))
    console.print(samples)
    console.print()
    table = Table(title="expected and found", title_justify="left", box=None)
    for head in ("", "expected", "found", ""):
        table.add_column(head)
    for finding in findings.table():
        table.add_row(finding.what, finding.expected, finding.found, "ok" if finding.ok else "NOT AS EXPECTED")
    console.print(table)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """A curve in one line of text."""
    marks = "▁▂▃▄▅▆▇█"
    chunks = np.array_split(np.asarray(values, dtype=float), min(width, len(values)))
    means = np.array([chunk.mean() for chunk in chunks])
    spread = float(means.max() - means.min()) or 1.0
    return "".join(marks[int((m - means.min()) / spread * (len(marks) - 1))] for m in means)


def compare_with_grammar(model: Scorer, tokenizer: Any, prompts: Sequence[str]) -> tuple[float, float]:
    """Nats of new reviews under the model and under the grammar that writes them, which no model can beat."""
    rng = random.Random(1)
    reviews = [world.write(rng.choice(prompts), rng) for _ in range(400)]
    groups = [PreferenceGroup(r.prompt, (r.text,)) for r in reviews]
    tokens = tokenize(groups, Renderer.of(tokenizer), Limits(128), Account("new reviews"))
    return -float(response_logps(model, tokens).mean()), -float(np.mean([r.logp for r in reviews]))


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _fresh(out: Path) -> None:
    """An empty folder; what an earlier demo left is removed, anything else is not touched."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise RunError("the folder is not empty and holds no demo", where=str(out), fix="choose another --out")
        shutil.rmtree(out)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).write_text("{}\n")


@contextmanager
def _own_cache(out: Path) -> Iterator[None]:
    """The demo leaves nothing outside its folder."""
    before = os.environ.get("PREFTUNE_CACHE")
    os.environ["PREFTUNE_CACHE"] = str(out / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ["PREFTUNE_CACHE"]
        else:
            os.environ["PREFTUNE_CACHE"] = before


__all__ = ["FAST", "FULL", "Finding", "run"]
