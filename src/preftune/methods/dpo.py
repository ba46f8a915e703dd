"""Preference training with any of the losses: DPO and its relatives, unpaired and list-wise ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from preftune.config.schema import DPOConfig, LossTerm, ReferenceConfig
from preftune.data.groups import require_vocabulary
from preftune.data.items import as_labelled, as_pairs, as_rankings, require_columns, with_mismatches
from preftune.data.layout import micro_batches
from preftune.data.order import Step
from preftune.errors import ConfigError, NumericError
from preftune.lifecycle import prepare
from preftune.lifecycle.monitor import Watched, monitored, watch
from preftune.lifecycle.packing_probe import admit
from preftune.lifecycle.task import ResponseTask
from preftune.lifecycle.training import Method, train
from preftune.losses import PREFERENCE_LOSSES, Objective, Term
from preftune.losses.objective import INPUTS, items_of
from preftune.methods.own_loss import checked
from preftune.model import load
from preftune.model.compile import compile_blocks
from preftune.model.logprobs import Scorer, logps
from preftune.model.memory import out_of_memory
from preftune.model.reference import AdapterOff, Cached, Frozen, Live, Reference, fill, store_key
from preftune.model.store import Store
from preftune.resolve import bind, guarded, inputs_of, resolve
from preftune.train.display import Display
from preftune.train.run import Run
from preftune.types import TokenGroup


def run(
    config: DPOConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    display: Display | None = None,
    dry_run: bool = False,
    moment: str | None = None,
) -> Path:
    """Train and return the folder of the tuned model. `model` and `tokenizer` may be given in memory.

    `moment` is what a chat template writes as the date, in ISO format. None: when the run began.
    """
    objective = bind_objective(config.terms)
    kind = reference_kind(config, objective)
    if config.reference.path:
        load.locate(config.reference.path, "reference.path")
    adapt = adapter_of_data(objective)

    def task(policy: prepare.Policy, data: prepare.TokenData) -> ResponseTask:
        if objective.statistics and policy.scorer.head is None:
            raise ConfigError(
                f"{config.terms[0].name!r} needs {', '.join(sorted(objective.statistics))} over the whole vocabulary",
                where="loss.name",
                why="this model's head is neither linear nor scaled nor softcapped, so only its log-probs are known",
            )
        return ResponseTask(policy.scorer, None, objective, adapt(data.train), adapt(data.held_out), policy.budget)

    def complete(task: ResponseTask, policy: prepare.Policy, steps: Sequence[Step], run: Run) -> ResponseTask:
        visited = [task.groups[i] for i in sorted({i for plan in steps for i in plan.members})]
        needed = [*visited, *task.held_out]  # a short run does not score all of a large data set
        task = replace(
            task, reference=make_reference(kind, config.reference, policy, needed, run.display, config.model.compile)
        )
        if task.reference and not config.reference.path and run.start == 0:
            run.display.say(prove_start(task, [task.groups[i] for i in steps[0].members]))
        return monitored(task, config, policy, visited, run, given=model is not None)

    def watched(task: ResponseTask, policy: prepare.Policy) -> Watched | None:
        return watch(task, config, policy, task.groups)[0]

    method = Method(task, complete, kind, watched=watched)
    return train(config, method, model=model, tokenizer=tokenizer, display=display, dry_run=dry_run, moment=moment)


def bind_objective(terms: Sequence[LossTerm]) -> Objective:
    """The loss section as a function. Raises ConfigError for an unknown loss, parameter or mixture."""
    bound = []
    for number, term in enumerate(terms):
        where = "loss" if len(terms) == 1 else f"loss.{number}"
        function = resolve(term.name, PREFERENCE_LOSSES, f"{where}.name")
        inputs = inputs_of(function)
        unknown = [name for name in inputs if name not in INPUTS]
        if unknown:
            raise ConfigError(
                f"{term.name!r} asks for {unknown[0]!r}, which no loss can have",
                where=f"{where}.name",
                fix=f"inputs: {', '.join(INPUTS)}; a parameter of the loss stands after the *",
            )
        parameters = bind(function, term.parameters, where, term.name)
        items = items_of(inputs)
        if term.name not in PREFERENCE_LOSSES:
            function = checked(guarded(function, term.name, out_of_memory), term.name, items)
        bound.append(Term(term.name, function, inputs, items, parameters, term.weight))
    kinds = {term.items for term in bound}
    if len(kinds) > 1:
        raise ConfigError(
            f"a sum of losses over {' and '.join(sorted(kinds))}",
            where="loss",
            why="they have values for different things, so that their weights would mean nothing",
            fix="combine losses of the same kind; docs/losses.md lists them",
        )
    return Objective(tuple(bound))


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


def adapter_of_data(objective: Objective) -> Callable[[Sequence[TokenGroup]], list[TokenGroup]]:
    """How groups are brought into the form that the loss has values for; raises DataError where they cannot be."""
    name = objective.terms[0].name
    weighted = objective.items == "pairs" and not objective.joint
    shapes = {"pairs": as_pairs, "responses": as_labelled, "groups": as_rankings}

    def adapt(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
        if not groups:
            return []
        for term in objective.terms:  # each for itself: what one of them uses, another may ignore
            log_margin = "margin" in term.inputs and bool(term.parameters.get("log"))
            require_columns(groups, term.name, frozenset(term.inputs), weighted, log_margin)
        shaped = shapes[objective.items](groups, name)
        return with_mismatches(shaped, name) if "mismatched" in objective.inputs else shaped

    return adapt


def make_reference(
    kind: str,
    config: ReferenceConfig,
    policy: prepare.Policy,
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
        prepare.require_same_vocabulary(policy.tokenizer, load.load_tokenizer(source), config.path)
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
    """Before the first update, compare policy and reference on the groups of the first step.

    They are the same model, so every margin must be 0. Raises NumericError if they are not.
    """
    assert task.reference is not None
    worst, responses = 0.0, 0
    fp32 = next(iter(task.scorer.model.parameters())).dtype == torch.float32
    for batch in task.layout(first):
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
                fix="use reference.kind=frozen; if that differs too, the model does not compute the same thing twice",
            )
        worst = max(worst, float(difference.max()))
        responses += len(difference)
    if isinstance(task.reference, Cached):
        task.reference.is_policy = True
    meaning = ", loss ln 2" if [term.name for term in task.loss.terms] == ["sigmoid"] else ""
    return f"step 0: policy = reference on {responses} responses (largest difference {worst:.1e}): margin 0{meaning}"


__all__ = ["Live", "bind_objective", "make_reference", "prove_start", "reference_kind", "run"]
