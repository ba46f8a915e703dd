"""Every loss of the project as a pure function on tensors, and the weighted sum that a run trains on.

Nothing here knows about models, batches in memory, configs or speed.
"""

from collections.abc import Callable

from torch import Tensor

from preftune.losses import listwise, pairwise, reference_free, tokenwise, unpaired
from preftune.losses.joint import joint
from preftune.losses.objective import Objective, Term

#: Names for `loss.name` of preference training.
PREFERENCE_LOSSES: dict[str, Callable[..., Tensor]] = {
    **pairwise.TABLE,
    **reference_free.TABLE,
    **tokenwise.TABLE,
    **unpaired.TABLE,
    **listwise.TABLE,
}

__all__ = ["PREFERENCE_LOSSES", "Objective", "Term", "joint"]
