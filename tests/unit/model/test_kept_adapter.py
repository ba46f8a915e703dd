"""Variants of LoRA adapters, and adapters on adapters: the reference is the model at step 0 in every combination."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import make_model, random_groups
from tests.unit.model.test_adapter import make_adapter
from transformers import AutoModelForCausalLM

from preftune.data.layout import rows
from preftune.errors import ModelError
from preftune.model.adapter import Variant, add_lora
from preftune.model.attention import base_of
from preftune.model.kept_adapter import save_joined
from preftune.model.load import load_model, locate, weights_hash
from preftune.model.logprobs import Scorer, logps
from preftune.model.reference import AdapterOff, Frozen

IDS = torch.tensor([[1, 5, 9, 20, 33]])
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]
VARIANTS = {
    "plain": Variant(),
    "rslora": Variant(rslora=True),
    "dora": Variant(dora=True),
    "gaussian": Variant(init="gaussian"),
    "saved": Variant(modules_to_save=("norm", "embed_tokens")),
    "saved head": Variant(modules_to_save=("lm_head",)),
    "all": Variant(rslora=True, dora=True, modules_to_save=("lm_head", "input_layernorm"), init="gaussian"),
}
TARGETS: list[Any] = ["attention", ["all-linear", "lm_head"], r".*\.(q|up)_proj"]


def change_trained(model: Any) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize(("name", "tied"), list(zip(VARIANTS, itertools.cycle((True, False)), strict=False)))
def test_policy_and_reference_are_equal_at_step_0_and_the_reference_stays(name: str, tied: bool) -> None:
    batch = rows(random_groups(3))
    for targets, dtype in zip(TARGETS, itertools.cycle((torch.float32, torch.bfloat16)), strict=False):
        if "head" in name + str(targets) and name in ("saved head", "all") and "lm_head" in targets:
            continue  # the same module cannot be both
        model = make_model(tie_word_embeddings=tied).to(dtype)
        before = logps(Scorer.of(model), batch).sum_S.detach()
        policy = Scorer.of(add_lora(model, 4, 8.0, targets, variant=VARIANTS[name]))
        off, frozen = AdapterOff.of(policy), Frozen.copy_of(policy.model)
        start = logps(policy, batch).sum_S.detach()
        assert torch.equal(off.logps(batch).sum_S, start)
        assert torch.equal(frozen.logps(batch).sum_S, start)
        if dtype == torch.float32:  # a head with an adapter computes its logits in another way
            torch.testing.assert_close(start, before, atol=1e-4, rtol=1e-6)
        logps(policy, batch).sum_S.sum().backward()
        change_trained(policy.model)
        assert torch.equal(off.logps(batch).sum_S, start)
        assert not torch.allclose(logps(policy, batch).sum_S, start, atol=1e-2)


@pytest.mark.parametrize("architecture", ["gpt_neox", "phi3", "qwen3", "gpt2"])
def test_kinds_name_the_layers_of_attention_and_the_others(architecture: str) -> None:
    small = {"n_embd": 32, "n_head": 4, "n_layer": 2} if architecture == "gpt2" else {}
    parts = {}
    for kind in ("attention", "mlp", "all-linear"):
        tuned = add_lora(make_model(architecture, **small), 2, 4.0, kind)
        parts[kind] = {name for name, m in base_of(tuned).named_modules() if hasattr(m, "lora_A")}
    assert parts["attention"]
    assert parts["mlp"]
    assert not parts["attention"] & parts["mlp"]
    assert parts["attention"] | parts["mlp"] == parts["all-linear"]
    assert all("attn" in name or "attention" in name for name in parts["attention"])
    assert not any("attn" in name or "attention" in name for name in parts["mlp"])


def test_a_list_can_have_kinds_and_names() -> None:
    tuned = add_lora(make_model(), 2, 4.0, ["attention", "lm_head"])
    names = {name.rpartition(".")[2] for name, m in base_of(tuned).named_modules() if hasattr(m, "lora_A")}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "lm_head"}


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    tuned = add_lora(make_model(), 16, 8.0, ["q_proj"], variant=Variant(rslora=True))
    layer = base_of(tuned).model.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == 2.0


@pytest.mark.parametrize(("name", "message"), [("lm_heat", "lm_head"), ("act_fn", "has no weights")])
def test_a_module_to_save_must_have_weights(name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error_info:
        add_lora(make_model(), 2, 4.0, "attention", variant=Variant(modules_to_save=(name,)))
    assert error_info.value.where == "lora.modules_to_save"


@pytest.mark.parametrize(("targets", "rslora"), [("all-linear", False), (["q_proj", "lm_head"], True)])
def test_a_kept_adapter_is_the_reference_and_both_are_saved_as_one(
    tmp_path: Path, model_folder: Path, targets: Any, rslora: bool
) -> None:
    make_adapter(tmp_path / "first", model_folder, target_modules=["v_proj", "embed_tokens", "q_proj"])
    merged = load_model(locate(str(tmp_path / "first")), torch.float32)
    base = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    kept = str(tmp_path / "first")
    policy = Scorer.of(add_lora(base, 2, 8.0, targets, variant=Variant(rslora=rslora), kept=kept))
    batch = rows(random_groups(3))
    off, start = AdapterOff.of(policy), logps(policy, batch).sum_S.detach()
    assert torch.equal(off.logps(batch).sum_S, start)
    torch.testing.assert_close(start, logps(Scorer.of(merged), batch).sum_S, atol=1e-4, rtol=1e-5)
    trained = {name for name, parameter in policy.model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".lora_" in name and ".default" in name for name in trained)
    before = weights_hash(policy.model)
    change_trained(policy.model)
    assert weights_hash(policy.model) == before
    assert torch.equal(off.logps(batch).sum_S, start)
    policy.model.peft_config["default"].base_model_name_or_path = str(model_folder)
    save_joined(policy.model, tmp_path / "both")
    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder), tmp_path / "both"
    ).eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, policy.model(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
    assert torch.allclose(
        load_model(locate(str(tmp_path / "both")), torch.float32)(input_ids=IDS).logits,
        loaded(input_ids=IDS).logits,
        atol=1e-3,
    )
    ranks = {
        name: t.shape[0]
        for name, t in load_file(tmp_path / "both" / "adapter_model.safetensors").items()
        if name.endswith("q_proj.lora_A.weight")
    }
    assert set(ranks.values()) == {6}


def test_the_hash_of_a_model_includes_a_kept_adapter(tmp_path: Path, model_folder: Path) -> None:
    hashes = set()
    for number in (1, 2):
        tuned = make_adapter(tmp_path / str(number), model_folder)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(number)
        tuned.save_pretrained(tmp_path / str(number))
        base = AutoModelForCausalLM.from_pretrained(model_folder)
        hashes.add(weights_hash(add_lora(base, 2, 4.0, "attention", kept=str(tmp_path / str(number)))))
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"use_dora": True}, "it uses DoRA"), ({"modules_to_save": ["lm_head"]}, "it has modules_to_save")],
)
def test_an_adapter_that_cannot_be_joined_is_not_kept(
    tmp_path: Path, model_folder: Path, settings: dict[str, Any], reason: str
) -> None:
    make_adapter(tmp_path, model_folder, target_modules=["q_proj"], **settings)
    with pytest.raises(ModelError, match=reason):
        add_lora(AutoModelForCausalLM.from_pretrained(model_folder), 2, 4.0, "attention", kept=str(tmp_path))
