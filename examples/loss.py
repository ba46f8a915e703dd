"""A custom preference loss: copy this file, change the formula, and set loss.name to the function.

    preftune dpo configs/dpo.yaml model.path=MODEL data.train=prefs.jsonl loss.name=examples/loss.py:focal loss.gamma=2

At the first step, preftune checks what the function returns: one value per pair, finite, and with a gradient.
docs/lookup/losses.md lists all inputs that a loss can have, and the losses that come with preftune.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from preftune import PairLogps


# Arguments before the `*` are inputs. preftune passes them by name: `policy` and `reference` hold the log-probs of the
# P pairs of a micro-batch, as tensors of shape [P] in fp32, each the sum over the tokens of a response.
# Arguments after the `*` are parameters. The config sets them (loss.beta, loss.gamma); anything else is an error.
def focal(policy: PairLogps, reference: PairLogps, *, beta: float = 0.1, gamma: float = 2.0) -> Tensor:
    """DPO with a focal weight: the better the policy already ranks a pair, the less the pair counts (arXiv:1708.02002).

    With gamma = 0 this is DPO.
    """
    margin = beta * ((policy.chosen - reference.chosen) - (policy.rejected - reference.rejected))
    probability = margin.sigmoid()  # the model's probability that the chosen response is the better one
    # Return one loss per pair, not the mean: preftune applies weights and averages over the whole step.
    return -((1 - probability) ** gamma) * logsigmoid(margin)
