"""The verdict on a run: one sentence, the numbers that carry it, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from preftune.formulas import Z95
from preftune.report.figures.words import in_plain_text, num, percent, short, signed
from preftune.report.page import Number, Step
from preftune.report.read import Run, read_run


def verdict(run: Run) -> str:
    """Return one sentence on what the run did."""
    if not run.finished:
        steps = max((int(line["step"]) for line in run.lines), default=0)
        return f"This run is not finished: its last metrics are those of {run.unit} {steps}."
    makers: dict[str, Callable[[Run], str]] = {
        "dpo": _dpo, "reward": _reward, "ppo": _ppo, "iterate": _iterate, "sft": _sft
    }  # fmt: skip
    return makers.get(run.method, _sft)(run)


def closing_lines(folder: Path) -> list[str]:
    """Return the last lines of a command: what happened, and whether it looks healthy and why."""
    run, _ = read_run(folder)
    run = replace(run, finished=True)
    advice = run.manifest.get("advice") or {}
    lines = [f"result: {verdict(run)}"]
    if advice:
        lines.append(f"health: {len(advice)} warning{'s' if len(advice) > 1 else ''}, see above and in the report")
    elif run.values("drift/gap") or run.ends("loss"):
        rose = "the held-out loss did not rise" if run.values("loss") else "there are no held-out data to compare with"
        lines.append(f"health: no metric has exceeded its threshold, and {rose}")
    return [in_plain_text(line) for line in lines]


def _dpo(run: Run) -> str:
    accuracy, kl, displaced = run.ends("rewards/accuracies"), run.ends("drift/kl"), run.ends("drift/displaced")
    if accuracy is None:
        loss = run.ends("loss")
        return f"The loss is {short(loss[1])} at the end ({short(loss[0])} at the start)." if loss else "No metrics."
    text = f"{percent(accuracy[1])} of the {accuracy[2]} pairs are in the right order"
    error = run.ends("drift/kl_se")
    if kl and kl[1] > (Z95 * error[1] if error else 0.0):
        text += f", {num(kl[1])} nats from the reference"
    elif kl:
        text += ", and the policy has not moved measurably from its reference"
    if displaced and displaced[1] > 0.5:
        text += f", and in {percent(displaced[1])} of them both responses became less likely"
    return f"{text}."


def _reward(run: Run) -> str:
    accuracy = run.ends("rewards/accuracies")
    if accuracy is None:
        return "The reward model is trained."
    return f"The reward model ranks {percent(accuracy[1])} of the {accuracy[2]} pairs correctly."


def _ppo(run: Run) -> str:
    score, kl = run.ends("objective/score"), run.ends("objective/kl")
    if score is None:
        return "PPO finished."
    price = f" at {num(kl[1])} nats from the reference" if kl else ""
    return f"PPO took the reward from {short(score[0])} to {short(score[1])}{price}."


def _iterate(run: Run) -> str:
    score, kl = run.ends("objective/score"), run.ends("objective/kl")
    rounds = max((step for step, _ in run.values("objective/kl")), default=0)
    if score is None:
        return f"{rounds} rounds took the policy {num(kl[1])} nats from the first model." if kl else "The rounds ended."
    price = f", {num(kl[1])} nats from the first model" if kl else ""
    return f"{rounds} rounds took the reward from {short(score[0])} to {short(score[1])}{price}."


def _sft(run: Run) -> str:
    loss = run.ends("loss")
    if loss is None:
        return "The run has no metrics."
    word = "fell" if loss[1] < loss[0] else "rose"
    return f"The {loss[2]} loss {word} from {num(loss[0], 3)} to {num(loss[1], 3)} nats per token."


def numbers(run: Run) -> list[Number]:
    """Return the three numbers that carry the verdict, each with what to compare it with."""
    shown: list[Number] = []
    for name, show, text in _NUMBERS.get(run.method, _NUMBERS["sft"]):
        ends = run.ends(name)
        if ends is None:
            continue
        first, last, split = ends
        error = run.ends(f"{name}_se")
        interval = f" \u00b1 {show(Z95 * error[1]).lstrip('+')}" if error and error[1] > 0 else ""
        before = f"; {show(first)} at the start" if first != last else ""
        shown.append(Number(show(last), f"{text.format(split=split)}{interval}{before}"))
    return shown[:3]


def _exp(x: float) -> str:
    return num(math.exp(min(x, 50.0)), 1)


_NUMBERS: dict[str, tuple[tuple[str, Callable[[float], str], str], ...]] = {
    "dpo": (
        ("rewards/accuracies", percent, "of the {split} pairs in the right order"),
        ("drift/kl", num, "nats of KL from the reference, per response"),
        ("drift/displaced", percent, "of the {split} pairs with both responses less likely"),
        ("loss", lambda x: num(x, 3), "{split} loss"),
        ("rewards/margins", lambda x: signed(x, 3), "mean margin of the {split} pairs"),
    ),
    "reward": (
        ("rewards/accuracies", percent, "of the {split} pairs ranked correctly"),
        ("loss", lambda x: num(x, 3), "{split} loss; ln 2 = 0.693 is a guess"),
        ("calibration/ece", lambda x: num(x, 3), "calibration error of the predicted shares"),
    ),
    "ppo": (
        ("objective/score", lambda x: num(x, 3), "reward of the samples"),
        ("objective/kl", num, "nats of KL from the reference, per response"),
        ("responses/ended", percent, "of the samples end"),
    ),
    "iterate": (
        ("objective/score", lambda x: num(x, 3), "reward of the samples"),
        ("objective/kl", num, "nats of KL from the first model, per response"),
        ("diversity", percent, "of the word pairs are distinct"),
    ),
    "sft": (
        ("loss", lambda x: num(x, 3), "{split} loss, nats per token"),
        ("loss", _exp, "perplexity on {split} tokens"),
        ("grad_norm", short, "gradient norm"),
    ),
}


def steps(run: Run) -> list[Step]:
    """Return at most three commands to run next."""
    final = shlex.quote(str(run.folder / "final"))
    section = run.config.get("data") or {}
    data = section.get("eval") if isinstance(section.get("eval"), str) else section.get("train")
    data = shlex.quote(data) if isinstance(data, str) else "DATA"
    base = shlex.quote(str((run.config.get("model") or {}).get("path", "MODEL")))
    if not run.finished:
        return []
    if run.method == "reward":
        return [
            Step(f"preftune score --reward {final} --data {data}", "Score pairs, and see where the model is wrong."),
            Step("preftune init ppo", "Write a config to train a policy against this reward."),
        ]
    chat = Step(
        f"preftune chat {final} --beside {base}", "Read answers of both models side by side before you trust a number."
    )
    if run.method == "sft":
        tune = Step(
            f"preftune dpo model.path={final} data.train=PAIRS",
            "Train on preference pairs, with this model as the reference.",
        )
        return [chat, tune]
    judge = Step(
        f"preftune eval winrate --policy {final} --against {base} --data {data} --judge REWARD",
        "Let a judge compare both models: accuracy on pairs is not quality of answers.",
    )
    if run.method == "dpo":
        score = Step(
            f"preftune score --policy {final} --reference {base} --data {data} --out scores.jsonl --tokens",
            "See the implicit reward of every pair, and of every token.",
        )
        return [chat, judge, score]
    return [chat, judge]


def warnings(run: Run, problem: str) -> list[str]:
    """Return what is wrong with the files, and the advice of the run."""
    texts = [problem] if problem else []
    texts += [str(entry["text"]) for entry in (run.manifest.get("advice") or {}).values()]
    return [text[:1].upper() + text[1:] for text in texts]
