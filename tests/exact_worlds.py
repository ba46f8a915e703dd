"""Small worlds whose responses can all be enumerated, so that expectations and optimal policies are exact.

A world has a vocabulary of V tokens, one of them EOS, and responses of at most L tokens: those that end in EOS, and
those that are truncated at L. Their probabilities under any model sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from preftune.exact.optimum import optimal_policy
from preftune.types import Judgement, TokenGroup


@dataclass(frozen=True, slots=True)
class World:
    """Tokens 0 .. vocabulary - 1, of which `eos` ends a response; prompts are token ids too."""

    vocabulary: int
    eos: int
    length: int
    prompts: tuple[tuple[int, ...], ...]

    @property
    def responses(self) -> list[tuple[int, ...]]:
        """All R responses in order of length, the truncated ones last."""
        others = [token for token in range(self.vocabulary) if token != self.eos]
        ended = [(*body, self.eos) for n in range(self.length) for body in product(others, repeat=n)]
        return ended + list(product(others, repeat=self.length))

    def rewards(self, reward: Callable[[tuple[int, ...], tuple[int, ...]], float]) -> Tensor:
        """Return the (P, R) rewards of all responses to all prompts."""
        return torch.tensor([[reward(p, r) for r in self.responses] for p in self.prompts], dtype=torch.float64)

    def groups(self) -> list[TokenGroup]:
        """Return every prompt with all its responses and without judgements, to score them with a model."""
        return [self._group(i, ()) for i in range(len(self.prompts))]

    def population(self, log_mu_PR: Tensor, preference_PRR: Tensor, hard: bool = False) -> list[TokenGroup]:
        """Return the judgements of infinitely many pairs of responses drawn from mu, as weighted judgements.

        preference_PRR[p, i, j] is the probability that response i is preferred to j. Judgement (i, j) has a weight
        proportional to mu_i mu_j; the mean weight per prompt is 1. With `hard`, each pair becomes two judgements, one
        per outcome, weighted by their probabilities: for losses without soft labels.
        """
        result = []
        for p, (log_mu_R, preference_RR) in enumerate(zip(log_mu_PR, preference_PRR, strict=True)):
            mu = log_mu_R.exp()
            pairs = [(i, j) for i in range(len(mu)) for j in range(i)]
            total = sum(float(mu[i] * mu[j]) for i, j in pairs) / len(pairs)
            judgements = []
            for i, j in pairs:
                weight, probability = float(mu[i] * mu[j]) / total, float(preference_RR[i, j])
                if hard:
                    judgements += [Judgement(i, j, weight * probability), Judgement(j, i, weight * (1 - probability))]
                else:
                    judgements.append(Judgement(i, j, weight, probability))
            result.append(self._group(p, tuple(judgements)))
        return result

    def _group(self, prompt: int, judgements: Sequence[Judgement]) -> TokenGroup:
        def ids(tokens: Sequence[int]) -> np.ndarray:
            return np.asarray(tokens, dtype=np.int32)

        responses = tuple(ids(response) for response in self.responses)
        return TokenGroup(ids(self.prompts[prompt]), responses, tuple(judgements), origin=f"world:{prompt + 1}")


def bradley_terry(reward_PR: Tensor) -> Tensor:
    """Return the (P, R, R) probabilities that response i is preferred to j: sigmoid(r_i - r_j)."""
    return torch.sigmoid(reward_PR[:, :, None] - reward_PR[:, None, :])


def flip_preferences(preference_PRR: Tensor, share: float) -> Tensor:
    """Return the preference probabilities if `share` of the judgements are flipped."""
    return preference_PRR * (1 - share) + (1 - preference_PRR) * share


def kl(log_p_PR: Tensor, log_q_PR: Tensor) -> Tensor:
    """Return the (P,) KL(p || q) over all responses, in nats."""
    return (log_p_PR.exp() * (log_p_PR - log_q_PR)).sum(-1)


def normalised_reward(log_ref: Tensor, reward: Tensor, beta: float) -> Tensor:
    """Return r - beta log Z, the reward that equals the implicit reward of its optimum.

    Rewards that differ by a constant per prompt have the same preferences, the same optimum and the same result here.
    Source: Rafailov et al. 2023, arXiv:2305.18290 theorem 1.
    """
    _, log_z = optimal_policy(log_ref, reward, beta)
    return reward - beta * log_z.unsqueeze(-1)


class Value(NamedTuple):
    """(P,) each: expected reward, KL(pi || ref) in nats, and the objective reward - beta KL."""

    reward: Tensor
    kl: Tensor
    objective: Tensor


def value_of(log_pi: Tensor, log_ref: Tensor, reward: Tensor, beta: float) -> Value:
    """Return the exact value of a policy on each prompt. The highest possible objective, that of pi*, is beta log Z."""
    pi = log_pi.exp()
    expected, kl = (pi * reward).sum(-1), (pi * (log_pi - log_ref)).sum(-1)
    return Value(expected, kl, expected - beta * kl)


def ipo_optimum(log_ref: Tensor, log_mu: Tensor, preference: Tensor, beta: float) -> Tensor:
    """Return log pi of IPO's optimum (average = false) on all pairs drawn from mu: ref exp(P(y beats mu) / beta) / Z.

    preference[..., i, j] is the probability that i is preferred to j. Source: Azar et al. 2023, arXiv:2310.12036.
    """
    win_probability = (preference * log_mu.exp().unsqueeze(-2)).sum(-1)
    return optimal_policy(log_ref, win_probability, beta)[0]
