"""Errors of two computations of the same results, and whether they are as large as rounding.

In fp32, the results of two layouts must be equal up to a small limit. In bf16 and fp16, no limit suits all models, so
the noise is measured: both layouts are compared with fp32, and one may not be much further from it than the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

TYPICAL, RMS, LARGEST = 1.5, 2.0, 4.0
"""How much larger than the error of padded rows the error of a packed batch may be: geometric mean, rms, maximum."""


def relative_errors(actual_NH: Tensor, exact_NH: Tensor) -> Tensor:
    """Return (N,) |actual - exact| of each row, relative to the rms size of the rows of `exact_NH`.

    If they do not have the same rows, which is a fault of the layout, the error is infinite.
    """
    if actual_NH.shape != exact_NH.shape:
        return torch.full((1,), torch.inf)
    exact_NH = exact_NH.float()
    size = exact_NH.norm(dim=-1).square().mean().sqrt().clamp(min=1e-30)
    errors_N: Tensor = (actual_NH.float() - exact_NH).norm(dim=-1) / size
    return errors_N


def noisier(actual_N: Tensor, plain_N: Tensor, outliers: bool = False) -> bool:
    """Return whether the errors `actual_N` are larger than `plain_N`, errors of the same rows, by more than chance.

    outliers: rounding alone may change a row completely, as for a token between two experts. Then only the geometric
    mean counts, on which single rows have little influence.
    """
    if not bool(actual_N.isfinite().all()):
        return True
    floor = 1e-3 * _rms(plain_N) + 1e-7  # errors below it are 0
    typical = float((actual_N.clamp(min=floor) / plain_N.clamp(min=floor)).log().mean().exp())
    large = (
        _rms(actual_N) > RMS * _rms(plain_N) + floor or float(actual_N.max()) > LARGEST * float(plain_N.max()) + floor
    )
    return typical > TYPICAL or (large and not outliers)


def summary(errors_N: Tensor) -> str:
    """Return the typical and the largest error as text."""
    return f"{_rms(errors_N):.2g} (largest {float(errors_N.max()):.2g})"


def _rms(errors_N: Tensor) -> float:
    return float(errors_N.square().mean().sqrt())
