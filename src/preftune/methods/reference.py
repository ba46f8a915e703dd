"""The reference of a preference run: choose its kind, create it, and check that it equals the policy at step 0."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from preftune.config.schema import DPOConfig
from preftune.data.layout import micro_batches
from preftune.data.tokenize_groups import require_vocabulary
from preftune.errors import ConfigError, NumericError, RunError
from preftune.lifecycle.distribute import split
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.policy import Policy, require_same_vocabulary
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective
from preftune.model import load
from preftune.model.compile import compile_blocks, is_compiled
from preftune.model.logprobs import Scorer, logps
from preftune.model.precision import compute_dtype_of
from preftune.model.reference import AdapterOff, Cached, Frozen, Reference, fill, passes, store_key
from preftune.model.reference_cache import Store, response_keys
from preftune.ranks import group as ranks
from preftune.ranks.shard import is_sharded
from preftune.ranks.work import fillers, own
from preftune.train.display import Display
from preftune.types import TokenGroup


def reference_kind(config: DPOConfig, objective: Objective) -> str:
    """Return the kind of reference to use. Raises ConfigError for a kind that the loss or the config does not allow."""
    kind, name = config.reference.kind, config.terms[0].name
    if config.data.stream and "mismatched" in objective.inputs:
        what = f"the loss {name!r} needs responses to other prompts, which data.stream does not have"
        raise ConfigError(what, where="loss.name", fix="use loss.name=bco, or remove data.stream")
    if kind == "cached" and config.data.stream:
        what = "log-probs cannot be computed before training if data.stream reads the data while training"
        raise ConfigError(what, where="reference.kind", fix="use frozen, or adapter-off with lora")
    if not objective.uses_reference:
        if kind not in ("auto", "none") or config.reference.path:
            raise ConfigError(
                f"the loss {name!r} does not use a reference", where="reference", fix="remove the section `reference`"
            )
        return "none"
    distributions = "kl" in objective.inputs
    if kind == "auto":
        if config.lora and not config.reference.path:
            return "adapter-off"
        return "frozen" if distributions or config.data.stream else "cached"
    if kind == "adapter-off" and (not config.lora or config.reference.path):
        what = "reference.path is a separate model" if config.reference.path else "there is no adapter without lora"
        raise ConfigError(f"adapter-off: {what}", where="reference.kind", fix="use frozen or cached")
    if distributions and kind in ("cached", "none"):
        raise ConfigError(
            f"the loss {name!r} needs whole distributions of the reference, which {kind!r} does not have",
            where="reference.kind",
            fix="use frozen, or adapter-off with lora",
        )
    if kind == "none" and config.reference.path:
        raise ConfigError(
            "reference.kind is none, but reference.path is set", where="reference", fix="remove one of them"
        )
    return kind


def make_reference(
    kind: str, config: DPOConfig, policy: Policy, groups: Sequence[TokenGroup], display: Display
) -> Reference | None:
    """Return the reference: the policy at step 0, or the model of reference.path. A cache is filled for `groups`."""
    path, compiled = config.reference.path, is_compiled(policy.model)
    if kind == "none":
        return None
    if kind == "adapter-off":
        return AdapterOff.of(policy.scorer)
    if kind == "frozen" and policy.shards > 1:
        path = path or config.model.path  # a split model cannot be copied
    scorer, weights = policy.scorer, policy.start_hash
    if path:
        scorer, weights = _other_model(path, policy, groups, hashed=kind == "cached")
    if kind == "frozen":
        frozen = Frozen(scorer) if path else Frozen.copy_of(policy.model)
        if compiled:  # else its results would differ from the policy's in the last digits
            compile_blocks(frozen.scorer.model, policy.budget.constant)
        return frozen
    compiled = is_compiled(scorer.model)  # the model of reference.path is not: it is scored once
    code = "+compiled" if compiled else ""
    if policy.dtype != torch.float32:  # a GPU rounds differently; see also model.compile.training_graph
        code = f"+compiled for training on {scorer.device.type}" if compiled else f" on {scorer.device.type}"
    store = Store(store_key(weights, policy.dtype, policy.budget.layout + code))
    for damaged in store.damaged:
        display.say(f"reference cache: ignored the damaged file {damaged}; its log-probs are computed again")
    display.say(f"reading or computing the reference log-probs of {len(groups):,} groups")
    new = _fill_shares(store, scorer, groups, policy, display)
    display.say(
        f"reference: computed log-probs of {new} groups, read {len(groups) - new} from the cache {store.folder}"
    )
    return Cached(store, policy.scorer.device)


def _other_model(path: str, policy: Policy, groups: Sequence[TokenGroup], hashed: bool) -> tuple[Scorer, str]:
    """Load the model of reference.path. Return its scorer and, if `hashed`, the hash of its weights."""
    source = load.locate(path, "reference.path")
    other = load.load_model(source, policy.dtype)
    require_same_vocabulary(policy.tokenizer, load.load_tokenizer(source), path)
    require_vocabulary(groups, other.get_input_embeddings().weight.shape[0], path)
    weights = load.weights_hash(other) if hashed else ""  # before they are on a GPU
    scorer = Scorer.of(other if policy.shards > 1 else other.to(policy.scorer.device))
    if policy.budget.layout != "rows":
        choose_layout(scorer, policy.budget.layout)
    return split(scorer, policy), weights


def _fill_shares(store: Store, scorer: Scorer, groups: Sequence[TokenGroup], policy: Policy, display: Display) -> int:
    """Complete the cache for `groups`; each rank computes a share. Return the number of groups that it lacked."""
    off = AdapterOff.of(scorer) if hasattr(scorer.model, "peft_config") else None
    mine, batches = own(groups, lambda group: group.tokens), partial(micro_batches, budget=policy.budget)
    planned = passes(store, mine, batches) if policy.shards > 1 else 0
    lacking = int(ranks.all_max(planned)) - planned  # each pass of split weights needs all ranks
    with display.stage("reference", len(mine)) as stage:
        new = fill(store, scorer, mine, batches, off, lambda done, total: stage.advance(len(mine) - total + done))
        with torch.no_grad():
            for _ in range(lacking):
                logps(scorer, batches([groups[0]])[0].to(scorer.device))
    if ranks.world() == 1:
        return new
    new = sum(ranks.gather(new))
    store.reread()
    if ranks.any_rank(any(key not in store for group in groups for key in response_keys(group))):
        raise RunError(
            "the reference log-probs of other ranks are not in the cache",
            where=str(store.folder),
            why="the ranks share the work of computing them, so they need a shared folder",
            fix="set PREFTUNE_CACHE to a folder that all machines share, or set reference.kind=frozen",
        )
    return new


@torch.no_grad()
def check_start(task: ResponseTask, first: Sequence[TokenGroup]) -> str:
    """Compare policy and reference on the groups of the first step, before any update. Return a line to print.

    They are the same model, so every margin must be 0. Raises NumericError if they differ by more than rounding.
    """
    assert task.reference is not None
    largest, responses = 0.0, 0
    fp32 = compute_dtype_of(task.scorer.model) == torch.float32
    mine = task.micro_batches(own(first, lambda group: group.tokens))
    extra = fillers(mine, first, task.micro_batches, is_sharded(task.scorer.model))
    for batch in mine:
        policy, reference = logps(task.scorer, batch), task.reference.logps(batch)
        difference = (policy.sum_S - reference.sum_S).abs()
        allowed = (1e-3 + 1e-5 * policy.sum_S.abs()) if fp32 else (0.5 + 0.02 * policy.sum_S.abs())
        bad = torch.nonzero(~(difference <= allowed)).flatten().tolist()
        if bad:
            row = batch.groups[int(batch.judged.group_S[bad[0]])].origin
            raise NumericError(
                f"policy and reference differ by {float(difference[bad[0]]):.3g} nats before the first step",
                where=row,
                why="they are the same model, so the cause is randomness (dropout), precision or a damaged cache",
                fix="use reference.kind=frozen; if the error remains, the model is not deterministic",
            )
        largest = max(largest, float(difference.max()))
        responses += len(difference)
    for batch in extra:
        logps(task.scorer, batch)
        task.reference.logps(batch)
    largest, responses = ranks.all_max(largest), sum(ranks.gather(responses))
    loss = ", loss ln 2" if [term.name for term in task.loss.terms] == ["sigmoid"] else ""
    return f"step 0: policy = reference on {responses} responses (largest difference {largest:.1e}): margin 0{loss}"
