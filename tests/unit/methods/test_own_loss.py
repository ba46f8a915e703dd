"""A user's own loss must return one value per item. Other results are refused with a message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.methods.test_dpo import run

from preftune.errors import ConfigError
from preftune.methods.own_loss import checked
from preftune.types import PairLogps

BODY = """
import torch
from torch.nn.functional import logsigmoid
from preftune.types import LossOutput

def right(policy, reference, *, beta: float = 0.1):
    return -logsigmoid(beta * (policy.chosen - policy.rejected - reference.chosen + reference.rejected))

def mean(policy):
    return -logsigmoid(policy.chosen - policy.rejected).mean()

def column(policy):
    return -logsigmoid(policy.chosen - policy.rejected)[:, None]

def both(policy):
    return torch.cat([policy.chosen, policy.rejected])

def detached(policy):
    return -logsigmoid(policy.chosen - policy.rejected).detach()

def constant(policy):
    return torch.ones(len(policy.chosen), requires_grad=True)

def of_the_reference(reference, policy):
    return -reference.chosen

def nothing(policy):
    policy.chosen.sum()

def number(policy):
    return policy.chosen.sum().item()

def booleans(policy):
    return policy.chosen > policy.rejected

def undefined(policy, reference):
    return (policy.chosen - reference.chosen) / (policy.chosen - policy.chosen)

def output(policy):
    return LossOutput(policy.chosen.sum(), torch.tensor(2.0))
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean", r"the loss returned the shape \(\) for \d+ preference pairs? \(did it take the mean or the sum\?\)"),
        ("column", r"the loss returned the shape \(\d+, 1\) for \d+ preference pairs?"),
        ("both", r"the loss returned the shape \(\d+,\) for \d+ preference pairs?"),
        ("detached", "its result has no gradient, so it cannot train the policy"),
        ("constant", "its result has no gradient, so it cannot train the policy"),
        ("of_the_reference", "its result has no gradient, so it cannot train the policy"),
        ("nothing", "the loss returned None, not a tensor"),
        ("number", "the loss returned a float, not a tensor"),
        ("booleans", r"the loss returned torch.bool, not floating-point numbers"),
        ("undefined", r"the loss returned nan for (\d+) of \1 preference pairs"),
        ("output", "the loss returned a LossOutput, not a tensor; sum and count are computed from the values"),
    ],
)
def test_an_invalid_result_is_refused_at_the_first_step(
    tmp_path: Path, model_folder: Path, name: str, message: str
) -> None:
    file = tmp_path / "my_losses.py"
    file.write_text(BODY)
    with pytest.raises(ConfigError, match=message) as raised:
        run(tmp_path, model_folder, loss={"name": f"{file}:{name}"})
    assert raised.value.where == f"{file}:{name}"
    assert not (tmp_path / "run" / "final").exists()


def test_a_valid_loss_trains(tmp_path: Path, model_folder: Path) -> None:
    file = tmp_path / "my_losses.py"
    file.write_text(BODY)
    assert (run(tmp_path, model_folder, loss={"name": f"{file}:right"}) / "model.safetensors").is_file()


def pairs(gradient: bool) -> PairLogps:
    values = [torch.zeros(3, requires_grad=gradient) for _ in range(2)]
    return PairLogps(values[0], values[1], torch.ones(3), torch.ones(3))


def test_evaluation_needs_no_gradient() -> None:
    def loss(policy: PairLogps) -> Any:
        return policy.chosen

    with torch.no_grad():
        assert checked(loss, "f.py:loss", "pairs")(policy=pairs(True)).shape == (3,)
    assert checked(loss, "f.py:loss", "pairs")(policy=pairs(False)).shape == (3,)


@pytest.mark.parametrize("count", [3, 2])
def test_mismatched_responses_may_have_no_value(count: int) -> None:
    def loss(policy: Any, label: Any) -> Any:
        return policy.chosen[:count]

    label = torch.tensor([1.0, -1.0, 0.0])
    assert len(checked(loss, "f.py:loss", "responses")(policy=pairs(True), label=label)) == count
    with pytest.raises(ConfigError, match=r"shape \(1,\) for 3 responses"):
        checked(lambda policy, label: policy.chosen[:1], "f", "responses")(policy=pairs(True), label=label)
