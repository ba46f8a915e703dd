"""How responses change: length, ends, repetition, diversity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np


def figures(texts: Sequence[str], ended: Sequence[bool]) -> dict[str, float]:
    """Of a set of responses.

    responses/words     mean number of words
    responses/ended     share that ended before the limit
    diversity           distinct word pairs over all word pairs, of all responses together
    repetition          mean over responses of 1 - distinct / all word pairs of the response
    """
    pairs = [list(pairwise(words)) for words in (text.split() for text in texts)]
    every = [pair for own in pairs for pair in own]
    repeated = [1 - len(set(own)) / len(own) for own in pairs if own]
    return {
        "responses/words": float(np.mean([len(text.split()) for text in texts])),
        "responses/ended": float(np.mean(ended)),
        "diversity": len(set(every)) / len(every) if every else 0.0,
        "repetition": float(np.mean(repeated)) if repeated else 0.0,
    }
