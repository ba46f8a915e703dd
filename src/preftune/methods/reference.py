"""The reference of a preference run: which kind, how it is made, and the proof that it is the policy at step 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from preftune.config.schema import DPOConfig, ReferenceConfig
from preftune.data.groups import require_vocabulary
from preftune.data.layout import micro_batches
from preftune.errors import ConfigError, NumericError
from preftune.lifecycle.packing_probe import admit
from preftune.lifecycle.policy import Policy, require_same_vocabulary
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective
from preftune.model import load
from preftune.model.compile import compile_blocks
from preftune.model.logprobs import Scorer, logps
from preftune.model.reference import AdapterOff, Cached, Frozen, Reference, fill, store_key
from preftune.model.store import Store
from preftune.train.display import Display
from preftune.types import TokenGroup


def reference_kind(config: DPOConfig, objective: Objective) -> str:
    """Where reference log-probs come from. Raises ConfigError for a kind that the loss or the model cannot have."""
    wanted, name = config.reference.kind, config.terms[0].name
    if not objective.uses_reference:
        if wanted not in ("auto", "none") or config.reference.path:
            raise ConfigError(f"{name!r} uses no reference", where="reference", fix="remove the section `reference`")
        return "none"
    distributions = "kl" in objective.inputs
    if wanted == "auto":
        if config.lora and not config.reference.path:
            return "adapter-off"
        return "frozen" if distributions else "cached"
    if wanted == "adapter-off" and (not config.lora or config.reference.path):
        what = "reference.path names another model" if config.reference.path else "there is no adapter without lora"
        raise ConfigError(f"adapter-off: {what}", where="reference.kind", fix="use frozen or cached")
    if distributions and wanted in ("cached", "none"):
        raise ConfigError(
            f"{name!r} compares whole distributions with the reference, which {wanted!r} does not have",
            where="reference.kind",
            fix="use frozen, or adapter-off with lora",
        )
    if wanted == "none" and config.reference.path:
        raise ConfigError("kind is none, but a path is given", where="reference.path", fix="remove one of them")
    return wanted


def make_reference(
    kind: str,
    config: ReferenceConfig,
    policy: Policy,
    needed: Sequence[TokenGroup],
    display: Display,
    compiled: bool = False,
) -> Reference | None:
    """The reference at step 0: the policy's weights as they are now, or those of `config.path`."""
    if kind == "none":
        return None
    if kind == "adapter-off":
        return AdapterOff.of(policy.scorer)
    scorer, weights = policy.scorer, policy.start_hash
    if config.path:
        source = load.locate(config.path, "reference.path")
        other = load.load_model(source, policy.model.dtype)
        require_same_vocabulary(policy.tokenizer, load.load_tokenizer(source), config.path)
        require_vocabulary(needed, other.get_input_embeddings().weight.shape[0], config.path)
        scorer = Scorer.of(other.to(policy.scorer.device))
        if policy.budget.layout != "rows":
            admit(scorer, policy.budget.layout)
        weights = load.weights_hash(other) if kind == "cached" else ""
    if kind == "frozen":
        frozen = Frozen(scorer) if config.path else Frozen.copy_of(policy.model)
        if compiled:  # a copy is not: its last digits would differ from the policy's
            compile_blocks(frozen.scorer.model, policy.budget.constant)
        return frozen
    store = Store(store_key(weights, policy.model.dtype, policy.budget.layout + "+compiled" * compiled))
    for path in store.damaged:
        display.say(f"reference cache: {path} is damaged and not used; its entries are computed again")
    off = AdapterOff.of(scorer) if hasattr(scorer.model, "peft_config") else None
    with display.stage("reference", len(needed)) as stage:
        new = fill(
            store,
            scorer,
            needed,
            lambda groups: micro_batches(groups, policy.budget),
            off,
            lambda done, total: stage.advance(len(needed) - total + done),
        )
    display.say(f"reference: {new} groups scored, {len(needed) - new} found in {store.folder}")
    return Cached(store, policy.scorer.device)


@torch.no_grad()
def prove_start(task: ResponseTask, first: Sequence[TokenGroup]) -> str:
    """Compare policy and reference on the groups of the first step, before the first update; return a line to print.

    They are the same model, so every margin must be 0. Raises NumericError if they differ by more than rounding.
    """
    assert task.reference is not None
    worst, responses = 0.0, 0
    fp32 = next(iter(task.scorer.model.parameters())).dtype == torch.float32
    for batch in task.micro_batches(first):
        live, reference = logps(task.scorer, batch), task.reference.logps(batch)
        difference = (live.sum_S - reference.sum_S).abs()
        allowed = (1e-3 + 1e-5 * live.sum_S.abs()) if fp32 else (0.5 + 0.02 * live.sum_S.abs())
        bad = torch.nonzero(~(difference <= allowed)).flatten().tolist()
        if bad:
            owner = batch.groups[int(batch.judged.group_S[bad[0]])].origin
            raise NumericError(
                f"policy and reference differ by {float(difference[bad[0]]):.3g} nats before the first step",
                where=owner,
                why="they are the same model, so the difference is noise (dropout, precision) or a broken cache",
                fix="use reference.kind=frozen; if that differs too, the model gives two results for the same input",
            )
        worst = max(worst, float(difference.max()))
        responses += len(difference)
    meaning = ", loss ln 2" if [term.name for term in task.loss.terms] == ["sigmoid"] else ""
    return f"step 0: policy = reference on {responses} responses (largest difference {worst:.1e}): margin 0{meaning}"
