"""Kernels, heads, compiled blocks and steps on a GPU, compared with fp64 on a CPU. Skipped without a GPU.

Most of the time goes into compilation, so run it in several processes. Other versions of torch and transformers may
warn about names that this version uses:

    pytest tests/gpu -n 8 --timeout 280 -o filterwarnings=ignore

Limits that may fail without a bug, because they are close to the rounding that is expected: variable-length attention
(bf16 gradients), heads in bf16, and the weights after a step in smaller micro-batches.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_model, random_groups

from preftune.config.load import build
from preftune.config.schema import DPOConfig, LossTerm, OptimConfig, TrainConfig
from preftune.data.layout import Budget, LayoutName, batch_of
from preftune.data.steps import size_of, training_steps
from preftune.lifecycle.packing_probe import choose_layout
from preftune.lifecycle.task import ResponseTask
from preftune.methods import dpo
from preftune.methods.objective import bind_objective
from preftune.model import segments, token_logprobs
from preftune.model.attention import restore_attention, use_segments
from preftune.model.compile import compile_blocks
from preftune.model.flex import flex
from preftune.model.head import Head
from preftune.model.load import checkpoint_activations
from preftune.model.logprobs import Scorer, logps
from preftune.model.reference import Frozen
from preftune.model.vocabulary_statistics import statistics
from preftune.train.display import Display
from preftune.train.loop import _accumulate, fit
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, build_optimizer
from preftune.types import Packed, TokenGroup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # compilers use deprecated functions
]
CUDA = torch.device("cuda")
Q_HEADS, K_HEADS, SIZE = 8, 2, 64


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """||actual - expected|| / ||expected||."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    return float((actual - expected).norm() / expected.norm())


def compare(attention: Any, layout: Packed, slots: int, dtype: torch.dtype, *more: Any, value: int = SIZE) -> Any:
    """Pairs of (output or gradient of `attention` on the GPU, the same of `one_by_one` in fp64 on the CPU)."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((1, Q_HEADS, slots, SIZE), (1, K_HEADS, slots, SIZE), (1, K_HEADS, slots, value))
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    weight = torch.randn((1, slots, Q_HEADS, value), generator=generator).to(dtype)
    results = []
    for function, device, kind in ((attention, CUDA, dtype), (segments.one_by_one, torch.device("cpu"), torch.float64)):
        qkv = [x.to(device, kind).requires_grad_() for x in inputs]
        settings = [x.to(device, kind) if isinstance(x, torch.Tensor) else x for x in more]
        out = function(*qkv, layout, *settings)
        (out * weight.to(device, kind)).sum().backward()
        results.append([out, *(x.grad for x in qkv)])
    return zip(*results, strict=True)


def packed(layout: LayoutName, responses: int = 3) -> tuple[Packed, int]:
    batch = batch_of(random_groups(12, responses, longest=90), layout)
    assert isinstance(batch.layout, Packed)
    return batch.layout, len(batch.ids_T)


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("window", [None, 7])
def test_varlen_equals_one_by_one(layout: LayoutName, window: int | None) -> None:
    """Outputs and gradients, with grouped queries and windows."""
    for actual, expected in compare(segments.varlen, *packed(layout), torch.bfloat16, window, SIZE**-0.5):
        assert relative(actual, expected) < 6e-3


@pytest.mark.parametrize("layout", ["packed", "shared"])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("softcap", "sinks"), [(None, False), (2.0, False), (None, True), (3.0, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_equals_one_by_one(
    layout: LayoutName, window: int | None, softcap: float | None, sinks: bool, dtype: torch.dtype
) -> None:
    """Outputs and gradients. FlexAttention has no backward pass on a CPU."""
    sinks_H = torch.linspace(-1, 2, Q_HEADS) if sinks else None
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    for actual, expected in compare(flex, *packed(layout), dtype, window, SIZE**-0.5, softcap, sinks_H):
        assert relative(actual, expected) < tolerance


def random_layouts() -> list[tuple[Packed, int]]:
    """Return 50 layouts of different lengths, which all use one compilation."""
    layouts = []
    for seed in range(50):
        groups = random_groups(1 + seed % 20, 1 + seed % 4, seed=seed, longest=10 + 7 * seed)
        batch = batch_of(groups, "packed" if seed % 3 == 0 else "shared")
        assert isinstance(batch.layout, Packed)
        layouts.append((batch.layout, len(batch.ids_T)))
    return layouts


@pytest.mark.parametrize(("window", "softcap", "sinks"), [(None, 2.0, False), (7, 3.0, True)])
def test_flex_is_exact_for_masks_that_change_with_every_batch(window: int | None, softcap: float, sinks: bool) -> None:
    """A compiled kernel with dynamic lengths must not keep anything of an earlier mask (pytorch #186775)."""
    sinks_H = torch.linspace(-1, 2, Q_HEADS) if sinks else None
    for layout, slots in random_layouts():
        for actual, expected in compare(flex, layout, slots, torch.bfloat16, window, SIZE**-0.5, softcap, sinks_H):
            assert relative(actual, expected) < 1e-2, (layout, slots)


@pytest.mark.parametrize("queries", [1, 40])
def test_attention_with_a_mask_uses_the_memory_efficient_kernel(queries: int) -> None:
    """Sampling with grouped queries: one token, or a prompt with padding on the left. Other kernels are disabled."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((3, Q_HEADS, queries, SIZE), (3, K_HEADS, 60, SIZE), (3, K_HEADS, 60, SIZE))
    q, k, v = (torch.randn(shape, generator=generator) for shape in shapes)
    seen = torch.ones(3, 1, queries, 60, dtype=torch.bool).tril(60 - queries)
    seen[1, :, :, :7] = False
    seen[..., 7] |= ~seen.any(-1)
    expected = segments.attend(q.double(), k.double(), v.double(), seen, SIZE**-0.5)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
        actual = segments.attend(*(x.to(CUDA, torch.bfloat16) for x in (q, k, v)), seen.to(CUDA), SIZE**-0.5)
    assert relative(actual, expected) < 1e-2


def gradients(
    groups: list[TokenGroup], layout: LayoutName, device: torch.device, dtype: torch.dtype, **more: Any
) -> list[torch.Tensor]:
    """Return the log-probs and gradients of a DPO step, for a model with a head dimension of 64."""
    sizes = {"hidden_size": 128, "head_dim": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    policy, reference = (make_model(seed=seed, **sizes).to(device, dtype) for seed in (1, 2))
    reference.requires_grad_(False)
    if more.get("checkpoint"):
        checkpoint_activations(policy)
    if more.get("compile"):
        compile_blocks(policy, constant=more["compile"] == "constant")
    if layout != "rows":
        assert use_segments(policy)
        assert use_segments(reference)
    objective = bind_objective([LossTerm(name="sigmoid", parameters={"beta": 0.5})])
    budget = Budget(layout, more.get("slots", 4096), more.get("compile") == "constant")
    task = ResponseTask(Scorer.of(policy), Frozen(Scorer.of(reference)), objective, groups, [], budget)
    weights = None if dtype == torch.float64 else Weights(policy)
    batches = task.micro_batches(groups)
    with torch.no_grad():
        sums = logps(task.scorer, batch_of(groups[:3], layout).to(device)).sum_S
    _accumulate(task, batches, torch.stack([task.count(b) for b in batches]).sum())
    return [sums, *(weights.gradients() if weights else (p.grad for p in policy.parameters() if p.grad is not None))]


@pytest.mark.parametrize("layout", ["rows", "packed", "shared"])
@pytest.mark.parametrize("compiled", [None, "any", "constant"])
def test_a_bf16_step_has_at_most_1_5_times_the_error_of_padded_rows(layout: LayoutName, compiled: str | None) -> None:
    groups = random_groups(16, 3, longest=60)
    exact = gradients(groups, "rows", torch.device("cpu"), torch.float64)
    plain = gradients(groups, "rows", CUDA, torch.bfloat16)
    actual = gradients(groups, layout, CUDA, torch.bfloat16, compile=compiled)
    for value, rows, expected in zip(actual, plain, exact, strict=True):
        assert relative(value, expected) < max(1.5 * relative(rows, expected), 2e-3)


@pytest.mark.parametrize("layout", ["rows", "packed", "shared"])
@pytest.mark.parametrize("compiled", [None, "any", "constant"])
def test_an_fp32_step_equals_an_fp64_step(layout: LayoutName, compiled: str | None) -> None:
    """One micro-batch or several, compiled or not."""
    groups = random_groups(16, 3, longest=60)
    exact = gradients(groups, "rows", torch.device("cpu"), torch.float64)
    for slots in (4096, 600):
        actual = gradients(groups, layout, CUDA, torch.float32, compile=compiled, slots=slots)
        for value, expected in zip(actual, exact, strict=True):
            assert relative(value, expected) < 2e-4


@pytest.mark.parametrize("layout", ["rows", "shared"])
def test_a_compiled_step_with_gradient_checkpointing_equals_an_fp64_step(layout: LayoutName) -> None:
    groups = random_groups(16, 3, longest=60)
    exact = gradients(groups, "rows", torch.device("cpu"), torch.float64)
    compiled_before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    actual = gradients(groups, layout, CUDA, torch.float32, compile="any", checkpoint=True, slots=600)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > compiled_before
    for value, expected in zip(actual, exact, strict=True):
        assert relative(value, expected) < 2e-4


@pytest.mark.parametrize("architecture", ["gemma2", "gpt2", "qwen3", "mistral", "gpt_oss"])
def test_the_packing_probe_accepts_the_same_architectures_as_on_a_cpu(architecture: str) -> None:
    """With softcaps, learned positions, normalised queries, windows, sinks and experts."""
    sizes = {"head_dim": 16} if architecture in ("gemma2", "qwen3", "gpt_oss") else {"hidden_size": 64}
    changes: dict[str, Any] = dict(sizes)  # heads of 16: FlexAttention, which fp32 needs, takes no smaller ones
    if architecture == "gpt_oss":
        changes |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    cpu_scorer = Scorer.of(make_model(architecture, **changes))
    expected, why = choose_layout(cpu_scorer, "auto")
    assert expected == "shared", why
    batch = batch_of(random_groups(5, 3), "shared")
    with torch.no_grad():
        cpu_sums = logps(cpu_scorer, batch).sum_S
    restore_attention(cpu_scorer.model)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        scorer = Scorer.of(copy.deepcopy(cpu_scorer.model).to(CUDA, dtype))
        actual, why = choose_layout(scorer, "auto")
        assert actual == "shared", why
        with torch.no_grad():
            assert relative(logps(scorer, batch.to(CUDA)).sum_S, cpu_sums) < tolerance


@pytest.mark.parametrize("mode", ["none", "frozen", "stored", "recomputed"])
def test_bf16_heads_equal_fp64_heads(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs and gradients of 3000 tokens with a vocabulary of 20000."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(3000, 256, generator=generator), torch.randn(20000, 256, generator=generator) / 16
    target = torch.randint(20000, (3000,), generator=generator)
    weight_N = torch.randn(3000, generator=generator)
    monkeypatch.setattr(token_logprobs, "max_stored_bytes", lambda _device: 1 << 40 if mode == "stored" else 0)
    results = []
    for device, dtype in ((CUDA, torch.bfloat16), (torch.device("cpu"), torch.float64)):
        states = hidden.bfloat16().to(device, dtype).requires_grad_(mode != "none")
        layer = weight.bfloat16().to(device, dtype).requires_grad_(mode in ("stored", "recomputed"))
        if device == CUDA:
            out = token_logprobs.token_logprobs(states, token_logprobs.Head(layer), target.to(device))
        else:
            out = torch.log_softmax(states @ layer.t(), 1).gather(1, target[:, None])[:, 0]
        if mode != "none":
            (out * weight_N.to(device)).sum().backward()
        results.append([x for x in (out, states.grad, layer.grad) if x is not None])
    assert results[0][0].dtype == torch.float32
    for index, (actual, expected) in enumerate(zip(*results, strict=True)):
        assert relative(actual, expected) < (1e-5 if index == 0 else 4e-3)


def test_bf16_statistics_equal_fp64_statistics() -> None:
    """KL and collision probability of 700 tokens, and the gradients of the KL."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(n, 64, generator=generator).bfloat16() for n in (700, 5000, 700, 5000)]
    results = []
    for device, dtype in ((CUDA, torch.bfloat16), (torch.device("cpu"), torch.float64)):
        hidden, weight, other, other_weight = (
            (x.to(device, dtype) / (8 if index % 2 else 1)).requires_grad_(index < 2) for index, x in enumerate(tensors)
        )
        values = statistics(["kl", "collision"], (hidden, Head(weight)), (other, Head(other_weight)))
        values["kl"].mean().backward()
        results.append([values["kl"], values["collision"], hidden.grad, weight.grad])
    for index, (actual, expected) in enumerate(zip(*results, strict=True)):
        assert relative(actual, expected) < (1e-4 if index < 2 else 6e-3)


def test_a_micro_batch_does_not_synchronise_with_the_gpu() -> None:
    groups = random_groups(8, 3)
    policy = make_model(head_dim=16).to(CUDA, torch.bfloat16)
    reference = Frozen.copy_of(policy)
    scorer = Scorer.of(policy)
    objective = bind_objective([LossTerm(name="sigmoid")])
    task = ResponseTask(scorer, reference, objective, groups, [], Budget("shared", 4096))
    assert use_segments(policy)
    assert use_segments(reference.scorer.model)
    [batch] = task.micro_batches(groups)
    task.loss_of(batch).loss_sum.backward()  # libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        [batch] = task.micro_batches(groups)
        task.loss_of(batch).loss_sum.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class RecordingLog:
    """A run log that records losses and reductions of the micro-batch."""

    def __init__(self) -> None:
        self.tally, self.losses, self.reductions = Tally(), list[float](), list[int]()
        self.evaluation_due = False

    def log_train(self, _step: int, metrics: dict[str, float]) -> None:
        self.losses.append(metrics["loss"])

    def save(self, *_: Any) -> None: ...

    def reached(self, *_: Any, evaluated: bool) -> None: ...

    def planned(self, _step: int, total: int) -> int:
        return total

    def save_if_due(self, *_: Any) -> None: ...

    def keep_last_state(self) -> None: ...

    def log_halved(self, _step: int, tokens: int) -> None:
        self.reductions.append(tokens)

    def stop_requested(self) -> bool:
        return False


def trained(limit: float | None) -> tuple[RecordingLog, torch.Tensor]:
    """Train a model for three steps, with `limit` bytes of free GPU memory (None: all of it)."""
    groups = random_groups(96, 2, vocabulary=5000, longest=120)
    policy = make_model(vocab_size=5000, hidden_size=256, intermediate_size=4096, num_hidden_layers=4).to(CUDA)
    scorer = Scorer.of(policy)
    assert use_segments(policy)
    objective = bind_objective([LossTerm(name="simpo")])
    task = ResponseTask(scorer, None, objective, groups, [], Budget("shared", 1 << 20))
    weights = Weights(policy)
    optimizer = build_optimizer(weights.masters, "adamw", 1e-4, 0.0)
    steps = list(training_steps([size_of(g) for g in groups], 32, 0, 1, None))
    log = RecordingLog()
    torch.cuda.empty_cache()
    if limit is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + limit) / total)
    try:
        for _ in fit(task, steps, 0, weights, optimizer, OptimConfig(lr=1e-4), TrainConfig(), log):  # type: ignore[arg-type]
            pass
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return log, torch.cat([p.detach().flatten() for p in policy.parameters()])


def test_a_step_that_exceeds_memory_runs_in_smaller_micro_batches() -> None:
    """Losses and weights are the same."""
    unlimited, expected = trained(None)
    limited, actual = trained(700e6)
    assert not unlimited.reductions
    assert limited.reductions
    assert limited.losses == pytest.approx(unlimited.losses, rel=1e-5)
    assert relative(actual, expected) < 1e-5


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("lora", [None, {"rank": 4}])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_run_starts_at_log_2_learns_and_saves_a_model(
    tmp_path: Path, model_folder: Path, pairs_file: Path, dtype: str, lora: dict[str, Any] | None, compiled: bool
) -> None:

    import transformers

    settings = {
        "model": {"path": str(model_folder), "dtype": dtype, "compile": compiled},
        "data": {"train": str(pairs_file)},
        "optim": {"lr": 1e-3},
        "batch": {"pairs": 4},
        "train": {"epochs": 4},
        "monitor": {"prompts": 4, "max_new_tokens": 8},
        "lora": lora,
        "out": str(tmp_path / "run"),
    }
    final = dpo.run(build(DPOConfig, settings), display=Display(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[-1] < 0.6
    if lora is None:
        transformers.AutoModelForCausalLM.from_pretrained(final)
