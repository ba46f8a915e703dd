"""The numbers of docs/understand/loss.md are those of the formulas, and of preftune's losses."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from preftune import losses
from preftune.types import PairLogps

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "understand" / "loss.md").read_text()


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def rows(heading: str, columns: int) -> list[list[str]]:
    """The cells of the first table below a line with `heading`, without its head."""
    lines = TEXT.partition(heading)[2].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[first + 2 : first + 20]]
    return [row for row in cells if len(row) == columns]


def test_the_tilt_is_the_closed_form() -> None:
    table = rows("**By hand.**", 5)[:3]
    reference, reward = ([float(row[i]) for row in table] for i in (1, 2))
    weights = [p * math.exp(r) for p, r in zip(reference, reward, strict=True)]
    z = sum(weights)
    best = [weight / z for weight in weights]
    assert [row[3] for row in table] == [f"{weight:.4f}" for weight in weights]
    assert [row[4] for row in table] == [f"{probability:.4f}" for probability in best]
    before, after = (sum(p * r for p, r in zip(policy, reward, strict=True)) for policy in (reference, best))
    kl = sum(p * math.log(p / q) for p, q in zip(best, reference, strict=True))
    assert math.isclose(after - kl, math.log(z))
    for value in (f"$Z = {z:.4f}$", f"from {before:.3f} to {after:.3f}", f"{kl:.3f} nats", f"= {math.log(z):.3f}$"):
        assert value in TEXT, value


def test_the_pair_by_hand_follows_from_its_four_log_probs() -> None:
    values = {row[0]: [float(number) for number in row[2].split(",")] for row in rows("## One pair by hand", 3)}
    (ref_w, ref_l), (pi_w, pi_l) = values["log-probs under the reference"], values["log-probs under the policy"]
    h = (pi_w - ref_w) - (pi_l - ref_l)
    expected = {
        "log-ratio of the chosen response": [pi_w - ref_w],
        "log-ratio of the rejected response": [pi_l - ref_l],
        "$h$": [h],
        "margin": [0.1 * h],
        "P(chosen is better)": [sigmoid(0.1 * h)],
        "loss": [-math.log(sigmoid(0.1 * h))],
        "implicit rewards": [0.1 * (pi_w - ref_w), 0.1 * (pi_l - ref_l)],
        "weight of the gradient": [sigmoid(-0.1 * h)],
    }
    assert {name: values[name] for name in expected} == {n: [round(x, 4) for x in v] for n, v in expected.items()}

    length = torch.tensor([12.0])
    policy, reference = (
        PairLogps(torch.tensor([chosen], requires_grad=True), torch.tensor([rejected]), length, length)
        for chosen, rejected in ((pi_w, pi_l), (ref_w, ref_l))
    )
    loss = losses.sigmoid(policy, reference, torch.ones(1), beta=0.1)
    assert values["loss"] == [round(loss.item(), 4)]
    (slope,) = torch.autograd.grad(loss.sum(), policy.chosen)
    assert values["weight of the gradient"] == [round(slope.item() / -0.1, 4)]


def test_the_comments_of_the_snippet_are_what_it_prints() -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S)
    printed = re.findall(r"^print\((.*?)\)  # ([\d.]+)", snippet, re.M)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert len(printed) == 3
    assert [f"{eval(call, names).item():.4f}" for call, _ in printed] == [value for _, value in printed]


def test_the_numbers_of_the_text() -> None:
    assert f"A gap of 1 means {sigmoid(1):.0%}, a gap of 2 means {sigmoid(2):.0%}.".replace("%", " %") in TEXT
    assert f"a\nmargin of {math.log(0.9 / 0.1):.3f}" in TEXT
    assert f"$\\log \\, 2$, or {math.log(2):.4f}" in TEXT
    smoothed = -0.9 * math.log(sigmoid(0.25)) - 0.1 * math.log(sigmoid(-0.25))
    assert f"# {smoothed:.4f}: a label with p = 0.9" in TEXT
    assert f"the target is {1 / 0.2:g} and the loss is $(2.5 - 5)^2 = {(2.5 - 1 / 0.2) ** 2:g}$" in TEXT
