"""The distribution-shift monitor of preference runs: DPO's data stand still while the policy moves.

At every evaluation the policy answers a few prompts of the data, with the same random numbers each time. Its answers
are compared with the data's responses and with the reference; nothing of the training depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from preftune.config.schema import DPOConfig, MonitorConfig
from preftune.data.order import permutation
from preftune.errors import ModelError
from preftune.lifecycle.policy import Policy
from preftune.lifecycle.task import ResponseTask
from preftune.measures.advice import advice, held_out_rose
from preftune.measures.drift import divergence, figures, likelihood
from preftune.measures.frontier import Floats
from preftune.model import load
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.logprobs import Scorer, sum_responses
from preftune.model.memory import in_parts, out_of_memory, release
from preftune.model.reference import AdapterOff, Cached, Live
from preftune.scoring import response_logps
from preftune.train.metrics import Tally, preference_metrics
from preftune.train.run import Run
from preftune.types import TokenGroup

Start = Callable[[], Live | Scorer]


@dataclass(frozen=True, slots=True)
class Watched:
    """What is looked at in every evaluation: groups of the data, and how their prompts are answered.

    `start` is how the reference is had, None where the run has it in memory.
    """

    groups: Sequence[TokenGroup]
    sampling: Sampling
    tokenizer: Any
    start: Start | None = None


def monitored(
    task: ResponseTask, config: DPOConfig, policy: Policy, visited: Sequence[TokenGroup], run: Run, in_memory: bool
) -> Watched | None:
    """Return what the monitor of a run watches, and print it; None without a monitor. Call it while the policy is at
    step 0. `in_memory`: the model has no files."""
    watched, left_out = watch(task, config, policy, visited)
    if watched is None:
        return None
    groups, sampling = watched.groups, watched.sampling
    positions, kind = load.positions(policy.model.config), "held-out" if task.held_out else "training"
    if len(groups) < 2:
        reason = f"it needs at least 2 distinct prompts, and {len(groups)} of the {kind} prompts can be used"
        if left_out:
            reason += f" ({left_out} leave no room for {sampling.max_new_tokens} tokens in {positions} positions)"
        run.display.say(f"monitor off: {reason}")
        return None
    line = f"monitor: {len(groups)} {kind} prompts, {sampling.n} x {sampling.max_new_tokens} tokens at most per prompt"
    if left_out:
        line += f"; {left_out} prompts leave no room for that in the model's {positions} positions"
    run.display.say(line)
    return watched if isinstance(task.reference, Live) else replace(watched, start=start_of(config, policy, in_memory))


def watch(
    task: ResponseTask, config: DPOConfig, policy: Policy, visited: Sequence[TokenGroup]
) -> tuple[Watched | None, int]:
    """What a monitor would look at, if there is one, and how many prompts were too long for it."""
    if config.monitor is None:
        return None, 0
    positions, seed = load.positions(policy.model.config), config.train.seed
    sampling = sampling_of(config.monitor, positions, seed)
    source = task.held_out or visited
    groups, left_out = choose(source, config.monitor.prompts, positions, sampling.max_new_tokens, seed)
    return Watched(groups, sampling, policy.tokenizer), left_out


def sampling_of(config: MonitorConfig, positions: int | None, seed: int) -> Sampling:
    """How the policy answers: as it is, at temperature 1."""
    most = config.max_new_tokens if positions is None else min(config.max_new_tokens, positions // 2)
    return Sampling(config.samples, most, seed=seed)


def choose(
    groups: Sequence[TokenGroup], wanted: int, positions: int | None, new_tokens: int, seed: int
) -> tuple[list[TokenGroup], int]:
    """`wanted` groups of different prompts, in a seeded order, and how many prompts were too long on the way."""
    chosen: list[TokenGroup] = []
    seen, left_out = set(), 0
    for index in permutation(len(groups), seed, 0):
        prompt = groups[index].prompt_ids
        if len(chosen) == wanted:
            break
        if prompt.tobytes() in seen:
            continue
        seen.add(prompt.tobytes())
        if positions and len(prompt) + new_tokens > positions:
            left_out += 1
        else:
            chosen.append(groups[index])
    return chosen, left_out


def start_of(config: DPOConfig, policy: Policy, in_memory: bool) -> Start:
    """How the reference is had where the run has none in memory: the model of reference.path, or the policy at step 0.

    It is read again from its files for the moment that it is needed. A model given in memory has none: a copy is kept.
    """
    device, dtype = policy.scorer.device, policy.model.dtype
    if config.reference.path:
        return partial(_same_as_before, config.reference.path, dtype, device, set())
    if hasattr(policy.model, "peft_config"):
        return lambda: AdapterOff.of(policy.scorer)
    if in_memory:
        kept = {name: tensor.detach().cpu().clone() for name, tensor in policy.model.state_dict().items()}

        def rebuild() -> Scorer:
            model = copy.deepcopy(policy.model).requires_grad_(False).eval()
            model.load_state_dict(kept)
            return Scorer.of(model)

        return rebuild
    path = config.model.path

    def read() -> Scorer:
        model = load.load_model(load.locate(path), dtype)  # as the policy is read
        if load.weights_hash(model) != policy.start_hash:
            raise ModelError("the model is not the one this run started from", where=path)
        return Scorer.of(model.to(device))

    return read


def _same_as_before(path: str, dtype: torch.dtype, device: torch.device, hashes: set[str]) -> Scorer:
    """The model of reference.path. Raises ModelError if it is not the one that was read the first time."""
    model = load.load_model(load.locate(path, "reference.path"), dtype)
    hashes.add(load.weights_hash(model))
    if len(hashes) > 1:
        raise ModelError("the model is not the one this run started from", where=path)
    return Scorer.of(model.to(device))


@torch.no_grad()
def drift(task: ResponseTask, watched: Watched | None, say: Callable[[str], None]) -> dict[str, float]:
    """The figures of the monitor; none without one. What does not fit in memory is left out and reported."""
    if watched is None:
        return {}
    found = _figures(task, watched, say)
    if found is None:
        release()  # out of the handler: the error held what had been allocated
        say("monitor: out of memory, so this evaluation is without it; set monitor.prompts lower, or monitor=null")
    return found or {}


def _figures(task: ResponseTask, watched: Watched, say: Callable[[str], None]) -> dict[str, float] | None:
    try:
        prompts = [group.prompt_ids.tolist() for group in watched.groups]
        drawn = sample(task.scorer.model, watched.tokenizer, prompts, watched.sampling)
        own_PM = response_logps(task.scorer, [sampled.group for sampled in drawn])
        length_PM = np.array([[len(ids) for ids in sampled.group.response_ids] for sampled in drawn], dtype=np.float64)
        data_S, data_length_S, found = of_data(task, watched)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None
    texts = [text for sampled in drawn for text in sampled.texts]
    ended = [end for sampled in drawn for end in sampled.ended]
    looks = {f"drift/{name.removeprefix('responses/')}": value for name, value in figures(texts, ended).items()}
    return {
        **likelihood(own_PM, length_PM, data_S, data_length_S),
        **distance(task, watched, drawn, own_PM, say),
        **found,
        "drift/tokens": float(length_PM.mean()),
        **looks,
    }


def of_data(task: ResponseTask, watched: Watched) -> tuple[Floats, Floats, dict[str, float]]:
    """Log-probs and tokens of the data's responses as far as samples go, and the drift metrics of these groups."""
    tally, sums, lengths = Tally(), [], []
    for whole in task.micro_batches(watched.groups):
        for _, found in in_parts(task.measure, whole, task.micro_batches):
            metrics = preference_metrics(found.policy, found.reference, found.judged, task.loss.beta)
            tally.add({name: value for name, value in metrics.items() if name.startswith("drift/")})
            own_S, length_S = beginnings(found.policy.token_N, found.policy.length_S, watched.sampling.max_new_tokens)
            label_S = found.judged.label_S
            kept_S = label_S != 0 if bool(label_S.any()) else torch.ones_like(label_S, dtype=torch.bool)
            sums.append(own_S[kept_S].double().cpu().numpy())
            lengths.append(length_S[kept_S].double().cpu().numpy())
    return np.concatenate(sums), np.concatenate(lengths), tally.means()


def beginnings(token_N: torch.Tensor, length_S: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs of the first `most` tokens of each response, summed, and how many these are."""
    first_S = length_S.cumsum(0) - length_S
    place_N = torch.arange(len(token_N), device=token_N.device) - torch.repeat_interleave(first_S, length_S)
    return sum_responses(token_N.where(place_N < most, 0.0), length_S), length_S.clamp(max=most)


def distance(
    task: ResponseTask, watched: Watched, drawn: Sequence[Sampled], own_PM: Floats, say: Callable[[str], None]
) -> dict[str, float]:
    """KL from the reference on the policy's own samples."""
    if task.at_start and isinstance(task.reference, Cached):
        return {"drift/kl": 0.0, "drift/kl_se": 0.0}
    groups = [sampled.group for sampled in drawn]
    if isinstance(task.reference, Live):
        return divergence(own_PM, response_logps(task.reference, groups))
    assert watched.start
    try:
        return divergence(own_PM, response_logps(watched.start(), groups))
    except ModelError as error:
        say(f"monitor: no KL: {error}")
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        say(
            "monitor: no KL: the reference does not fit in memory beside the policy; reference.kind=frozen plans for it"
        )
    finally:
        release()  # the model that was read for this moment
    return {}


def advise(run: Run, step: int) -> None:
    """Print advice on the evaluation of a step, each piece once per run, and note it in the manifest."""
    monitored = [line for line in run.lines() if "drift/gap" in line and line["split"] == "eval"]
    if not monitored or monitored[-1]["step"] != step:
        return
    sentences, earlier = advice(monitored[-1], monitored[0]), run.known("advice") or {}
    for subject, sentence in sentences.items():
        if subject not in earlier:
            run.display.say(f"step {step}: {sentence}")
    if sentences:
        run.note(advice={**earlier, **{name: {"step": step, "text": text} for name, text in sentences.items()}})


def advise_at_the_end(run: Run) -> None:
    """Print what to do about a held-out loss that rose, and note it in the manifest."""
    lines = [line for line in run.lines() if line["split"] == "eval" and "loss" in line]
    sentence = held_out_rose(lines)
    if sentence:
        run.display.say(sentence)
        noted = {"step": lines[-1]["step"], "text": sentence}
        run.note(advice={**(run.known("advice") or {}), "held-out loss": noted})
