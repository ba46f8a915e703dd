"""The figures of a run's scored pairs: landscape, gradient weight, one pair by hand, token rewards, browser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from preftune.report.figures.drawn_pairs import (
    COMPARED,
    GROUNDS,
    RunPairs,
    facts_of,
    histogram_edges,
    shown_pairs,
    sigmoid,
    text_table,
)
from preftune.report.figures.words import num, percent, signed
from preftune.report.page import Absent, Card, Part

FEW = 20  # pairs below which counts are shown and no shares
TOKENS_TITLE = "Which tokens make the reward"
TOKENS_READ = (
    "The reward of a token is beta times the log of its probability under the policy over that under the reference. "
    "The sum over a response is its reward."
)
TOKENS_READ_ALONE = "The reward of a token is beta times its log-prob. The sum over a response is its reward."
MOST_TOKENS = 400  # of a response
TOKENS_HEALTHY = "Colour where the two responses differ in what matters, on the words that make one better."
TOKENS_WARNS = "Colour on the end token, on greetings or on punctuation: the policy learned a habit."
PAIRS_TITLE = "Browse the pairs"
SINCE_START = "log π since step 0"  # the axis of a run without a reference
Reward = Callable[[str], float]


def pair_data(run: RunPairs) -> dict[str, Any]:
    """Return the data that the landscape, the gradient weight and the logistic curve share."""
    chosen = shown_pairs(len(run.pairs))
    fine = run.per_token or float(np.abs(run.sides_KP2).max()) < 1
    scale = 10000 if fine else 100
    texts, numbers = text_table(run, chosen)
    frames = np.rint(run.sides_KP2[:, chosen, :] * scale).astype(int)
    single = run.loss in GROUNDS and run.has_margins
    grounds = [run.loss] if single else []
    if run.kind != "reward" and run.has_margins and not run.per_token:
        grounds += [name for name in COMPARED if name != run.loss]
    why = (
        "without a reference, the loss is not a function of these two numbers"
        if not run.has_margins
        else (f"the loss {run.loss} is not a function of these two numbers alone")
    )
    return {
        "loss": run.loss,
        "kind": run.kind,
        "parameters": {k: v for k, v in run.parameters.items() if isinstance(v, int | float)},
        "axis": "log π / ref" if run.reference_P2 is not None else SINCE_START,
        "unit": "nats per token" if run.per_token else "nats",
        "digits": 4 if fine else 2,
        "scale": scale,
        "steps": list(run.steps),
        "split": run.split,
        "scored": len(run.pairs),
        "total": run.total,
        "mean_label": round(float(run.label_P.mean()), 4),
        "grounds": grounds,
        "no_ground": f"No ground is drawn: {why}.",
        "margin_name": margin_name(run),
        "texts": texts,
        "pairs": [[*row, round(float(run.label_P[i]), 3)] for row, i in zip(numbers, chosen, strict=True)],
        "frames": frames.reshape(len(run.steps), -1).tolist(),
        "hist": facts_of(run),
        "edges": list(histogram_edges(run)),
    }


def margin_name(run: RunPairs) -> str:
    """Return the name of the margin's axis."""
    if run.kind == "reward":
        return "margin: reward of chosen \u2212 reward of rejected"
    per = " per token" if run.per_token else ""
    return f"margin m: beta \u00d7 (log-ratio of chosen \u2212 of rejected){per}"


def source_of(run: RunPairs, computed: str) -> str:
    """Return which numbers of a card are measured and which are computed."""
    drawn = (
        f"{len(run.pairs)} of {run.total:,} {run.split} pairs, by a seeded draw"
        if len(run.pairs) < run.total
        else (f"all {run.total:,} {run.split} pairs")
    )
    return f"Measured: {drawn}, scored at {len(run.steps)} moments of the run. {computed}"


def landscape(run: RunPairs, data: Mapping[str, Any]) -> Card:
    """Return the loss as a landscape over the two log-ratios."""
    before = "the reference does" if run.reference_P2 is not None else "at step 0"
    shade = "A stronger shade is a higher loss. " if data["grounds"] else ""
    ground = f" Computed: the ground{', of this term of the loss alone' if run.is_sum else ''}." if shade else ""
    return Card(
        "landscape",
        "The loss is a landscape over two log-ratios" if data["grounds"] else "Where the pairs moved",
        landscape_sentence(data),
        f"A point is one pair: further right if the policy finds its chosen response more likely than {before}, higher "
        f"if it finds the rejected one more likely. {shade}Threads show the path of each pair.",
        "The cloud moves to the lower right: chosen up, rejected down.",
        "Squares in the lower left, where both responses became less likely. The loss sees only the difference, so it "
        "cannot tell.",
        source_of(run, f"Points: {len(data['pairs'])} of these pairs; shares: all of them.{ground}"),
        data,
        "scored_pairs",
    )


def landscape_sentence(data: Mapping[str, Any], step: int = -1) -> str:
    """Return the sentence of the landscape for a moment, as assets/figures/landscape.js."""
    facts, number = data["hist"][step], data["scored"]
    if data["steps"][step] == 0 and data["axis"] == SINCE_START:
        return "Before the first step, every pair is at the cross: the points show the change since then."
    if data["steps"][step] == 0 and facts["lift"] == [0, 0]:
        return (
            "Before the first step, every pair is at the cross: policy and reference are the same, and so is the loss "
            "of all pairs."
        )

    def share(x: float) -> str:
        return percent(x) if number >= FEW else f"{round(x * number)} of {number}"

    lift = [signed(x, data["digits"]) for x in facts["lift"]]
    return (
        f"By step {data['steps'][step]}, {share(facts['accuracy'])} of the {data['split']} pairs are in the right "
        f"order{'' if data['unit'] == 'nats' else ' per token'}, and in {share(facts['displaced'])} both responses "
        f"became less likely: on average {lift[0]} (chosen) and {lift[1]} (rejected) {data['unit']}."
    )


def gradient(run: RunPairs, data: Mapping[str, Any]) -> Part:
    """Return the push of a pair against its margin."""
    title = "Pairs that are still wrong push hardest"
    if not run.has_margins:
        reason = "A loss without a reference has no margin of log-ratios, so there is no curve to draw."
        return Absent("gradient", title, reason)
    return Card(
        "gradient",
        title,
        gradient_sentence(data),
        "Bars count pairs by margin; the filled part is the push that these pairs would give. The curve is the push of "
        "one pair.",
        "The bars move to the right through the steps, and less of them is filled.",
        "A heap that stays left of 0 while the training margin grows: the pairs contradict each other, or are learned "
        "by heart.",
        source_of(run, "Computed: the curve and the push."),
        data,
        "scored_pairs",
    )


def gradient_sentence(data: Mapping[str, Any]) -> str:
    """Return the sentence of the gradient weight at the end, as assets/figures/gradient.js."""
    facts, step, loss = data["hist"][-1], data["steps"][-1], data["loss"]
    wrong = percent(1 - facts["accuracy"])
    start = data["hist"][0]["weight"]
    if loss in ("hinge", "ipo"):
        return {
            "hinge": "hinge pushes all pairs equally until their margin is 1, and then not at all.",
            "ipo": "ipo pushes in proportion to what a margin lacks, and back if it is too large.",
        }[loss]
    if loss not in ("sigmoid", "sigmoid_norm", "robust", "exo_pair"):
        return (
            f"{loss} weighs a pair by more than its margin. At step {step}, {wrong} of the {data['split']} pairs are "
            "in the wrong order."
        )
    if loss != "sigmoid":
        return f"At step {step}, {wrong} of the {data['split']} pairs are in the wrong order."
    if step == 0 and facts["mean"] == 0:
        return "At the start every pair pushes with half of its full strength: the margin is 0, and sigmoid(0) = 0.5."
    now = num(facts["weight"])
    change = f"is {now}" if now == num(start) else f"went from {num(start)} to {now}"
    return (
        f"At step {step}, {wrong} of the {data['split']} pairs are in the wrong order and make "
        f"{percent(facts['wrong_share'])} of the push; the mean push {change}."
    )


def by_hand(run: RunPairs, reward: Reward | None = None) -> Part:
    """Return one pair by hand: four log-probs in, one loss out. `reward`: the true reward of a text."""
    title = "One pair by hand"
    if run.reference_P2 is None or run.loss != "sigmoid" or run.is_sum:
        used = "a sum of losses" if run.is_sum else f"the loss {run.loss}"
        return Absent("by_hand", title, f"This figure computes the loss sigmoid with a reference. This run has {used}.")
    change = run.sides_KP2[-1]
    gap = change[:, 0] - change[:, 1]
    kinds = [
        ("chosen up, rejected down", (change[:, 0] > 0) & (change[:, 1] < 0)),
        ("both less likely", (change < 0).all(1) & (gap > 0)),
        ("still in the wrong order", gap < 0),
    ]
    if not any(mask.any() for _, mask in kinds):
        kinds = [("the first pair", np.arange(len(gap)) == 0)]
    examples = []
    for why, mask in kinds:
        rows = np.flatnonzero(mask)
        if len(rows):
            index = int(rows[np.argsort(gap[rows])[len(rows) // 2]])
            texts = [run.texts[t] for t in run.pairs[index]["texts"]]
            true = {"reward": [round(reward(t), 3) for t in texts[1:]]} if reward else {}
            examples.append(
                {
                    "why": why,
                    "prompt": texts[0],
                    "chosen": texts[1],
                    "rejected": texts[2],
                    "label": round(float(run.label_P[index]), 3),
                    "reference": [round(float(x), 2) for x in run.reference_P2[index]],
                    "policy": [round(float(x), 2) for x in run.logps_KP2[-1, index]],
                    **true,
                }
            )
    smoothing = float(run.parameters.get("label_smoothing", 0.0))
    data = {"beta": run.beta, "label_smoothing": smoothing, "examples": examples}
    return Card(
        "by_hand",
        title,
        by_hand_sentence(examples[0], run.beta, smoothing),
        "Four log-probs go in, one loss comes out. Each line uses only lines above it.",
        "The arrow of the chosen response points to the right, or is at least the shorter one to the left.",
        "A small loss with both arrows to the left: the order is right, and both responses are forgotten.",
        f"Measured: the four log-probs of {len(examples)} pairs at the end of the run, at beta {run.beta:g}. Yours: "
        "whatever you set.",
        data,
        "by_hand",
    )


def by_hand_sentence(example: Mapping[str, Any], beta: float, smoothing: float) -> str:
    """Return the sentence of a pair, as assets/figures/by_hand.js."""
    (pw, pl), (rw, rl), p = example["policy"], example["reference"], example["label"]
    q = p * (1 - smoothing) + (1 - p) * smoothing
    chosen, rejected = pw - rw, pl - rl
    margin = beta * (chosen - rejected)
    loss = float(-q * -np.logaddexp(0, -margin) - (1 - q) * -np.logaddexp(0, margin))
    push = q - float(np.exp(-np.logaddexp(0, -margin)))
    both = ", although both are already less likely than under the reference" if chosen < 0 and rejected < 0 else ""
    return (
        f"The policy moved the chosen response by {signed(chosen)} nats and the rejected one by {signed(rejected)}. "
        f"That is a margin of {signed(margin, 3)} and a loss of {num(loss, 3)}; the next step "
        f"{'widens' if push > 0 else 'narrows'} the margin{both}."
    )


def tokens(run: RunPairs, rows: Sequence[Mapping[str, Any]]) -> Part:
    """Return the rewards of single tokens of some pairs."""
    rows = [row for row in rows if int(row["pair"]) < len(run.pairs)]
    if not rows:
        return Absent("tokens", TOKENS_TITLE, "The run did not score its tokens.")
    shown = []
    for row in rows:
        prompt = run.texts[run.pairs[int(row["pair"])]["texts"][0]]
        sides = {name: _shown_tokens(row[name], run.per_token) for name in ("chosen", "rejected")}
        margin = sum(v for _, v in sides["chosen"]) - sum(v for _, v in sides["rejected"])
        shown.append({"prompt": prompt[-600:], **sides, "margin": round(margin, 4)})
    read = TOKENS_READ if run.reference_P2 is not None else TOKENS_READ_ALONE
    return Card(
        "tokens",
        TOKENS_TITLE,
        tokens_sentence(shown[0]),
        read + (" It is divided by the number of tokens, as in the loss." if run.per_token else ""),
        TOKENS_HEALTHY,
        TOKENS_WARNS,
        f"Measured: {len(shown)} pairs at the end of the run, those in the most wrong order first.",
        {"pairs": shown},
        "tokens",
    )


def _shown_tokens(tokens: Sequence[tuple[str, float]], per_token: bool) -> list[list[Any]]:
    """Return the first MOST_TOKENS tokens of a response with their rewards, and the sum of the rest as one token."""
    number = len(tokens) if per_token else 1
    shown = [[text, round(value / number, 5)] for text, value in tokens[:MOST_TOKENS]]
    rest = tokens[MOST_TOKENS:]
    if rest:
        shown.append([f" [{len(rest):,} more tokens]", round(sum(value for _, value in rest) / number, 5)])
    return shown


def tokens_sentence(row: Mapping[str, Any]) -> str:
    """Return the sentence of a pair's tokens, as assets/figures/tokens.js."""
    chosen, rejected = (sum(value for _, value in row[name]) for name in ("chosen", "rejected"))
    word = "agrees with" if chosen > rejected else "contradicts" if chosen < rejected else "does not know"
    return (
        f"The tokens of the chosen response add up to {signed(chosen, 3)}, those of the rejected one to "
        f"{signed(rejected, 3)}: a margin of {signed(chosen - rejected, 3)}, so the policy {word} the label."
    )


def pairs(run: RunPairs) -> Card:
    """Return the browser of the scored pairs."""
    margin = run.margin_KP[-1]
    flipped = sigmoid(-margin)
    texts, numbers = text_table(run, range(len(run.pairs)))
    rows = []
    for index, (pair, row) in enumerate(zip(run.pairs, numbers, strict=True)):
        rows.append(
            {
                "origin": str(pair["origin"]),
                "prompt": row[0],
                "chosen": row[1],
                "rejected": row[2],
                "margin": round(float(margin[index]), 4),
                "flip": round(float(flipped[index]), 4),
                "longer": int(pair["tokens"][0] - pair["tokens"][1]),
                "tokens": pair["tokens"],
                "source": str(pair.get("source", "")),
            }
        )
    sources = sorted({row["source"] for row in rows} - {""})
    wrong = sum(row["margin"] < 0 for row in rows)
    return Card(
        "pairs",
        PAIRS_TITLE,
        f"{wrong} of {len(rows)} scored pairs are still in the wrong order: read some, mark the labels that are wrong, "
        "and save them as a list for the setting data.drop.",
        "One row is one pair. P(flipped) = sigmoid(\u2212margin) is the probability of the opposite label under the "
        "model of Bradley and Terry. The length is that of the chosen response minus that of the rejected one, in "
        "tokens.",
        "Pairs with the lowest margins are hard or ambiguous, but their labels are right.",
        "Wrong labels or broken texts at the top of the list: drop them and train again.",
        source_of(run, f"Texts are cut to {400} characters."),
        {"rows": rows, "texts": texts, "sources": sources or None},
        "pairs",
    )
