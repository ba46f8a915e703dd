"""The verdict on a run: one sentence, the numbers that carry it, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from preftune.formulas import Z95
from preftune.model.locate import with_quant
from preftune.report.figures.words import in_page_text, in_plain_text, num, percent, short, signed
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
    return makers.get(run.method, _sft)(run.of_final())


def closing_lines(folder: Path) -> list[str]:
    """Return the last lines of a command: what happened, and whether it looks healthy and why."""
    run, _ = read_run(folder)
    run = replace(run, finished=True)
    advice = run.manifest.get("advice") or {}
    lines = [f"result: {verdict(run)}"]
    if advice:
        lines.append(f"health: {len(advice)} warning{'s' if len(advice) > 1 else ''}, see above and in the report")
    elif run.method in ("ppo", "iterate"):
        lines += _reward_health(run.of_final())
    elif run.values("drift/gap") or run.ends("loss"):
        lines.append(f"health: no metric has exceeded its threshold, and {_held_out(run.of_final())}")
    return [in_plain_text(line) for line in lines]


def _reward_health(run: Run) -> list[str]:
    """Return whether the reward of the samples rose, as a line; none without evaluations."""
    score = [value for _, value in run.values("objective/score")]
    if len(score) < 2:
        return []
    word = "rose" if score[-1] > score[0] else "did not rise"
    return [f"health: no metric has exceeded its threshold, and the reward of the samples {word}"]


def _held_out(run: Run) -> str:
    """Return whether the held-out loss rose."""
    losses = [loss for _, loss in run.values("loss")]
    if not losses:
        return "there are no held-out data to compare with"
    if losses[-1] <= min(losses):
        return "the held-out loss did not rise"
    return f"the held-out loss rose by no more than noise, from {short(min(losses))} to {short(losses[-1])}"


def _dpo(run: Run) -> str:
    accuracy, kl, displaced = run.ends("rewards/accuracies"), run.ends("drift/kl"), run.ends("drift/displaced")
    if accuracy is None:
        loss = run.ends("loss")
        return f"The loss is {short(loss[1])} at the end ({short(loss[0])} at the start)." if loss else "No metrics."
    text = f"{percent(accuracy[1])} of the {_pairs(accuracy[2])} are in the right order"
    error = run.ends("drift/kl_se")
    if kl and kl[1] > (Z95 * error[1] if error else 0.0):
        text += f", at {num(kl[1])} nats from the reference"
    elif kl:
        text += ", and the policy has not moved measurably from its reference"
    if displaced and displaced[1] > 0.5:
        text += f", and both responses became less likely in {percent(displaced[1])} of the pairs"
    return f"{text}."


def _pairs(split: str) -> str:
    """Return what a share of pairs is of: without held-out pairs, it is that of one training step."""
    return "held-out pairs" if split == "held-out" else "pairs of the last training step"


def _reward(run: Run) -> str:
    accuracy = run.ends("rewards/accuracies")
    if accuracy is None:
        return "The reward model is trained."
    return f"The reward model ranks {percent(accuracy[1])} of the {_pairs(accuracy[2])} correctly."


def _ppo(run: Run) -> str:
    score, kl = run.ends("objective/score"), run.ends("objective/kl")
    if score is None:
        return "PPO finished."
    price = f" at {num(kl[1])} nats from the reference" if kl else ""
    return f"PPO took the reward from {short(score[0])} to {short(score[1])}{price}."


def _iterate(run: Run) -> str:
    score, kl = run.ends("objective/score"), run.ends("objective/kl")
    rounds = max((step for step, _ in run.values("objective/kl")), default=0)
    what = "1 round" if rounds == 1 else f"{rounds} rounds"
    if score is None:
        return f"{what} took the policy {num(kl[1])} nats from the first model." if kl else "The rounds ended."
    price = f", {num(kl[1])} nats from the first model" if kl else ""
    return f"{what} took the reward from {short(score[0])} to {short(score[1])}{price}."


def _sft(run: Run) -> str:
    loss = run.ends("loss")
    if loss is None:
        return "The run has no metrics."
    if num(loss[0], 3) == num(loss[1], 3):
        return f"The {loss[2]} loss is {num(loss[1], 3)} nats per token, as at the start."
    word = "fell" if loss[1] < loss[0] else "rose"
    return f"The {loss[2]} loss {word} from {num(loss[0], 3)} to {num(loss[1], 3)} nats per token."


def numbers(run: Run) -> list[Number]:
    """Return the three numbers that carry the verdict, each with what to compare it with."""
    run = run.of_final()
    shown: list[Number] = []
    for name, show, text in _NUMBERS.get(run.method, _NUMBERS["sft"]):
        ends = run.ends(name)
        if ends is None:
            continue
        first, last, split = ends
        error = run.ends(f"{name}_se")
        interval = f"\u00b1 {show(Z95 * error[1]).lstrip('+')} " if error and error[1] > 0 else ""
        before = f"; {show(first)} at the start" if first != last else ""
        shown.append(Number(show(last), f"{interval}{text.format(split=split, pairs=_pairs(split))}{before}"))
    return shown[:3]


def _exp(x: float) -> str:
    return num(math.exp(min(x, 50.0)), 1)


_NUMBERS: dict[str, tuple[tuple[str, Callable[[float], str], str], ...]] = {
    "dpo": (
        ("rewards/accuracies", percent, "of the {pairs} in the right order"),
        ("drift/kl", num, "nats of KL from the reference, per response"),
        ("drift/displaced", percent, "of the {pairs} with both responses less likely"),
        ("loss", lambda x: num(x, 3), "{split} loss"),
        ("rewards/margins", lambda x: signed(x, 3), "mean margin of the {pairs}"),
    ),
    "reward": (
        ("rewards/accuracies", percent, "of the {pairs} ranked correctly"),
        ("loss", lambda x: num(x, 3), "{split} loss, where 0.693 (ln 2) is a guess"),
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
    data = data_argument(run.config)
    model = run.config.get("model") or {}
    base_path = with_quant(str(model.get("path", "MODEL")), model.get("quant"))
    base = shlex.quote(base_path)
    section = run.config.get("reference")
    path = section.get("path") if isinstance(section, Mapping) else None  # of iterate, it is a word
    reference = shlex.quote(str(path)) if path else base
    if not run.finished:
        return []
    if run.method == "reward":
        return [
            Step(f"preftune score --reward {final} --data {data}", "Score pairs, and see where the model is wrong."),
            Step("preftune init ppo", "Write a config to train a policy against this reward."),
        ]
    chat = Step(
        chat_command(str(run.folder / "final"), base_path),
        "Read answers of both models side by side before you trust a number.",
    )
    if run.method == "sft":
        tune = Step(
            f"preftune dpo model.path={final} data.train=PAIRS",
            "Train on preference pairs, with this model as the reference.",
        )
        return [chat, tune]
    judge = Step(
        f"preftune eval winrate --policy {final} --against {base} --data {data} --judge REWARD",
        "Let a judge compare both models: "
        + (
            "a high reward is not quality of answers."
            if run.method in ("ppo", "iterate")
            else "accuracy on pairs is not quality of answers."
        ),
    )
    if run.method == "dpo":
        score = Step(
            f"preftune score --policy {final} --reference {reference} --data {data} --tokens",
            "See the implicit reward of every pair, and of every token.",
        )
        return [chat, judge, score]
    return [chat, judge]


def chat_command(policy: str, beside: str | None = None) -> str:
    """Return the command to read responses of a policy, beside those of a different model if there is one."""
    return f"preftune chat {shlex.quote(policy)}" + (f" --beside {shlex.quote(beside)}" if beside else "")


def data_argument(config: Mapping[str, Any]) -> str:
    """Return the held-out file or the training data of a config for a command; DATA if there are several."""
    section = config.get("data") or {}
    source = section.get("eval") if isinstance(section.get("eval"), str) else section.get("train")
    if isinstance(source, list) and len(source) == 1:
        source = source[0]
    if isinstance(source, Mapping):
        source = source.get("path")
    return shlex.quote(source) if isinstance(source, str) else "DATA"


def warnings(run: Run, problem: str) -> list[str]:
    """Return what is wrong with the files, and the advice of the run."""
    texts = [problem] if problem else []
    texts += [str(entry["text"]) for entry in (run.manifest.get("advice") or {}).values()]
    return [in_page_text(text[:1].upper() + text[1:]) for text in texts]
