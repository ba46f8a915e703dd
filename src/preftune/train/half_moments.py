"""AdamW whose two moments are stored in bf16, which takes 4 bytes per parameter instead of 8.

All arithmetic is fp32. Only the stored moments are rounded, and stochastically: up or down with probabilities that make
the expected value exact. Rounding to the nearest value would stop the second moment: in one step it changes by at most
1 - beta2 = 0.1 %, and neighbouring bf16 values are up to 0.8 % apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from preftune.ranks.shard import local

CHUNK = 1 << 24  # elements that are updated at a time; each needs about 20 bytes of temporary memory


class HalfMomentAdamW(torch.optim.Optimizer):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101) and bf16 moments.

    m_t = b1 m + (1 - b1) g,  v_t = b2 v + (1 - b2) g^2
    p_t = p - lr (weight_decay p + m_t / (1 - b1^t) / (sqrt(v_t / (1 - b2^t)) + eps))

    The update uses m_t and v_t before they are rounded. The random numbers are a function of the step and of the
    parameter's index, so a resumed run continues as if it had not been interrupted.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        index = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group, index)
                index += 1

    def _update(self, parameter: Tensor, group: dict[str, Any], index: int) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        state["step"] += 1
        step = int(state["step"])
        random = torch.Generator(parameter.device)
        random.manual_seed((step << 24) + index)
        first, second = group["betas"]
        corrections = 1 - first**step, 1 - second**step
        parameter, gradient = local(parameter), local(gradient)
        moments = [local(state[name]) for name in ("exp_avg", "exp_avg_sq")]
        flat = parameter.is_contiguous()
        values = parameter.view(-1) if flat else parameter.contiguous().view(-1)
        arrays = (values, gradient.reshape(-1), moments[0].view(-1), moments[1].view(-1))
        for p, g, m, v in zip(*(array.split(CHUNK) for array in arrays), strict=True):
            noise = torch.randint(-(1 << 31), 1 << 31, p.shape, generator=random, device=p.device, dtype=torch.int32)
            mean = m.float().lerp_(g, 1 - first)
            square = v.float().mul_(second).addcmul_(g, g, value=1 - second)
            m.copy_(rounded(mean, noise & 0xFFFF))
            v.copy_(rounded(square, noise.bitwise_right_shift(16) & 0xFFFF))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            denominator = square.div_(corrections[1]).sqrt_().add_(group["eps"])
            p.addcdiv_(mean, denominator, value=-group["lr"] / corrections[0])
        if not flat:
            parameter.copy_(values.view(parameter.shape))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state. torch converts it to the dtype of the parameters; going back to bf16 loses nothing."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(torch.bfloat16)


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """Round fp32 values to bf16 at random, with the given value in expectation.

    noise: int32, uniform in [0, 2^16). It is added to the 16 bits that are then cut off.
    """
    bits = (values.view(torch.int32) + noise).bitwise_and_(-0x10000)
    return bits.view(torch.float32).bfloat16()
