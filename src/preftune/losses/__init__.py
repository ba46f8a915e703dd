"""All losses as pure functions on tensors, and `Objective`, the weighted sum of losses that a run trains on."""

from collections.abc import Callable

from torch import Tensor

from preftune.losses import listwise, pairwise, reference_free, tokenwise, unpaired
from preftune.losses.listwise import plackett_luce
from preftune.losses.objective import Objective, Term, joint
from preftune.losses.pairwise import (
    alpha_divergence,
    aot,
    aot_unpaired,
    apo_down,
    apo_zero,
    bco_pair,
    cal_dpo,
    discopop,
    dpop,
    exo_pair,
    forward_kl,
    hinge,
    ipo,
    jensen_shannon,
    nca_pair,
    r_dpo,
    robust,
    sigmoid,
    sigmoid_norm,
    sppo,
)
from preftune.losses.reference_free import cpo, nll, orpo, simpo, unlikelihood
from preftune.losses.tokenwise import ld_dpo, odpo, tdpo1, tdpo2, wpo
from preftune.losses.unpaired import bco, kto

#: The values of `loss.name` for preference training.
PREFERENCE_LOSSES: dict[str, Callable[..., Tensor]] = {
    **pairwise.TABLE,
    **reference_free.TABLE,
    **tokenwise.TABLE,
    **unpaired.TABLE,
    **listwise.TABLE,
}

__all__ = [
    "PREFERENCE_LOSSES", "Objective", "Term", "alpha_divergence", "aot", "aot_unpaired", "apo_down", "apo_zero",
    "bco", "bco_pair", "cal_dpo", "cpo", "discopop", "dpop", "exo_pair", "forward_kl", "hinge", "ipo",
    "jensen_shannon", "joint", "kto", "ld_dpo", "nca_pair", "nll", "odpo", "orpo", "plackett_luce", "r_dpo",
    "robust", "sigmoid", "sigmoid_norm", "simpo", "sppo", "tdpo1", "tdpo2", "unlikelihood", "wpo",
]  # fmt: skip
