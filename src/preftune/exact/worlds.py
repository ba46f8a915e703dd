"""Small worlds in which everything is known: all responses can be listed, so optima are exact.

A world has a vocabulary of V tokens, one of them EOS, and responses of at most L tokens: those that end in EOS, and
those that are cut off at L. Their probabilities under any model add up to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

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
        """All R responses, the shorter ones first."""
        others = [token for token in range(self.vocabulary) if token != self.eos]
        ended = [(*body, self.eos) for n in range(self.length) for body in product(others, repeat=n)]
        return ended + list(product(others, repeat=self.length))

    def rewards(self, reward: Callable[[tuple[int, ...], tuple[int, ...]], float]) -> Tensor:
        """(P, R) rewards of all responses to all prompts."""
        return torch.tensor([[reward(p, r) for r in self.responses] for p in self.prompts], dtype=torch.float64)

    def groups(self) -> list[TokenGroup]:
        """Every prompt with all its responses, without judgements: for measuring a model."""
        return [self._group(i, ()) for i in range(len(self.prompts))]

    def population(self, log_mu_PR: Tensor, preference_PRR: Tensor, hard: bool = False) -> list[TokenGroup]:
        """The judgements of infinitely many pairs: each response drawn from mu, judged with these probabilities.

        preference_PRR[p, i, j] is the probability that response i is preferred to j. Judgement (i, j) has the weight
        mu_i mu_j, over all pairs of a prompt 1 on average. `hard`: both outcomes as judgements of their own, weighted
        by their probability, for losses that take no soft label.
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
    """(P, R, R) probability that response i is preferred to j: sigmoid(r_i - r_j)."""
    return torch.sigmoid(reward_PR[:, :, None] - reward_PR[:, None, :])


def flipped(preference_PRR: Tensor, share: float) -> Tensor:
    """The same judgements with a share of them turned round."""
    return preference_PRR * (1 - share) + (1 - preference_PRR) * share


def kl(log_p_PR: Tensor, log_q_PR: Tensor) -> Tensor:
    """(P,) KL(p || q) over all responses, in nats."""
    return (log_p_PR.exp() * (log_p_PR - log_q_PR)).sum(-1)
