"""The mathematics of the figures' script against exact/ and losses/, run by node."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
import torch

from preftune.exact.optimum import optimal_policy
from preftune.losses import PREFERENCE_LOSSES
from preftune.report.figures.bradley_terry import wilson
from preftune.report.figures.drawn_pairs import GROUNDS
from preftune.report.page import asset
from preftune.resolve import inputs_of
from preftune.types import PairLogps

NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


def run(body: str, value: Any) -> Any:
    """The JSON result of JavaScript in which M is the mathematics and v is `value`."""
    assert NODE
    program = f"{asset('math.js')}\nconst v = JSON.parse(require('fs').readFileSync(0, 'utf8'));\n"
    program += f"console.log(JSON.stringify((() => {{ {body} }})()));"
    done = subprocess.run([NODE, "-e", program], input=json.dumps(value), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("beta", [10.0, 1.0, 0.3, 0.1, 0.05])
def test_the_tilt_equals_the_closed_form(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    log_ref = torch.randn(12, generator=generator, dtype=torch.float64).log_softmax(0)
    reward = torch.rand(12, generator=generator, dtype=torch.float64) * 2 - 1
    log_pi, log_z = optimal_policy(log_ref, reward, beta)
    pi = log_pi.exp()
    result = run(
        "return M.tilt(v.ref, v.reward, v.beta);", {"ref": log_ref.tolist(), "reward": reward.tolist(), "beta": beta}
    )
    np.testing.assert_allclose(result["pi"], pi.numpy(), atol=1e-12)
    assert result["logZ"] == pytest.approx(float(log_z), abs=1e-10)
    assert result["reward"] == pytest.approx(float((pi * reward).sum()), abs=1e-12)
    assert result["kl"] == pytest.approx(float((pi * (log_pi - log_ref)).sum()), abs=1e-10)


@pytest.mark.parametrize("name", GROUNDS)
def test_the_landscape_of_a_loss_is_the_loss(name: str) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform(-12, 6, (64, 2))
    p = 0.8 if "probability" in inputs_of(PREFERENCE_LOSSES[name]) else 1.0
    chosen, rejected = torch.tensor(points.T, dtype=torch.float64)
    zero, one = torch.zeros_like(chosen), torch.ones_like(chosen)
    values = {
        "policy": PairLogps(chosen, rejected, one, one),
        "reference": PairLogps(zero, zero, one, one),
        "probability": torch.full_like(chosen, p),
    }
    function = PREFERENCE_LOSSES[name]
    expected = function(**{key: values[key] for key in inputs_of(function)}, beta=0.1)
    body = "return v.points.map(([w, l]) => M.losses[v.name](w, l, { beta: 0.1, p: v.p }));"
    result = run(body, {"points": points.tolist(), "name": name, "p": p})
    np.testing.assert_allclose(result, expected.numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("p", [1.0, 0.64])
def test_the_push_is_the_derivative_of_the_loss(p: float) -> None:
    body = """return Object.keys(M.push).flatMap((name) => v.map((h) => {
      const o = { beta: 0.1, p: M.soft.includes(name) ? P : 1 }, e = 1e-5, f = M.losses[name];
      return [name, -(f(h + e, 0, o) - f(h - e, 0, o)) / (2 * e) / o.beta, M.push[name](o.beta * h, o)];
    }));""".replace("P :", f"{p} :")
    for name, difference, push in run(body, [-7.3, -1.0, 0.4, 3.3, 8.0]):
        assert push == pytest.approx(difference, rel=1e-5, abs=1e-6), name


def test_wilson_intervals_and_ticks() -> None:
    assert run("return M.wilson(v[0], v[1]);", [0.7, 40]) == pytest.approx(wilson(0.7, 40), abs=1e-5)
    assert run("return M.ticks(v[0], v[1], 7);", [-8.5, 4.2]) == pytest.approx([-8, -6, -4, -2, 0, 2, 4])
