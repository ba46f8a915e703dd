"""A saved model has the full precision of its source, for every combination of source and compute precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import PAIRS, make_model, write_jsonl
from tests.unit.methods.test_dpo import run
from transformers import AutoModelForCausalLM

from preftune.chat.open import load_renderer
from preftune.config.schema import DataConfig, LoraConfig, ModelConfig, OptimConfig, RewardConfig, TrainConfig
from preftune.lifecycle.open_policy import open_policy
from preftune.lifecycle.policy import load_policy
from preftune.methods import reward
from preftune.model.load import load_model, locate, source_dtype
from preftune.train.display import Display

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16
NO_CHANGE = OptimConfig(lr=1e-30)  # too small to change any weight
TWO_STEPS = TrainConfig(max_steps=2)
SOURCES = {
    "fp32": lambda name: FP32,
    "fp16": lambda name: FP16,
    "bf16": lambda name: BF16,
    "bf16 with fp32 norms": lambda name: FP32 if "norm" in name else BF16,
    "fp16 with bf16 embeddings": lambda name: BF16 if "embed" in name else FP16,
}


def source(folder: Path, kind: str, tokenizer: Any, architecture: str = "llama", **changes: Any) -> Path:
    """Create a model folder whose tensors have the precisions of `kind`."""
    model = make_model(architecture, **changes)
    model.config.dtype = SOURCES[kind]("lm_head")
    model.save_pretrained(folder)
    tensors = {name: tensor.to(SOURCES[kind](name)) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)
    return folder


def same_bits(one: Path, other: Path, but: str = "") -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() - {but} == second.keys() - {but} and all(
        first[name].dtype == second[name].dtype and torch.equal(first[name], second[name])
        for name in first.keys() - {but}
    )


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", SOURCES)
def test_a_run_that_changes_nothing_saves_the_bits_of_its_source(
    tmp_path: Path, tokenizer: Any, kind: str, compute: str
) -> None:
    folder = source(tmp_path / "m", kind, tokenizer)
    final = run(tmp_path, folder, model_options={"dtype": compute}, optim=NO_CHANGE, train=TWO_STEPS)
    assert same_bits(folder, final)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_stacked_experts_keep_their_precision(tmp_path: Path, tokenizer: Any, compute: str) -> None:
    """transformers stacks the experts of Mixtral, so their names in the model differ from those in the file."""
    folder = source(tmp_path / "m", "fp16", tokenizer, "mixtral", num_local_experts=4)
    final = run(tmp_path, folder, model_options={"dtype": compute}, optim=NO_CHANGE, train=TWO_STEPS)
    assert same_bits(folder, final)


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0)])
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16 with fp32 norms"])
def test_a_reward_model_keeps_the_precision_of_its_body(
    tmp_path: Path, tokenizer: Any, kind: str, compute: str, lora: Any
) -> None:
    """Also with LoRA, which is merged into the saved model."""
    folder = source(tmp_path / "m", kind, tokenizer)
    config = RewardConfig(
        model=ModelConfig(path=str(folder), dtype=compute),
        data=DataConfig(train=str(write_jsonl(tmp_path / "d.jsonl", PAIRS))),
        optim=NO_CHANGE,
        train=TWO_STEPS,
        lora=lora,
        normalise=False,
        out=str(tmp_path / "run"),
    )
    final = reward.run(config, display=Display(quiet=True))
    before, after = (load_file(path / "model.safetensors") for path in (folder, final))
    body = before.keys() & after.keys()
    assert len(body) == 20
    assert all(before[name].dtype == after[name].dtype for name in body)
    assert all(torch.equal(before[name], after[name]) for name in body)


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_an_adapter_as_source_keeps_its_precision(tmp_path: Path, tokenizer: Any, compute: str) -> None:
    """In full training of the merged adapter, and in the base that is saved with a second adapter."""
    folder = source(tmp_path / "m", "fp32", tokenizer)
    (tmp_path / "one").mkdir()
    first = run(tmp_path / "one", folder, lora=LoraConfig(rank=4, alpha=8.0), optim=OptimConfig(lr=1e-2))
    merged = dict(load_model(locate(str(first)), FP32).named_parameters())
    options: dict[str, Any] = {"model_options": {"dtype": compute}, "optim": NO_CHANGE, "train": TWO_STEPS}
    (tmp_path / "full").mkdir()
    (tmp_path / "two").mkdir()
    full = load_file(run(tmp_path / "full", first, **options) / "model.safetensors")
    run(tmp_path / "two", first, lora=LoraConfig(rank=2, alpha=4.0), **options)
    base = load_file(tmp_path / "two" / "run" / "base" / "model.safetensors")
    for name, parameter in merged.items():
        assert torch.equal(full[name], parameter), name
        assert torch.equal(base[name], parameter), name


def test_an_adapter_in_bf16_is_rounded_once(tmp_path: Path, tokenizer: Any) -> None:
    folder = source(tmp_path / "m", "fp32", tokenizer)
    final = run(tmp_path, folder, lora=LoraConfig(rank=4, alpha=8.0), optim=OptimConfig(lr=1e-2), train=TWO_STEPS)
    exact, half = (load_model(locate(str(final)), dtype) for dtype in (FP32, BF16))
    assert {p.dtype for p in half.parameters()} == {BF16}
    for (name, one), (_, other) in zip(exact.named_parameters(), half.named_parameters(), strict=True):
        assert torch.equal(one.to(BF16), other), name
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    for (name, one), (_, other) in zip(plain.named_buffers(), half.named_buffers(), strict=True):
        assert one.dtype == other.dtype, name
        assert torch.equal(one, other), name


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox", "qwen3", "phi3", "gpt2", "opt", "granite"])
@pytest.mark.parametrize("kind", ["fp32", "fp16", "bf16"])
def test_a_policy_in_bf16_equals_the_model_that_transformers_loads_in_bf16(
    tmp_path: Path, tokenizer: Any, architecture: str, kind: str
) -> None:
    """Parameters and buffers are equal. Rotary frequencies stay in fp32, which large positions such as 1000 need."""
    changes = {"max_position_embeddings": 1024} | ({"pad_token_id": 0} if architecture != "opt" else {})
    folder = source(tmp_path / "m", kind, tokenizer, architecture, **changes)
    config = RewardConfig(
        model=ModelConfig(path=str(folder), dtype="bf16", attention="rows"), data=DataConfig(train="x"), out="y"
    )
    where = locate(str(folder))
    policy = load_policy(config, where, load_renderer(config.data, where)).model
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=BF16)
    ours, theirs = ([*m.named_parameters(), *m.named_buffers()] for m in (policy, expected))
    assert [(name, t.dtype) for name, t in ours] == [(name, t.dtype) for name, t in theirs]
    assert [name for (name, a), (_, b) in zip(ours, theirs, strict=True) if not torch.equal(a, b)] == []
    ids = torch.arange(3, 303).repeat(4)[None, :1001]
    assert torch.equal(policy(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_a_reward_model_in_bf16_has_fp32_rotary_frequencies(tmp_path: Path, tokenizer: Any) -> None:
    folder = source(tmp_path / "m", "fp32", tokenizer)
    config = RewardConfig(model=ModelConfig(path=str(folder), dtype="bf16"), data=DataConfig(train="x"), out="y")
    where = locate(str(folder))
    policy = load_policy(config, where, load_renderer(config.data, where), scalar=True)
    assert policy.model.model.rotary_emb.inv_freq.dtype == FP32
    assert torch.equal(policy.model.model.rotary_emb.inv_freq, make_model().model.rotary_emb.inv_freq)
    assert policy.precise["model.norm.weight"].dtype == FP32


def test_a_model_in_memory_in_bf16_keeps_its_rotary_frequencies(tmp_path: Path, tokenizer: Any) -> None:
    model = make_model()
    before = model.model.rotary_emb.inv_freq.clone()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(BF16)
    run(tmp_path, model, tokenizer, model_options={"dtype": "bf16"}, optim=NO_CHANGE, train=TWO_STEPS)
    assert torch.equal(model.model.rotary_emb.inv_freq, before)


@pytest.mark.parametrize(("kind", "expected"), [("fp16", FP16), ("bf16", BF16), ("bf16 with fp32 norms", FP32)])
def test_the_precision_is_read_from_the_tensors(
    tmp_path: Path, tokenizer: Any, kind: str, expected: torch.dtype
) -> None:
    """Not from config.json, which may lack it or differ."""
    folder = source(tmp_path / "m", kind, tokenizer)
    config = folder / "config.json"
    config.write_text("\n".join(line for line in config.read_text().splitlines() if '"dtype"' not in line))
    assert source_dtype(locate(str(folder))) == expected


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2, alpha=4.0)])
def test_a_checkpoint_opened_in_bf16_equals_the_final_model(tmp_path: Path, tokenizer: Any, lora: Any) -> None:
    folder = source(tmp_path / "m", "fp32", tokenizer)
    train = TrainConfig(max_steps=2, save_every=2)
    options = {"dtype": "bf16"}
    final = run(tmp_path, folder, lora=lora, model_options=options, train=train, optim=OptimConfig(lr=1e-2))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    one, other = (open_policy(str(path), "--policy", BF16, torch.device("cpu")).model for path in (final, checkpoint))
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
