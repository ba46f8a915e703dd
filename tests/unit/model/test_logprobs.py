"""Log-probs compared with plain transformers and fp64: the detected head, chunks, statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.conftest import make_model, random_groups
from torch import Tensor, nn

import preftune.model.logit_chunks as logit_chunks
import preftune.model.logprobs as logprobs
import preftune.model.token_logprobs as token_module
from preftune.data.layout import Budget, micro_batches, rows
from preftune.model.head import Head, find_head
from preftune.model.logprobs import Scorer, logps
from preftune.model.token_logprobs import mode_of, token_logprobs
from preftune.types import TokenGroup


def plain_logps(model: Any, group: TokenGroup) -> list[float]:
    """Return the log-prob of each response from a plain forward pass without batching, summed in fp64."""
    sums = []
    for response in group.response_ids:
        ids = torch.tensor([[*group.prompt_ids.tolist(), *response.tolist()]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0].double()
        scored = logits[len(group.prompt_ids) - 1 : -1].log_softmax(-1)
        sums.append(float(scored[torch.arange(len(response)), torch.tensor(response.tolist())].sum()))
    return sums


ARCHITECTURES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 16}),
    ("gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0}),
    ("cohere", {"logit_scale": 0.25}),
    ("granite", {"logits_scaling": 8.0}),
    ("phi", {}),
    ("bloom", {"n_layer": 2, "n_head": 4}),
    ("gpt_neox", {}),
    ("mixtral", {"num_local_experts": 4}),
    ("qwen3", {"head_dim": 8}),
]


@pytest.mark.parametrize(("architecture", "changes"), ARCHITECTURES, ids=lambda value: str(value)[:30])
def test_log_probs_equal_those_of_plain_transformers(architecture: str, changes: dict[str, Any]) -> None:
    """For padded batches, within 1e-4."""
    model = make_model(architecture, **changes)
    scorer = Scorer.of(model)
    assert scorer.head is not None
    groups = random_groups(5, responses=3)
    with torch.no_grad():
        actual = logps(scorer, rows(groups))
    expected = [value for group in groups for value in plain_logps(model, group)]
    assert actual.sum_S.dtype == torch.float32
    assert actual.sum_S.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("architecture", "changes", "scale", "softcap"),
    [
        ("llama", {}, 1.0, 0.0),
        ("gemma2", {"head_dim": 8, "final_logit_softcapping": 5.0}, 1.0, 5.0),
        ("gemma2", {"head_dim": 8}, 1.0, 30.0),
        ("cohere", {"logit_scale": 0.0625}, 0.0625, 0.0),
        ("granite", {"logits_scaling": 8.0}, 0.125, 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scale_and_softcap_of_the_head_are_detected(
    architecture: str, changes: dict[str, Any], scale: float, softcap: float, dtype: torch.dtype
) -> None:
    head = find_head(make_model(architecture, **changes).to(dtype))
    assert head is not None
    assert (head.scale, head.softcap) == (scale, softcap)


class UnknownHead(nn.Module):
    """A model whose logits cannot be described with a scale and a softcap."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_model()
        self.config = self.inner.config

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()

    def forward(self, **inputs: Any) -> Any:
        out = self.inner(**inputs)
        out.logits = out.logits - out.logits.abs().sqrt()
        return out


def test_an_unknown_head_uses_the_code_of_the_model() -> None:
    """Values and gradients, with logits at scored positions only."""
    model = UnknownHead()
    scorer = Scorer.of(model)
    assert scorer.head is None
    groups = random_groups(4)
    actual = logps(scorer, rows(groups))
    assert actual.sum_S.tolist() == pytest.approx([v for g in groups for v in plain_logps(model, g)], abs=1e-4)
    actual.sum_S.sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def dense(hidden: Tensor, head: Head, target: Tensor) -> Tensor:
    z = nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    z = head.softcap * torch.tanh(z / head.softcap) if head.softcap else z
    return z.log_softmax(-1)[torch.arange(len(target)), target]


@pytest.mark.parametrize("mode", ["frozen", "stored", "recomputed"])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
@pytest.mark.parametrize(("bias", "scale", "softcap"), [(False, 1.0, 0.0), (True, 0.3, 0.0), (True, 2.0, 4.0)])
def test_token_logprobs_in_chunks_equal_dense_ones(
    monkeypatch: pytest.MonkeyPatch, mode: str, chunk: int, bias: bool, scale: float, softcap: float
) -> None:
    """Values and gradients of hidden states, weight and bias, compared with fp64 for a non-linear loss."""
    vocabulary, width, n = 50, 16, 40
    monkeypatch.setattr(logit_chunks, "chunk_tokens", lambda _weight: chunk)
    monkeypatch.setattr(token_module, "max_stored_bytes", lambda _device: 0 if mode == "recomputed" else 1 << 30)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = [random(n, width), random(vocabulary, width), random(vocabulary)]
    target = torch.randint(0, vocabulary, (n,), generator=generator)
    gradients = []
    for exact in (True, False):
        hidden, weight, offset = (
            t.clone().to(torch.float64 if exact else torch.float32).requires_grad_() for t in tensors
        )
        if mode == "frozen":
            weight, offset = weight.detach(), offset.detach()
        head = Head(weight, offset if bias else None, scale, softcap)
        assert exact or mode_of(hidden, head) == mode
        values = dense(hidden, head, target) if exact else token_logprobs(hidden, head, target)
        (values.reshape(4, 10).sum(1).tanh() ** 2).sum().backward()
        gradients.append([values.detach().double(), *(t.grad.double() for t in (hidden, weight) if t.grad is not None)])
        if bias and mode != "frozen":
            assert offset.grad is not None
            gradients[-1].append(offset.grad.double())
    for exact_value, value in zip(*gradients, strict=True):
        assert torch.allclose(exact_value, value, atol=2e-5, rtol=1e-4)


def test_the_head_never_holds_logits_of_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor in the forward and backward pass is one chunk."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class RecordLargest(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, Tensor):
                    largest = max(largest, value.numel())
            return out

    n, vocabulary, width, chunk = 400, 300, 8, 20
    monkeypatch.setattr(logit_chunks, "chunk_tokens", lambda _weight: chunk)
    monkeypatch.setattr(token_module, "max_stored_bytes", lambda _device: 0)
    hidden = torch.randn(n, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    with RecordLargest():
        token_logprobs(hidden, Head(weight), torch.randint(0, vocabulary, (n,))).sum().backward()
    assert largest <= chunk * vocabulary


def test_statistics_equal_those_of_plain_distributions() -> None:
    """Collision and KL of each response, and the gradient of the KL in the policy."""
    policy, reference = make_model(seed=1), make_model(seed=2)
    groups = random_groups(3)
    batch = rows(groups)
    states = logprobs.head_input(Scorer.of(reference), batch)
    actual = logps(Scorer.of(policy), batch, {"kl", "collision"}, (states[0].detach(), states[1]))
    expected_kl, expected_collision = [], []
    for group in groups:
        for response in group.response_ids:
            ids = torch.tensor([[*group.prompt_ids.tolist(), *response.tolist()]])
            log_pi, log_ref = (
                m(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1].log_softmax(-1) for m in (policy, reference)
            )
            expected_kl.append((log_ref.exp() * (log_ref - log_pi)).sum())
            expected_collision.append((2 * log_pi).logsumexp(-1).sum())
    assert actual.extra["kl"].tolist() == pytest.approx([v.item() for v in expected_kl], rel=1e-4)
    assert actual.extra["collision"].tolist() == pytest.approx([v.item() for v in expected_collision], rel=1e-4)
    assert not actual.extra["collision"].requires_grad
    weight = policy.model.layers[0].mlp.up_proj.weight
    [actual_gradient] = torch.autograd.grad(actual.extra["kl"].sum(), weight, retain_graph=True)
    [expected_gradient] = torch.autograd.grad(torch.stack(expected_kl).sum(), weight)
    assert torch.allclose(actual_gradient, expected_gradient, atol=1e-4, rtol=1e-3)


def test_logits_and_log_softmax_of_a_bf16_model_are_fp32() -> None:
    model = make_model().to(torch.bfloat16)
    groups = random_groups(4)
    with torch.no_grad():
        actual = logps(Scorer.of(model), rows(groups))
        hidden, head = logprobs.head_input(Scorer.of(model), rows(groups))
        logits = nn.functional.linear(hidden.double(), head.weight.double()).log_softmax(-1)
    exact = logits[torch.arange(len(hidden)), rows(groups).target_N]
    assert actual.token_N.dtype == torch.float32
    assert torch.allclose(actual.token_N.double(), exact, atol=1e-5)


def test_gradient_checkpointing_and_dropout_do_not_change_results() -> None:
    """Training mode, which checkpointing needs, has the log-probs and gradients of evaluation mode."""
    from preftune.model.load import checkpoint_activations

    results = []
    for checkpointing in (False, True):
        model = make_model("gpt2", n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
        if checkpointing:
            checkpoint_activations(model)
        actual = logps(Scorer.of(model), rows(random_groups(4)))
        actual.sum_S.sum().backward()
        results.append([actual.sum_S.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_log_probs_do_not_depend_on_the_rest_of_the_batch(model: Any) -> None:
    """Up to fp32 rounding."""
    groups = random_groups(9, responses=2)
    scorer = Scorer.of(model)
    alone = {}
    with torch.no_grad():
        for group in groups:
            alone[group.origin] = logps(scorer, rows([group])).sum_S
        for batch in micro_batches(groups, Budget("rows", 64)):
            values = logps(scorer, batch).sum_S
            for i, group in enumerate(batch.groups):
                assert torch.allclose(values[2 * i : 2 * i + 2], alone[group.origin], atol=1e-5)


def test_gradients_of_slots_that_are_read_several_times_have_the_same_bits_with_several_threads() -> None:
    hidden, read_N = torch.randn(1, 500, 64, requires_grad=True), torch.arange(3001) // 7
    weight = torch.randn(3001, 64)
    expected = torch.zeros(500, 64)
    for slot, row in zip(read_N.tolist(), weight, strict=True):
        expected[slot] += row
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in range(40):
            hidden.grad = None
            logprobs.read_slots(hidden, read_N).backward(weight)
            assert hidden.grad is not None
            assert torch.equal(hidden.grad[0], expected)
    finally:
        torch.set_num_threads(threads)
