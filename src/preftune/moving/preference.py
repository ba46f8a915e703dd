"""The preference losses of TRL, which axolotl, LLaMA-Factory and ms-swift use as well, as terms of preftune's `loss`.

Facts are from TRL 1.16 (trainer/dpo_trainer.py `_compute_loss`, experimental/cpo, experimental/orpo) and from TRL 0.28.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preftune.moving.draft import Draft, as_list, as_number

Term = dict[str, Any]
SAME = {
    "sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo", "nca_pair": "nca_pair", "sppo_hard": "sppo",
    "sppo": "sppo", "apo_zero": "apo_zero", "apo_down": "apo_down", "sigmoid_norm": "sigmoid_norm",
    "aot": "aot", "aot_unpaired": "aot_unpaired", "aot_pair": "aot", "robust": "robust", "exo_pair": "exo_pair",
    "bco_pair": "bco_pair", "discopop": "discopop", "sft": "nll", "dpo": "sigmoid",
}  # fmt: skip
DIVERGENCES = {"forward_kl": "forward_kl", "js_divergence": "jensen_shannon", "alpha_divergence": "alpha_divergence"}
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # losses whose smoothing TRL uses in every version


@dataclass(frozen=True, slots=True)
class Version:
    """What differs between the programs that use TRL's losses.

    smooths           `sigmoid` with label_smoothing is conservative DPO; TRL 0.29 and later ignore it
    running_baseline  `bco_pair` subtracts a running mean; TRL 0.29 and later subtract nothing
    alpha_is_ours     f_alpha_divergence_coef has preftune's meaning; in TRL 0.29 and later, it is 1 - alpha
    """

    smooths: bool = False
    running_baseline: bool = False
    alpha_is_ours: bool = False


def terms(draft: Draft, beta: float, version: Version, types: Sequence[str], weights: Sequence[float]) -> list[Term]:
    """Return the terms of a DPO loss of TRL, and note where it differs from its name."""
    smoothing = float(draft.number("label_smoothing") or 0)
    result = []
    for kind, weight in zip(types, weights, strict=True):
        if weight == 0:
            draft.objective.append(f"{kind} has the weight 0 and is left out")
            continue
        term = _term(draft, kind, beta, smoothing, version)
        if term is None:
            return []
        result.append({**term, "weight": float(weight)} if len(types) > 1 else term)
    return result


def _term(draft: Draft, kind: str, beta: float, smoothing: float, version: Version) -> Term | None:
    name = SAME.get(kind)
    if name is None:
        draft.refuse(f"preftune has no loss {kind!r}")
        return None
    term: Term = {"name": name} if name == "nll" else {"name": name, "beta": beta}
    if kind in SMOOTHED and (smoothing or kind == "exo_pair"):
        term["label_smoothing"] = smoothing or 0.001
    elif kind == "robust":
        term["label_smoothing"] = 0.0
    elif kind == "sigmoid" and smoothing and version.smooths:
        term["label_smoothing"] = smoothing
    elif smoothing:
        hint = "; TRL 0.28 and earlier trained conservative DPO: for that, " if kind == "sigmoid" else ""
        hint += f"set loss.label_smoothing={smoothing:g}" if kind == "sigmoid" else ""
        draft.objective.append(f"{draft.tool} ignores label_smoothing with loss_type {kind}{hint}")
    _notes(draft, kind, term, version)
    if kind == "discopop":
        term["tau"] = float(draft.number("discopop_tau") or 0.05)
    return _variant(draft, kind, term, version)


def _notes(draft: Draft, kind: str, term: Term, version: Version) -> None:
    """Note where TRL computes something else than preftune under the same name."""
    if kind == "ipo":
        term["average"] = True
        draft.objective.append("ipo: the mean log-ratio per token, as in TRL; the paper has sums (loss.average=false)")
    if kind == "bco_pair":
        term["threshold"] = version.running_baseline
        text = "nothing (d = 0), since TRL 0.29"
        if version.running_baseline:
            text = "a running mean of the rewards; preftune subtracts the mean of the step"
        draft.objective.append(f"bco_pair: {draft.tool} subtracts {text}")
    if kind.startswith("aot"):
        draft.objective.append(f"{kind}: TRL sorts within each micro-batch of a device, preftune over the whole step")
    if kind == "sft":
        draft.objective.append(
            "sft: TRL averages over all chosen tokens of a micro-batch; preftune over the tokens of each response, "
            "then over responses"
        )


def _variant(draft: Draft, kind: str, term: Term, version: Version) -> Term | None:
    """Apply f_divergence_type, ld_alpha and use_weighting, which change a loss without changing its name."""
    divergence = str(draft.get("f_divergence_type") or "reverse_kl").lower().removeprefix("fdivergencetype.")
    alpha, weighted = as_number(draft.get("ld_alpha")), draft.on("use_weighting")
    changes = [divergence != "reverse_kl" and kind != "sft", alpha is not None and kind != "sft", weighted]
    if not any(changes):
        return term
    if kind != "sigmoid" or sum(changes) > 1 or "label_smoothing" in term:
        names = zip(("f_divergence_type", "ld_alpha", "use_weighting"), changes, strict=True)
        draft.refuse(f"preftune has no {kind} with " + " and ".join(name for name, is_on in names if is_on))
        return None
    beta = term["beta"]
    if weighted:
        draft.objective.append("use_weighting makes it WPO: each pair is weighted by how likely its responses are")
        return {"name": "wpo", "beta": beta}
    if alpha is not None:
        draft.objective.append("ld_alpha makes it LD-DPO")
        return {"name": "ld_dpo", "beta": beta, "alpha": float(alpha)}
    return _divergence(draft, divergence, beta, version)


def _divergence(draft: Draft, divergence: str, beta: float, version: Version) -> Term | None:
    """Return the DPO loss with another divergence than the reverse KL."""
    name = DIVERGENCES.get(divergence)
    if name is None:
        draft.refuse(f"preftune has no f_divergence_type {divergence!r}")
        return None
    result = {"name": name, "beta": beta}
    if name == "alpha_divergence":
        coefficient = as_number(draft.get("f_alpha_divergence_coef"))
        coefficient = 0.5 if coefficient is None else coefficient
        if not 0 < coefficient < 1:
            draft.refuse(f"preftune has no alpha-divergence with the coefficient {coefficient:g}")
            return None
        result["alpha"] = coefficient if version.alpha_is_ours else round(1 - coefficient, 6)
        if not version.alpha_is_ours:
            draft.objective.append("f_alpha_divergence_coef: TRL 0.29 and later mean 1 - alpha")
    return result


def types_and_weights(draft: Draft, types: str, weights: str) -> tuple[list[str], list[float]]:
    """Return the names and the weights of a list of losses."""
    names = [str(name).lower() for name in as_list(draft.get(types))] or ["sigmoid"]
    numbers = [as_number(weight) for weight in as_list(draft.get(weights))]
    if len(numbers) != len(names):
        numbers = [1.0] * len(names)
        draft.lose(weights, note=f"it does not have one weight for each of {', '.join(names)}")
    return names, [1.0 if number is None else float(number) for number in numbers]


def cpo(draft: Draft, kind: str, beta: float, alpha: float, gamma: float) -> list[Term]:
    """Return the terms of TRL's CPO trainer, whose loss_type `simpo` is SimPO plus alpha times an NLL term."""
    if as_number(draft.get("alpha")):
        draft.refuse("preftune has no AlphaPO (the key alpha)")
        return []
    draft.keep("alpha", note="0: not AlphaPO")
    pooled = "TRL averages the NLL over all chosen tokens of a micro-batch; preftune over those of each response"
    if kind == "sigmoid":
        draft.objective.append(pooled)
        return [{"name": "cpo", "beta": beta, "alpha": alpha}]
    if kind == "simpo":
        simpo = {"name": "simpo", "beta": beta, "gamma": gamma}
        if not alpha:
            return [simpo]
        draft.objective += [
            f"simpo with cpo_alpha {alpha:g} is CPO-SimPO: SimPO plus {alpha:g} x NLL of the chosen response. "
            "SimPO alone has cpo_alpha 0: for that, set loss={name: simpo, beta: %g, gamma: %g}" % (beta, gamma),
            pooled,
        ]
        return [{**simpo, "weight": 1.0}, {"name": "nll", "weight": float(alpha)}]
    draft.refuse(f"preftune has no CPO with loss_type {kind!r}")
    return []


ORPO_NOTE = "orpo: TRL computes the NLL over prompt and chosen response; preftune, as the paper, over the response only"


def put_loss(draft: Draft, result: Sequence[Term], *keys: str) -> None:
    """Write the section `loss`."""
    if result:
        single = len(result) == 1
        draft.put("loss", {k: v for k, v in result[0].items() if k != "weight"} if single else list(result), *keys)
