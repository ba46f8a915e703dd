"""Merged models: equal to the adapter on its base model, loaded again by transformers; a wrong merge is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from preftune.errors import ConfigError, NumericError, RunError
from preftune.export import merged
from preftune.export.run import ExportOptions, run
from preftune.model.weights import stored_dtypes
from preftune.train.display import Display

# peft 0.21 with transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QUIET = Display(quiet=True)
IDS = torch.tensor([[5, 17, 42, 99, 200, 31]])


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def adapter_logits(lora_run: Path) -> Any:
    """The logits of the adapter on its base model, by peft."""
    model = peft.AutoPeftModelForCausalLM.from_pretrained(lora_run / "final", dtype=torch.float32)
    return model.eval()(IDS).logits


@torch.no_grad()
def test_a_merge_in_fp32_has_the_logits_of_the_adapter(lora_run: Path, base_model: Path, tmp_path: Path) -> None:
    out = run(str(lora_run), ExportOptions("merged", dtype="fp32"), tmp_path / "m", QUIET)
    ours = load(out)(IDS).logits
    torch.testing.assert_close(ours, adapter_logits(lora_run), atol=2e-4, rtol=0)
    assert (ours - load(base_model)(IDS).logits).abs().max() > 0.1  # the adapter matters


@torch.no_grad()
def test_by_default_the_merge_has_the_dtype_of_the_base(lora_run: Path, base_model: Path, tmp_path: Path) -> None:
    out = run(str(lora_run), ExportOptions("merged"), tmp_path / "m", QUIET)
    assert set(stored_dtypes(str(out)).values()) == {torch.bfloat16}
    base = load(base_model)(IDS).logits
    effect = (adapter_logits(lora_run) - base).abs().max()
    assert (load(out)(IDS).logits - adapter_logits(lora_run)).abs().max() < effect / 2


@torch.no_grad()
def test_an_adapter_that_bf16_would_lose_is_merged_in_fp32(
    lora_run: Path, base_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The change of each weight is smaller than what bf16 can represent, as after a few steps at a low rate."""
    shutil.copytree(lora_run / "final", tmp_path / "weak")
    path = tmp_path / "weak" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: 1e-3 * value if "lora_B" in name else value for name, value in tensors.items()}, path)
    out = run(str(tmp_path / "weak"), ExportOptions("merged"), tmp_path / "m", QUIET)
    assert "bf16 is too coarse for what the adapter learned" in caplog.text
    assert set(stored_dtypes(str(out)).values()) == {torch.float32}
    with_adapter = (
        peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "weak", dtype=torch.float32).eval()(IDS).logits
    )
    effect = (with_adapter - load(base_model)(IDS).logits).abs().max()
    assert effect > 0
    assert (load(out)(IDS).logits - with_adapter).abs().max() < effect / 10
    run(str(tmp_path / "weak"), ExportOptions("merged", dtype="bf16"), tmp_path / "b", QUIET)
    assert set(stored_dtypes(str(tmp_path / "b")).values()) == {torch.bfloat16}


def test_tokenizer_template_and_settings_are_copied(lora_run: Path, base_model: Path, tmp_path: Path) -> None:
    out = run(str(lora_run), ExportOptions("merged"), tmp_path / "m", QUIET)
    ours, base = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (out, base_model))
    assert ours.chat_template == base.chat_template
    assert ours.get_vocab() == base.get_vocab()
    name = "generation_config.json"
    assert (out / name).read_text() == (base_model / name).read_text()
    assert json.loads((out / "chat_settings.json").read_text())["as_chat"] is True


def wrong_scale(model: Any) -> None:
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 1.5 * value for name, value in module.scaling.items()}


def test_a_wrong_merge_is_refused_and_leaves_no_folder(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = merged.merge_adapter

    def merge(tuned: Any, where: str) -> Any:
        wrong_scale(tuned)
        return original(tuned, where)

    monkeypatch.setattr(merged, "merge_adapter", merge)
    with pytest.raises(NumericError, match=r"differs from the model that was trained.*in fp32"):
        run(str(lora_run), ExportOptions("merged", dtype="bf16"), tmp_path / "m", QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_wrong_file_is_refused(lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    """One weight matrix of the saved file is not the merged one: bf16 rounding is no excuse."""
    original = merged._save

    def save(model: Any, *rest: Any) -> None:
        with torch.no_grad():
            weight = model.model.layers[1].mlp.down_proj.weight
            weight.copy_(weight.roll(1, 0))
        original(model, *rest)

    monkeypatch.setattr(merged, "_save", save)
    with pytest.raises(NumericError, match="after loading"):
        run(str(lora_run), ExportOptions("merged", dtype=dtype), tmp_path / "m", QUIET)


def test_a_forgotten_adapter_is_refused_in_bf16(
    lora_run: Path, base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The saved file holds the base model."""
    original = merged._save

    def save(model: Any, tokenizer: Any, source: Any, part: Path) -> None:
        original(load(base_model).to(torch.bfloat16), tokenizer, source, part)

    monkeypatch.setattr(merged, "_save", save)
    with pytest.raises(NumericError):
        run(str(lora_run), ExportOptions("merged"), tmp_path / "m", QUIET)


@torch.no_grad()
def test_a_checkpoint_is_exported(lora_run: Path, tmp_path: Path) -> None:
    last = sorted((lora_run / "checkpoints").iterdir())[-1]
    out = run(str(last), ExportOptions("merged", dtype="fp32"), tmp_path / "m", QUIET)
    torch.testing.assert_close(load(out)(IDS).logits, adapter_logits(lora_run), atol=2e-4, rtol=0)


def test_a_full_model_is_copied_with_a_card(base_model: Path, tmp_path: Path) -> None:
    out = run(str(base_model), ExportOptions("merged"), tmp_path / "m", QUIET)
    assert (out / "model.safetensors").read_bytes() == (base_model / "model.safetensors").read_bytes()
    assert "not known" in (out / "README.md").read_text()


@torch.no_grad()
def test_a_full_model_in_a_different_dtype(base_model: Path, tmp_path: Path) -> None:
    out = run(str(base_model), ExportOptions("merged", dtype="fp32"), tmp_path / "m", QUIET)
    assert set(stored_dtypes(str(out)).values()) == {torch.float32}
    assert torch.equal(load(out)(IDS).logits, load(base_model)(IDS).logits)


def test_an_adapter_whose_base_model_has_moved(lora_run: Path, base_model: Path, tmp_path: Path) -> None:
    adapter, moved = tmp_path / "adapter", tmp_path / "moved"
    shutil.copytree(lora_run / "final", adapter)
    shutil.copytree(base_model, moved)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone"}))
    out = run(str(adapter), ExportOptions("merged", base=str(moved)), tmp_path / "m", QUIET)
    expected = run(str(lora_run), ExportOptions("merged"), tmp_path / "e", QUIET)
    assert (out / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "/gone"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions("merge"), "did you mean 'merged'"),
        (ExportOptions("merged", dtype="int8"), "unknown dtype"),
        (ExportOptions("merged", converter="x"), "no effect with --to merged"),
        (ExportOptions("adapter", dtype="bf16"), "no effect with --to adapter"),
        (ExportOptions("gguf", gguf_type="q2"), "unknown type"),
        (ExportOptions("merged", name="///"), "no letters or digits"),
    ],
)
def test_a_wrong_option_is_an_error(lora_run: Path, tmp_path: Path, options: ExportOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(str(lora_run), options, tmp_path / "m", QUIET)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(lora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("x")
    with pytest.raises(RunError, match="does not overwrite"):
        run(str(lora_run), ExportOptions("merged"), tmp_path / "m", QUIET)
    assert (tmp_path / "m" / "mine").read_text() == "x"
