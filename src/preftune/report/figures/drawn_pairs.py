"""The pairs that a run scored at some of its steps, read from its folder `drawn_pairs`, as the data of figures."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
FOLDER = "drawn_pairs"
SHOWN = 60  # pairs that are points of a figure, by a seeded draw
MAX_TEXT = 400  # characters of a text on the page
BINS = 50
#: Losses that are functions of the two log-ratios, so that assets/math.js can draw them as a landscape.
GROUNDS = (
    "sigmoid", "sigmoid_norm", "robust", "ipo", "hinge", "exo_pair", "nca_pair", "sppo", "apo_zero", "apo_down",
    "discopop", "forward_kl", "jensen_shannon", "alpha_divergence", "dpop", "cal_dpo",
)  # fmt: skip
#: Losses that are drawn for a run with a different loss, to compare.
COMPARED = ("sigmoid", "ipo", "hinge", "dpop")
#: Losses on log-ratios or log-probs per token.
PER_TOKEN = ("sigmoid_norm", "simpo", "orpo", "cpo_simpo")


@dataclass(frozen=True, slots=True)
class RunPairs:
    """The scored pairs of a run, of K moments and P pairs.

    logps_KP2       log-probs of chosen and rejected under the policy; of a reward model, its rewards
    reference_P2    those of the reference; None without one
    """

    steps: tuple[int, ...]
    logps_KP2: Floats
    reference_P2: Floats | None
    label_P: Floats
    tokens_P2: Floats
    texts: Sequence[str]
    pairs: Sequence[Mapping[str, Any]]
    kind: str
    split: str
    total: int
    loss: str
    parameters: Mapping[str, Any]
    is_sum: bool

    @property
    def beta(self) -> float:
        return float(self.parameters.get("beta", 1.0))

    @property
    def per_token(self) -> bool:
        """Whether the loss averages log-probs over the tokens of a response."""
        return self.loss in PER_TOKEN or (self.loss == "ipo" and bool(self.parameters.get("average", True)))

    @property
    def sides_KP2(self) -> Floats:
        """The coordinates of the pairs: log-ratios, or without a reference the change since the first moment; rewards
        of a reward model. Per token if the loss is."""
        origin = self.reference_P2 if self.reference_P2 is not None else self.logps_KP2[0]
        sides = self.logps_KP2 if self.kind == "reward" else self.logps_KP2 - origin
        return sides / self.tokens_P2 if self.per_token and self.kind != "reward" else sides

    @property
    def margin_KP(self) -> Floats:
        """The margins that the loss sees: beta h, without a reference beta times the difference of the log-probs; for
        a reward model r_w - r_l."""
        sides = self.sides_KP2
        if self.kind != "reward" and self.reference_P2 is None:  # the log-probs, not their change
            sides = self.logps_KP2 / self.tokens_P2 if self.per_token else self.logps_KP2
        difference: Floats = sides[..., 0] - sides[..., 1]
        return difference if self.kind == "reward" else self.beta * difference

    @property
    def has_margins(self) -> bool:
        """Whether `margin_KP` is the difference of the two coordinates: not without a reference, where these are
        changes."""
        return self.kind == "reward" or self.reference_P2 is not None


def read_pairs(folder: Path, config: Mapping[str, Any], until: int | None = None) -> RunPairs | None:
    """Return the scored pairs of a run; None if it has none. Raises ValueError for damaged files.

    until   the step whose weights are in final/, if these are not the last ones
    """
    source = folder / FOLDER
    if not (source / "pairs.json").is_file():
        return None
    try:
        drawn = json.loads((source / "pairs.json").read_text(encoding="utf-8"))
        moments = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(source.glob("step-*.json"))]
        moments = [moment for moment in moments if until is None or moment["step"] <= until]
        logps = np.array([moment["logps"] for moment in moments], dtype=np.float64)
        if logps.shape != (len(moments), len(drawn["pairs"]), 2) or not len(moments):
            raise ValueError("the files do not have the same pairs")
        reference = None if drawn["reference"] is None else np.array(drawn["reference"], dtype=np.float64)
        if not np.isfinite(logps).all() or (reference is not None and not np.isfinite(reference).all()):
            raise ValueError("a log-prob is not finite")
        if any(not 0 <= text < len(drawn["texts"]) for pair in drawn["pairs"] for text in pair["texts"]):
            raise ValueError("a text is missing")
        loss, parameters, is_sum = _loss_of(config, drawn)
        return RunPairs(
            steps=tuple(int(moment["step"]) for moment in moments),
            logps_KP2=logps,
            reference_P2=reference,
            label_P=np.array([pair["label"] for pair in drawn["pairs"]], dtype=np.float64),
            tokens_P2=np.array([pair["tokens"] for pair in drawn["pairs"]], dtype=np.float64),
            texts=drawn["texts"],
            pairs=drawn["pairs"],
            kind=str(drawn["kind"]),
            split=str(drawn["split"]),
            total=int(drawn["total"]),
            loss=loss,
            parameters=parameters,
            is_sum=is_sum,
        )
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{source}: {type(error).__name__}: {error}") from None


def read_tokens(folder: Path) -> list[dict[str, Any]]:
    """Return the token rewards of some pairs; empty if the run has none. Raises ValueError for a damaged file."""
    path = folder / FOLDER / "tokens.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def _loss_of(config: Mapping[str, Any], drawn: Mapping[str, Any]) -> tuple[str, dict[str, Any], bool]:
    """Return the name and parameters of the loss, and whether it is a sum. Of a sum, the first term with a margin."""
    if drawn["kind"] == "reward":
        return "sigmoid", {"beta": 1.0}, False
    terms = config.get("loss") or {}
    listed = terms if isinstance(terms, list) else [terms]
    first = next((term for term in listed if term.get("name") in (*GROUNDS, *PER_TOKEN)), listed[0])
    parameters = {k: v for k, v in first.items() if k not in ("name", "weight") and not isinstance(v, str)}
    return (
        str(first.get("name", "sigmoid")),
        {**parameters, "beta": float(drawn["beta"])},
        len(listed) > 1,
    )


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def shown_pairs(number: int, most: int = SHOWN) -> list[int]:
    """Return which of `number` pairs are points of a figure, by a seeded draw."""
    return sorted(random.Random(0).sample(range(number), min(number, most)))


def histogram_edges(run: RunPairs) -> tuple[float, float, int]:
    """Return the range of the margins' histogram, the same at all steps, and its number of bins."""
    low, high = np.quantile(run.margin_KP, [0.002, 0.998])
    reach = max(abs(float(low)), abs(float(high)), 1e-6)
    power = 10.0 ** np.floor(np.log10(reach))
    top = next(f * power for f in (1, 1.5, 2, 3, 5, 7.5, 10) if f * power >= reach * (1 - 1e-9))
    return -float(round(top, 10)), float(round(top, 10)), BINS


def facts_of(run: RunPairs) -> list[dict[str, Any]]:
    """Return what each moment says about all scored pairs: histogram of margins, accuracy, displacement, push."""
    low, high, bins = histogram_edges(run)
    edges = np.linspace(low, high, bins + 1)
    facts = []
    for sides, margin in zip(run.sides_KP2, run.margin_KP, strict=True):
        wins = sigmoid(margin)
        inside = np.clip(margin, low + 1e-9 * (high - low), high - 1e-9 * (high - low))
        counts, _ = np.histogram(inside, edges)
        residual = np.abs(run.label_P - wins)
        push, _ = np.histogram(inside, edges, weights=residual)
        weight = sigmoid(-margin)
        facts.append(
            {
                "counts": counts.tolist(),
                "push": [round(float(x), 2) for x in push],
                "mean": round(float(margin.mean()), 4),
                "accuracy": round(float(((margin > 0) + 0.5 * (margin == 0)).mean()), 4),
                "displaced": round(float((sides < 0).all(1).mean()), 4),
                "weight": round(float(weight.mean()), 4),
                "wrong_share": round(float(weight[margin < 0].sum() / max(weight.sum(), 1e-300)), 4),
                "residual": round(float(residual.mean()), 4),
                "lift": [round(float(x), 4) for x in sides.mean(0)],
            }
        )
    return facts


def text_table(run: RunPairs, chosen: Sequence[int]) -> tuple[list[str], list[list[int]]]:
    """Return the texts of some pairs, cut, and for each pair the numbers of its prompt, chosen and rejected text."""
    texts: dict[str, int] = {}

    def number(text: str, *, from_end: bool) -> int:
        if len(text) > MAX_TEXT:
            text = f"...{text[3 - MAX_TEXT :]}" if from_end else f"{text[: MAX_TEXT - 3]}..."
        return texts.setdefault(text, len(texts))

    rows = [
        [number(run.texts[t], from_end=place == 0) for place, t in enumerate(run.pairs[index]["texts"])]
        for index in chosen
    ]
    return list(texts), rows
