"""The distribution-shift monitor of preference runs: the data are fixed while the policy changes.

At every evaluation the policy samples responses to a few prompts of the data, with the same random numbers each time.
They are compared with the responses in the data and with the reference. The monitor does not affect the training.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from preftune.config.schema import DPOConfig
from preftune.data.steps import order
from preftune.errors import ModelError
from preftune.lifecycle.distribute import split
from preftune.lifecycle.policy import Policy
from preftune.lifecycle.run_samples import save_data_responses, save_samples
from preftune.lifecycle.task import ResponseTask
from preftune.measures.advice import ENOUGH
from preftune.measures.drift import divergence, figures, likelihood
from preftune.measures.frontier import Floats
from preftune.model import load
from preftune.model.generate import Sampled, Sampling, sample
from preftune.model.logprobs import Scorer, sum_responses
from preftune.model.memory import can_repeat, compute_in_parts, free_memory
from preftune.model.reference import AdapterOff, Cached, Live
from preftune.ranks.group import first
from preftune.scoring import response_logps
from preftune.train.metrics import Tally, preference_metrics
from preftune.train.run import Run
from preftune.types import TokenGroup

LoadReference = Callable[[], Live | Scorer]


@dataclass(frozen=True, slots=True)
class Monitor:
    """The groups that the monitor evaluates, and how it samples responses to their prompts.

    `load_reference` loads the reference for a measurement; None if the run has the reference in memory.
    """

    groups: Sequence[TokenGroup]
    sampling: Sampling
    tokenizer: Any
    load_reference: LoadReference | None = None


def start_monitor(
    task: ResponseTask, config: DPOConfig, policy: Policy, visited: Sequence[TokenGroup], run: Run, in_memory: bool
) -> Monitor | None:
    """Return what the monitor of a run evaluates, and print it; None without a monitor.

    Call it while the policy has the weights of step 0. `visited` are the training groups of the run. `in_memory`: the
    model was passed in memory.
    """
    monitor, skipped = make_monitor(task, config, policy, visited)
    if monitor is None:
        return None
    groups, sampling, kind = monitor.groups, monitor.sampling, "held-out" if task.held_out else "training"
    room = (
        f"room for {sampling.max_new_tokens} tokens in the model's context of {load.max_positions(policy.model.config)}"
    )
    if len(groups) < 2:
        reason = f" (skipped {skipped} prompts without {room})" if skipped else ""
        run.display.say(
            f"monitor off: it needs at least 2 distinct prompts, the {kind} data have {len(groups)}{reason}"
        )
        return None
    line = f"monitor: {len(groups)} {kind} prompts, at most {sampling.n} x {sampling.max_new_tokens} tokens per prompt"
    line += f"; skipped {skipped} prompts without {room}" if skipped else ""
    if len(groups) * sampling.n < ENOUGH:
        enough = -(-ENOUGH // len(groups))
        line += f"; too few for most warnings, which need {ENOUGH} responses: set monitor.samples={enough}"
    run.display.say(line)
    if isinstance(task.reference, Live):
        return monitor
    return replace(monitor, load_reference=reference_loader(config, policy, in_memory))


def make_monitor(
    task: ResponseTask, config: DPOConfig, policy: Policy, visited: Sequence[TokenGroup]
) -> tuple[Monitor | None, int]:
    """Return what a monitor would evaluate, None without one, and the number of prompts that are too long for it."""
    if config.monitor is None:
        return None, 0
    settings = config.monitor
    sampling = Sampling(settings.samples, settings.max_new_tokens, seed=config.train.seed)
    return monitor_of(settings.prompts, sampling, task.held_out or visited, policy)


def monitor_of(prompts: int, sampling: Sampling, groups: Sequence[TokenGroup], policy: Policy) -> tuple[Monitor, int]:
    """Return a monitor of distinct prompts of `groups`, and the number of prompts that are too long for it."""
    positions, tokens = load.max_positions(policy.model.config), sampling.max_new_tokens
    if positions is not None:
        tokens = min(tokens, positions // 2)
    chosen, skipped = choose_groups(groups, prompts, positions, tokens, sampling.seed)
    return Monitor(chosen, replace(sampling, max_new_tokens=tokens), policy.tokenizer), skipped


def choose_groups(
    groups: Sequence[TokenGroup], count: int, positions: int | None, new_tokens: int, seed: int
) -> tuple[list[TokenGroup], int]:
    """Return up to `count` groups with distinct prompts, in a seeded order, and how many were skipped as too long."""
    chosen: list[TokenGroup] = []
    seen, skipped = set(), 0
    for index in order(len(groups), seed, 0):
        if len(chosen) == count:
            break
        prompt = groups[index].prompt_ids
        if prompt.tobytes() in seen:
            continue
        seen.add(prompt.tobytes())
        if positions and len(prompt) + new_tokens > positions:
            skipped += 1
        else:
            chosen.append(groups[index])
    return chosen, skipped


def reference_loader(config: DPOConfig, policy: Policy, in_memory: bool) -> LoadReference:
    """Return a function that loads the reference: the model of reference.path, else the policy at step 0.

    A model that was passed in memory cannot be loaded again, so its weights are copied now.
    """
    device, dtype = policy.scorer.device, policy.dtype
    separate = config.reference.path
    if hasattr(policy.model, "peft_config") and not separate:
        return lambda: AdapterOff.of(policy.scorer)
    if in_memory and not separate:
        weights = {name: tensor.detach().cpu().clone() for name, tensor in policy.model.state_dict().items()}

        def rebuild() -> Scorer:
            model = copy.deepcopy(policy.model).requires_grad_(False).eval()
            model.load_state_dict(weights)
            return Scorer.of(model)

        return rebuild
    path, where = (separate, "reference.path") if separate else (config.model.path, "model.path")
    expected = None if separate else policy.start_hash  # of reference.path: the weights at the first measurement

    def read() -> Scorer:
        nonlocal expected
        model = load.load_model(load.locate(path, where), dtype)  # the same way as the policy
        loaded = load.weights_hash(model)
        expected = expected or loaded
        if loaded != expected:
            fix = "restore the files of that model, or set monitor=null"
            raise ModelError("the model is not the one this run started from", where=path, fix=fix)
        if policy.shards > 1:
            return split(Scorer.of(model.requires_grad_(False)), policy)
        return Scorer.of(model.to(device))

    return read


@torch.no_grad()
def drift(task: ResponseTask, monitor: Monitor | None, run: Run, step: int) -> dict[str, float]:
    """Return the metrics of the monitor; empty without one, or if they do not fit in memory, which is reported.

    The sampled responses are saved to the run folder.
    """
    if monitor is None:
        return {}
    metrics = _metrics(task, monitor, run, step)
    if metrics is None:
        free_memory()  # after the handler: the exception holds a reference to the memory
        run.display.say(
            "monitor: skipped at this evaluation, because memory ran out. Lower monitor.prompts, or set monitor=null."
        )
    return metrics or {}


@torch.no_grad()
def save_responses(task: ResponseTask, monitor: Monitor | None, run: Run, step: int) -> None:
    """Save the policy's responses to the prompts of a monitor, without its metrics. Reports if memory ran out."""
    if monitor is None:
        return
    if not _saved(task, monitor, run, step):
        free_memory()  # after the handler: the exception holds a reference to the memory
        run.display.say("no samples of this evaluation were saved, because memory ran out. Set samples=0.")


def _saved(task: ResponseTask, monitor: Monitor, run: Run, step: int) -> bool:
    try:
        prompts = [group.prompt_ids.tolist() for group in monitor.groups]
        samples = sample(task.scorer.model, monitor.tokenizer, prompts, monitor.sampling)
    except (RuntimeError, MemoryError) as error:
        if not can_repeat(error):
            raise
        return False
    _save(run, step, monitor, samples)
    return True


def _save(run: Run, step: int, monitor: Monitor, samples: Sequence[Sampled]) -> None:
    """Save the responses of the data and the samples to the run folder."""
    if not first():
        return
    with run.optional("samples"):
        save_data_responses(run.folder, monitor.tokenizer, monitor.groups)
        save_samples(run.folder, step, monitor.tokenizer, samples)


def _metrics(task: ResponseTask, monitor: Monitor, run: Run, step: int) -> dict[str, float] | None:
    """Return the metrics of the monitor, or None if memory ran out."""
    try:
        prompts = [group.prompt_ids.tolist() for group in monitor.groups]
        samples = sample(task.scorer.model, monitor.tokenizer, prompts, monitor.sampling)
        own_PM = response_logps(task.scorer, [sampled.group for sampled in samples])
        lengths = [[len(ids) for ids in sampled.group.response_ids] for sampled in samples]
        length_PM = np.array(lengths, dtype=np.float64)
        data_S, data_length_S, data_metrics = measure_data(task, monitor)
    except (RuntimeError, MemoryError) as error:
        if not can_repeat(error):
            raise
        return None
    _save(run, step, monitor, samples)
    texts = [text for sampled in samples for text in sampled.texts]
    ended = [end for sampled in samples for end in sampled.ended]
    surface = {f"drift/{name.removeprefix('responses/')}": value for name, value in figures(texts, ended).items()}
    return {
        **likelihood(own_PM, length_PM, data_S, data_length_S),
        **measure_kl(task, monitor, samples, own_PM, run.display.say),
        **data_metrics,
        "drift/tokens": float(length_PM.mean()),
        "drift/responses": float(length_PM.size),
        **surface,
    }


def measure_data(task: ResponseTask, monitor: Monitor) -> tuple[Floats, Floats, dict[str, float]]:
    """Return log-probs and lengths of the data's responses, and the drift metrics of the monitored groups.

    Log-probs and lengths are those of the first `max_new_tokens` tokens, like in samples.
    """
    tally, sums, lengths = Tally(), [], []
    for batch in task.micro_batches(monitor.groups):
        for _, part in compute_in_parts(task.measure, batch, task.micro_batches):
            metrics = preference_metrics(part.policy, part.reference, part.judged, task.loss.beta)
            tally.add({name: value for name, value in metrics.items() if name.startswith("drift/")})
            sum_S, length_S = first_tokens(part.policy.token_N, part.policy.length_S, monitor.sampling.max_new_tokens)
            label_S = part.judged.label_S
            real_S = label_S != 0 if bool(label_S.any()) else torch.ones_like(label_S, dtype=torch.bool)
            sums.append(sum_S[real_S].double().cpu().numpy())
            lengths.append(length_S[real_S].double().cpu().numpy())
    return np.concatenate(sums), np.concatenate(lengths), tally.means()


def first_tokens(token_N: torch.Tensor, length_S: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (S,) summed log-probs of the first `limit` tokens of each response, and (S,) how many tokens these are."""
    start_S = length_S.cumsum(0) - length_S
    position_N = torch.arange(len(token_N), device=token_N.device) - torch.repeat_interleave(start_S, length_S)
    return sum_responses(token_N.where(position_N < limit, 0.0), length_S), length_S.clamp(max=limit)


def measure_kl(
    task: ResponseTask, monitor: Monitor, samples: Sequence[Sampled], own_PM: Floats, say: Callable[[str], None]
) -> dict[str, float]:
    """Return the KL of the policy from the reference, estimated on the policy's samples; empty if it failed."""
    if task.at_start and isinstance(task.reference, Cached):
        return {"drift/kl": 0.0, "drift/kl_se": 0.0}
    groups = [sampled.group for sampled in samples]
    if isinstance(task.reference, Live):
        return divergence(own_PM, response_logps(task.reference, groups))
    assert monitor.load_reference
    try:
        return divergence(own_PM, response_logps(monitor.load_reference(), groups))
    except ModelError as error:
        say(f"monitor: the KL was not measured: {error}")
    except (RuntimeError, MemoryError) as error:
        if not can_repeat(error):
            raise
        say(
            "monitor: the KL was not measured, because policy and reference do not fit in memory together. "
            "Set reference.kind=frozen to reserve memory for both."
        )
    finally:
        free_memory()  # frees the reference
    return {}
