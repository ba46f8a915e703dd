"""Quantised base weights: their values, gradients, memory, adapters on them, and models that are loaded with them."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_model, make_tokenizer, random_groups
from tests.unit.model.test_adapter import make_adapter
from torch import nn

from preftune.data.layout import batch_of
from preftune.errors import ConfigError, ModelError
from preftune.model.adapter import Variant, add_lora
from preftune.model.load import load_model, locate, weights_hash
from preftune.model.locate import QUANT_RECORD
from preftune.model.logprobs import Scorer, logps, model_size
from preftune.model.quantised import (
    QuantisedLinear,
    dequantise,
    quantise,
    quantised_layers,
    quantised_weights,
    stored_tensors,
)
from preftune.model.reference import AdapterOff, Frozen

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
HAS_NF4 = importlib.util.find_spec("bitsandbytes") is not None
KINDS = ["int8", pytest.param("nf4", marks=pytest.mark.skipif(not HAS_NF4, reason="needs bitsandbytes"))]
# The 16 values of NF4 (Dettmers et al. 2023, appendix E), rounded.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
    ]
)


def plain_layer(dtype: torch.dtype = torch.float32, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 48, bias=bias).to(dtype)


def test_int8_is_the_nearest_of_255_values_per_row() -> None:
    weight = plain_layer().weight.detach()
    dense = QuantisedLinear(plain_layer(), "int8").dense(torch.float32)
    scale = weight.abs().amax(1, keepdim=True) / 127
    assert (dense - weight).abs().le(scale / 2 * 1.0001).all()
    assert torch.allclose((dense / scale).round(), dense / scale, atol=1e-4)


@pytest.mark.skipif(not HAS_NF4, reason="needs bitsandbytes")
def test_nf4_is_the_nearest_of_16_values_per_block() -> None:
    """Compared with NF4 written down from the paper. The 8-bit scales of the blocks add up to about 1 %."""
    weight = plain_layer().weight.detach()
    blocks = weight.reshape(-1, 64)
    top = blocks.abs().amax(1, keepdim=True)
    nearest = NF4[(blocks[..., None] / top[..., None] - NF4).abs().argmin(-1)] * top
    dense = QuantisedLinear(plain_layer(), "nf4").dense(torch.float32).reshape(-1, 64)
    assert (dense - nearest).abs().le(0.02 * top).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_quantised_layer_is_the_plain_layer_with_its_dequantised_weight(
    kind: str, dtype: torch.dtype, bias: bool
) -> None:
    """Outputs and gradients are the same bits, with autograd and without."""
    layer = QuantisedLinear(plain_layer(dtype, bias), kind)
    x = torch.randn(5, 128, dtype=dtype, requires_grad=True)
    expected = x @ layer.dense(dtype).T
    expected = expected + layer.bias if bias else expected
    actual = layer(x)
    assert torch.equal(actual, expected)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    signs = torch.randn_like(actual)
    assert torch.equal(*(torch.autograd.grad(out, x, signs)[0] for out in (actual, expected)))
    assert not list(layer.parameters()) or bias


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_are_quantised_and_nothing_else(kind: str) -> None:
    model, plain = make_model(), make_model()
    quantise(model, kind)
    names = {name for name, _ in quantised_layers(model)}
    linear = {name for name, m in plain.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in name}
    assert names == linear
    assert quantised_weights(model) == sum(m.weight.numel() for n, m in plain.named_modules() if n in linear)  # type: ignore[union-attr,operator]
    assert model_size(model) == (model_size(plain)[0], 0)
    stored = sum(t.numel() * t.element_size() for t in stored_tensors(model))
    assert stored < quantised_weights(model) * (1.3 if kind == "int8" else 1.8)  # 5 small tensors per tiny layer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_margins_are_0_and_layouts_agree_on_a_quantised_base(kind: str, dtype: torch.dtype) -> None:
    groups = random_groups(4)
    for variant in (Variant(), Variant(dora=True), Variant(rslora=True, modules_to_save=("norm",))):
        model = quantise(make_model().to(dtype), kind)
        policy = Scorer.of(add_lora(model, 4, 8.0, "all-linear", variant=variant))
        off, frozen = AdapterOff.of(policy), Frozen.copy_of(policy.model)
        batch = batch_of(groups, "rows")
        start = logps(policy, batch)
        assert torch.equal(off.logps(batch).sum_S, start.sum_S)
        assert torch.equal(frozen.logps(batch).sum_S, start.sum_S)
        if dtype == torch.float32:  # a token's log-probs do not depend on the other rows
            alone = [logps(policy, batch_of([group], "rows")).sum_S for group in groups]
            torch.testing.assert_close(torch.cat(alone), start.sum_S, atol=1e-4, rtol=1e-5)
        start.sum_S.sum().backward()
        gradients = [p.grad for p in policy.model.parameters() if p.requires_grad]
        assert gradients
        assert any(bool(g.abs().max() > 0) for g in gradients if g is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_dequantised_and_copied_models_have_the_same_outputs(kind: str) -> None:
    model = quantise(make_model(), kind)
    ids = torch.tensor([[1, 5, 9, 20]])
    expected = model(input_ids=ids).logits
    assert torch.equal(copy.deepcopy(model)(input_ids=ids).logits, expected)
    assert torch.equal(dequantise(model, torch.float32)(input_ids=ids).logits, expected)
    assert not list(quantised_layers(model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_depends_on_scales_and_kind(kind: str) -> None:
    """Weights that are twice as large have the same codes."""
    double = make_model()
    with torch.no_grad():
        double.model.layers[0].mlp.up_proj.weight.mul_(2)
    hashes = {
        weights_hash(make_model()),
        weights_hash(quantise(make_model(), kind)),
        weights_hash(quantise(double, kind)),
    }
    assert len(hashes) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_a_quantised_base_is_loaded_on_that_base(tmp_path: Path, model_folder: Path, kind: str) -> None:
    make_adapter(tmp_path, model_folder)
    (tmp_path / QUANT_RECORD).write_text(json.dumps({"quant": kind}))
    source = locate(str(tmp_path))
    assert source.quant == kind
    ids = torch.tensor([[1, 5, 9, 20]])
    merged, kept = load_model(source, torch.float32), load_model(source, torch.float32, keep_quant=True)
    assert quantised_weights(kept)
    assert not quantised_weights(merged)
    torch.testing.assert_close(kept(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    (tmp_path / QUANT_RECORD).unlink()
    other = load_model(locate(str(tmp_path)), torch.float32)
    assert not torch.allclose(other(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-3)


def test_a_path_can_name_a_quantisation(model_folder: Path, tmp_path: Path) -> None:
    source = locate(f"{model_folder}:int8")
    assert (source.base, source.quant) == (str(model_folder), "int8")
    kept = load_model(source, torch.bfloat16, keep_quant=True)
    layer = next(layer for _, layer in quantised_layers(kept))
    exact = QuantisedLinear(make_model().model.layers[0].self_attn.q_proj, "int8")
    assert torch.equal(layer.codes, exact.codes)  # type: ignore[arg-type]  # from fp32, not from rounded weights
    assert layer.dtype == kept.dtype == torch.bfloat16
    make_adapter(tmp_path, model_folder)
    (tmp_path / QUANT_RECORD).write_text('{"quant": "nf4"}')
    with pytest.raises(ModelError, match="trained on a base model in nf4"):
        locate(f"{tmp_path}:int8")
    (tmp_path / QUANT_RECORD).write_text('{"quant": "nf3"}')
    with pytest.raises(ModelError, match="does not name a quantisation"):
        locate(str(tmp_path))


def test_nf4_without_its_package_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="bitsandbytes") as error_info:
        quantise(make_model(), "nf4")
    assert "preftune[quant]" in error_info.value.fix


def run_dpo(tmp_path: Path, model: Any, **sections: Any) -> Path:
    from tests.unit.methods.test_dpo import run

    return run(tmp_path, model, **sections)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_a_quantised_base_is_saved_scored_and_continued(tmp_path: Path, kind: str) -> None:
    from tests.unit.methods.test_dpo import lines

    from preftune.config.schema import LoraConfig, OptimConfig
    from preftune.lifecycle.open_policy import open_policy

    base = tmp_path / "base"
    make_model().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    settings = {"optim": OptimConfig(lr=1e-2), "model_options": {"quant": kind}}
    for name in ("one", "merge", "keep"):
        (tmp_path / name).mkdir()
    final = run_dpo(tmp_path / "one", base, lora=LoraConfig(rank=4, alpha=8.0), **settings)
    first, *_, last = lines(tmp_path / "one")
    assert first["rewards/margins"] == 0.0
    assert last["rewards/margins"] > 0.01
    assert json.loads((final / QUANT_RECORD).read_text()) == {"quant": kind}
    opened = open_policy(str(final), "model", torch.float32, torch.device("cpu")).model
    assert quantised_weights(opened)
    ids = torch.tensor([[1, 5, 9, 20]])
    for name in ("merge", "keep"):
        lora = LoraConfig(rank=2, alpha=4.0, adapter=name)
        second = run_dpo(tmp_path / name, final, lora=lora, **settings)
        assert lines(tmp_path / name)[0]["rewards/margins"] == 0.0
        config = json.loads((second / "adapter_config.json").read_text())
        below = tmp_path / "merge" / "run" / "base" if name == "merge" else base
        assert config["base_model_name_or_path"] == str(below.resolve())
    merged_base = load_model(locate(str(tmp_path / "merge" / "run" / "base")), torch.float32)
    policy = load_model(locate(str(final)), torch.float32)
    torch.testing.assert_close(merged_base(input_ids=ids).logits, policy(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_full_training_and_models_in_memory_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    from preftune.config.schema import LoraConfig, ModelConfig, SFTConfig

    with pytest.raises(ConfigError, match=r"model\.quant needs lora"):
        SFTConfig(model=ModelConfig(path="m", quant="nf4"), data={"train": "x.jsonl"})  # type: ignore[arg-type]
    from tests.unit.methods.test_dpo import run

    with pytest.raises(ConfigError, match="a model in memory is not quantised"):
        run(tmp_path, make_model(), tokenizer, lora=LoraConfig(rank=2), model_options={"quant": "int8"})
