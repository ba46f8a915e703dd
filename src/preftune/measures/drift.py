"""How a policy moves away from its data and its reference: likelihood, KL, length, ends, repetition, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from preftune.measures.frontier import Floats, mean_and_error


def figures(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, float]:
    """Of a set of responses.

    responses/words     mean number of words
    responses/ended     share that ended before the limit
    diversity           distinct word pairs over all word pairs, of all responses together
    repetition          mean over responses of 1 - distinct / all word pairs of the response

    Without a pair of words there is no diversity and no repetition.
    """
    pairs = [list(pairwise(words)) for words in (text.split() for text in texts)]
    every = [pair for own in pairs for pair in own]
    repeated = [1 - len(set(own)) / len(own) for own in pairs if own]
    return {
        "responses/words": float(np.mean([len(text.split()) for text in texts])),
        "responses/ended": float(np.mean(ended)),
        **({"diversity": len(set(every)) / len(every), "repetition": float(np.mean(repeated))} if every else {}),
    }


def likelihood(own_S: Floats, own_length_S: Floats, data_S: Floats, data_length_S: Floats) -> dict[str, float]:
    """How likely a policy finds its own samples and the responses of the data: summed log-probs, and tokens.

    drift/own_logps, drift/data_logps            mean log-prob of a response
    drift/own_per_token, drift/data_per_token    mean log-prob of a token
    drift/gap    (own_per_token - data_per_token) * mean tokens of the data's responses: by how many nats one of these
                 is less likely than a sample of its length would be; sums of unequal lengths do not compare
    """
    own, data = float(own_S.sum() / own_length_S.sum()), float(data_S.sum() / data_length_S.sum())
    return {
        "drift/own_logps": float(own_S.mean()),
        "drift/data_logps": float(data_S.mean()),
        "drift/own_per_token": own,
        "drift/data_per_token": data,
        "drift/gap": (own - data) * float(data_length_S.mean()),
    }


def divergence(policy_PM: Floats, reference_PM: Floats) -> dict[str, float]:
    """KL(policy || reference) in nats a response, from log-probs of M own samples for each of P prompts.

    drift/kl       mean of log pi - log ref, which is unbiased
    drift/kl_se    its standard error over prompts
    """
    kl, error = mean_and_error(policy_PM - reference_PM)
    return {"drift/kl": kl, "drift/kl_se": error}
