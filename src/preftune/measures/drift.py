"""Metrics of drift from the data and the reference: likelihood, KL, length, ends, repetition, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from preftune.formulas import Floats, mean_and_error

QUANTILES = {"drift/own_q10": 0.1, "drift/own_median": 0.5, "drift/own_q90": 0.9}


def figures(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, float]:
    """Return metrics of a set of responses.

    responses/words     mean number of words
    responses/ended     share that ended before the token limit
    diversity           distinct word pairs / all word pairs, over all responses together
    repetition          mean over responses of 1 - distinct / all word pairs of the response

    `diversity` and `repetition` are left out if no response has two words.
    """
    by_response = [list(pairwise(words)) for words in (text.split() for text in texts)]
    pairs = [pair for response in by_response for pair in response]
    repeated = [1 - len(set(response)) / len(response) for response in by_response if response]
    return {
        "responses/words": float(np.mean([len(text.split()) for text in texts])),
        "responses/ended": float(np.mean(ended)),
        **({"diversity": len(set(pairs)) / len(pairs), "repetition": float(np.mean(repeated))} if pairs else {}),
    }


def likelihood(own_S: Floats, own_length_S: Floats, data_S: Floats, data_length_S: Floats) -> dict[str, float]:
    """Compare a policy's log-probs of its samples and of the responses in the data.

    own_S, data_S, own_length_S, data_length_S   summed log-probs and numbers of tokens of the responses
    drift/own_logps, drift/data_logps            mean log-prob per response
    drift/own_per_token, drift/data_per_token    mean log-prob per token
    drift/own_q10, own_median, own_q90           quantiles of the log-prob per token over the samples
    drift/gap    (own_per_token - data_per_token) * mean number of tokens of the data's responses: how much less likely
                 than a sample of the same length a response in the data is, in nats
    """
    quantiles = np.quantile(np.ravel(own_S / own_length_S), list(QUANTILES.values()))
    own, data = float(own_S.sum() / own_length_S.sum()), float(data_S.sum() / data_length_S.sum())
    return {
        "drift/own_logps": float(own_S.mean()),
        "drift/data_logps": float(data_S.mean()),
        "drift/own_per_token": own,
        "drift/data_per_token": data,
        "drift/gap": (own - data) * float(data_length_S.mean()),
        **dict(zip(QUANTILES, map(float, quantiles), strict=True)),
    }


def divergence(policy_PM: Floats, reference_PM: Floats) -> dict[str, float]:
    """Estimate KL(policy || reference) in nats per response from the log-probs of M policy samples per prompt.

    drift/kl       mean of log pi - log ref, an unbiased estimate
    drift/kl_se    its standard error over prompts
    """
    kl, error = mean_and_error(policy_PM - reference_PM)
    return {"drift/kl": kl, "drift/kl_se": error}
