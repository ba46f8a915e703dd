"""A small world, and a small transformer that is trained on it with the real training loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from preftune.config.schema import OptimConfig, TrainConfig
from preftune.data.layout import Budget, micro_batches
from preftune.data.steps import training_steps
from preftune.lifecycle.task import ResponseTask
from preftune.losses import Objective
from preftune.model.logprobs import Scorer, logps
from preftune.model.reference import Frozen
from preftune.train.loop import fit
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, build_optimizer
from preftune.types import TokenGroup
from tests.exact_worlds import World

# No prompt may equal the beginning of another prompt with a response: the model would need two distributions there.
# No prompt may repeat one token: without a BOS, attention cannot count repetitions.
WORLD = World(3, eos=0, length=3, prompts=((1, 2), (2, 1)))


def make_world_model(seed: int = 0, vocabulary: int = 3) -> Any:
    """Return a Llama of two layers whose distributions are far from uniform."""
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=16,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=None,
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.12)
        model.model.embed_tokens.weight.normal_(std=1.0)
    return model


@torch.no_grad()
def table(scorer: Scorer, world: World) -> Tensor:
    """Return the (P, R) log-probs of all responses, in fp64."""
    rows = []
    for group in world.groups():
        (batch,) = micro_batches([group], Budget("rows", 1 << 20))
        rows.append(logps(scorer, batch).sum_S.double())
    return torch.stack(rows)


class Silent:
    """A run log that stores the metrics of the last step."""

    def __init__(self) -> None:
        self.tally, self.loop_state, self.start = Tally(), dict[str, float](), 0
        self.evaluation_due = False
        self.weights: Weights | None = None
        self.last: dict[str, float] = {}

    def log_train(self, _step: int, metrics: dict[str, float]) -> None:
        self.last = metrics

    def save(self, step: int, tally: Tally, tokens: int) -> None: ...

    def reached(self, step: int, tally: Tally, tokens: int, *, evaluated: bool) -> None: ...

    def planned(self, step: int, total: int) -> int:
        return total

    def save_if_due(self, step: int, tally: Tally, tokens: int) -> None: ...

    def keep_last_state(self) -> None: ...

    def log_halved(self, step: int, tokens: int) -> None: ...

    def stop_requested(self) -> bool:
        return False


def tune(model: Any, objective: Objective, groups: Sequence[TokenGroup], steps: int, lr: float) -> Scorer:
    """Train `model` on all judgements in each step, with a copy of it as the reference."""
    reference = Frozen.copy_of(model)
    scorer = Scorer.of(model)
    task = ResponseTask(scorer, reference, objective, groups, [], Budget("rows", 1 << 20))
    weights = Weights(model)
    optim = OptimConfig(lr=lr, schedule="cosine", warmup=0.05, max_grad_norm=1e6)
    optimizer = build_optimizer(weights.masters, "adamw", lr, 0.0)
    all_steps = list(training_steps([1] * len(groups), len(groups), 0, steps))
    for _ in fit(task, all_steps, 0, weights, optimizer, optim, TrainConfig(log_every=steps), Silent()):
        pass
    return scorer
