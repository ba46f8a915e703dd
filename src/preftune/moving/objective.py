"""The formulas of preftune's losses, as text for the report. docs/lookup/losses.md has them with their sources."""

from __future__ import annotations

from typing import Any

SYMBOLS = "h = lr_w - lr_l, lr_y = log pi(y|x) - log ref(y|x), summed over the tokens of the response; |y|: its tokens"
FORMULAS = {
    "sigmoid": "-log sigmoid(beta h)",
    "sigmoid_norm": "-log sigmoid(beta (lr_w/|y_w| - lr_l/|y_l|))",
    "robust": "[-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2e)",
    "ipo": "(h' - 1/(2 beta))^2, h' = lr_w/|y_w| - lr_l/|y_l|",
    "hinge": "max(0, 1 - beta h)",
    "exo_pair": "sigmoid(beta h) [log sigmoid(beta h) - log(1 - e)] + sigmoid(-beta h) [log sigmoid(-beta h) - log e]",
    "nca_pair": "-log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l), r = beta lr",
    "bco_pair": "-log sigmoid(r_w - d) - log sigmoid(-(r_l - d)), r = beta lr, d = mean of r over the step",
    "sppo": "(lr_w - 1/(2 beta))^2 + (lr_l + 1/(2 beta))^2",
    "aot": "-log sigmoid(beta d), d = sort(log pi_w - log pi_l) - sort(log ref_w - log ref_l)",
    "aot_unpaired": "-log sigmoid(beta d), d = sort(lr_w) - sort(lr_l)",
    "apo_zero": "1 - sigmoid(beta lr_w) + sigmoid(beta lr_l)",
    "apo_down": "sigmoid(beta lr_w) + 1 - sigmoid(beta (lr_w - lr_l))",
    "discopop": "(1 - m) (-log sigmoid(z)) + m exp(-z), z = beta h, m = sigmoid(z / tau)",
    "forward_kl": "-log sigmoid(beta [exp(-lr_l) - exp(-lr_w)])",
    "jensen_shannon": "-log sigmoid(beta [log sigmoid(lr_w) - log sigmoid(lr_l)])",
    "alpha_divergence": "-log sigmoid(beta [f(lr_w) - f(lr_l)]), f(lr) = (1 - exp(-alpha lr)) / alpha",
    "ld_dpo": "-log sigmoid(beta h), with the tokens after min(|y_w|, |y_l|) weighted by alpha in pi and ref",
    "wpo": "-w_w w_l log sigmoid(beta h), w = exp of the mean over tokens of log p - log sum_v p_v^2",
    "simpo": "-log sigmoid(beta (log pi_w/|y_w| - log pi_l/|y_l|) - gamma)",
    "cpo": "-log sigmoid(beta (log pi_w - log pi_l)) - alpha log pi_w/|y_w|",
    "orpo": "-log pi_w/|y_w| - beta log sigmoid(log odds_w - log odds_l)",
    "nll": "-log pi_w/|y_w|",
    "kto": "1 - sigmoid(+-(beta lr - z)), z = the batch's KL estimate; times the weight of the label",
    "bco": "-log sigmoid(+-(beta lr - d)), d = mean of beta lr",
}


def formula(term: dict[str, Any]) -> str:
    """Return the formula of one loss of a config, with its parameters."""
    name = str(term["name"])
    text = FORMULAS[name]
    if name == "sigmoid" and term.get("label_smoothing"):
        text = "-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)"
    if name == "ipo" and not term.get("average", True):
        text = "(h - 1/(2 beta))^2"
    if name == "bco_pair" and not term.get("threshold", True):
        text = "-log sigmoid(r_w) - log sigmoid(-r_l), r = beta lr"
    others = {key: value for key, value in term.items() if key not in ("name", "weight", "average", "threshold")}
    symbols = {"label_smoothing": "e"}
    parameters = ", ".join(f"{symbols.get(key, key)} {value:g}" for key, value in others.items())
    weight = f"{term['weight']:g} x " if term.get("weight", 1) != 1 else ""
    return f"{name}: {weight}[{text}]" + (f", {parameters}" if parameters else "")


def lines(loss: Any, reference: str = "") -> list[str]:
    """Return the objective of a section `loss`, one line per term, and the meaning of the symbols."""
    terms = loss if isinstance(loss, list) else [loss]
    texts = [formula(term) for term in terms]
    free = ["without a reference: log ref = 0"] if reference == "none" else []
    return [*texts, *free, SYMBOLS]
