"""Adapters: merging saved adapters, errors for adapters that do not fit, targets of new adapters."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import make_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.errors import ModelError
from preftune.model.adapter import add_lora
from preftune.model.load import load_model, load_tokenizer, locate
from preftune.model.weights import note
from preftune.rewards.open import open_reward

IDS = torch.tensor([[1, 5, 9, 20, 33]])
# Warnings of peft and transformers, which these tests also call directly.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Any:
    note.cache_clear()
    caplog.set_level(logging.WARNING, "preftune")
    return lambda: [record.getMessage() for record in caplog.records]


def randomise(model: Any) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                parameter.normal_(std=0.1)
    return model


def make_adapter(folder: Path, base: Path, kind: Any = None, rows: int = 0, **settings: Any) -> Any:
    """Save an adapter with random weights for `base` in `folder`. `rows`: resize the embedding first."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows, mean_resizing=False)
    settings = {"r": 4, "target_modules": "all-linear", **settings} if kind is None else settings
    config = (kind or peft.LoraConfig)(task_type="CAUSAL_LM", **settings)
    tuned = randomise(peft.get_peft_model(model, config)).eval()
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(folder)
    return tuned


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def configure(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(locate(str(folder)), dtype)


def with_tokens(tokenizer: Any, folder: Path, number: int = 1) -> int:
    extended = AutoTokenizer.from_pretrained(tokenizer.name_or_path) if tokenizer.name_or_path else tokenizer
    extended.add_special_tokens({"additional_special_tokens": [f"<call{i}>" for i in range(number)]})
    extended.save_pretrained(folder)
    return len(extended)


@pytest.fixture
def tied_folder(tmp_path: Path, tokenizer: Any) -> Path:
    make_model(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    tokenizer.save_pretrained(tmp_path / "tied")
    return tmp_path / "tied"


def same_logits(model: Any, other: Any, ids: torch.Tensor = IDS) -> bool:
    return bool(torch.allclose(model(input_ids=ids).logits, other(input_ids=ids).logits, atol=1e-4))


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_trained_with_added_tokens_has_the_logits_of_the_trained_model(
    tmp_path: Path, model_folder: Path, tied_folder: Path, tied: bool, notes: Any
) -> None:
    """Also for the added token."""
    base = tied_folder if tied else model_folder
    extended = AutoTokenizer.from_pretrained(base)
    extended.add_special_tokens({"additional_special_tokens": ["<call>"]})
    rows = 361
    tuned = make_adapter(tmp_path / "a", base, rows=rows, modules_to_save=["embed_tokens"])
    extended.save_pretrained(tmp_path / "a")
    model = load(tmp_path / "a")
    assert model.config.vocab_size == model.lm_head.weight.shape[0] == rows
    assert same_logits(model, tuned, torch.tensor([[1, 5, 360, 20]]))
    assert load_tokenizer(locate(str(tmp_path / "a"))).convert_tokens_to_ids("<call>") == extended.vocab_size
    if not tied:
        assert notes() == []
    model.save_pretrained(tmp_path / "merged")
    assert same_logits(
        AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), tuned, torch.tensor([[1, 5, 360, 20]])
    )


def test_a_resized_embedding_that_is_not_in_the_file_is_an_error(tmp_path: Path, model_folder: Path) -> None:
    make_adapter(tmp_path / "a", model_folder, rows=361)
    change(tmp_path / "a", lambda tensors: tensors.pop("base_model.model.lm_head.weight"))
    with pytest.raises(
        ModelError, match="the adapter's embedding has 361 rows, but that of the base model has 360"
    ) as error_info:
        load(tmp_path / "a")
    assert "lm_head.weight" in error_info.value.why
    assert "resize_token_embeddings(361)" in error_info.value.fix


@pytest.mark.parametrize("trained", ["embed_tokens", "lm_head"])
def test_new_rows_of_a_tied_embedding_are_an_error_without_the_untrained_embedding(
    tmp_path: Path, tied_folder: Path, trained: str
) -> None:
    """The trained embedding does not determine the new rows of the other one."""
    tuned = make_adapter(tmp_path / "a", tied_folder, rows=361, modules_to_save=[trained])
    assert same_logits(load(tmp_path / "a"), tuned, torch.tensor([[1, 5, 360, 20]]))
    tuned.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(
        ModelError, match="the adapter's embedding has 361 rows, but that of the base model has 360"
    ) as error_info:
        load(tmp_path / "a")
    assert "so the new rows would get random values" in error_info.value.why


def test_lora_on_a_resized_embedding_needs_the_full_embedding(tmp_path: Path, model_folder: Path) -> None:
    targets = ["q_proj", "embed_tokens", "lm_head"]
    tuned = make_adapter(tmp_path / "a", model_folder, rows=364, target_modules=targets)
    assert same_logits(load(tmp_path / "a"), tuned, torch.tensor([[1, 5, 363, 20]]))

    def remove_base_weights(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "lora_" not in name]:
            tensors.pop(name)

    change(tmp_path / "a", remove_base_weights)
    with pytest.raises(ModelError, match="the adapter's embedding has 364 rows, but that of the base model has 360"):
        load(tmp_path / "a")


def test_a_tokenizer_larger_than_the_embedding_is_an_error(tmp_path: Path, model_folder: Path) -> None:
    make_adapter(tmp_path / "a", model_folder, rows=358)
    shutil.copy(model_folder / "tokenizer.json", tmp_path / "a")
    shutil.copy(model_folder / "tokenizer_config.json", tmp_path / "a")
    tokens = len(AutoTokenizer.from_pretrained(model_folder))
    if tokens <= 358:
        make_adapter(tmp_path / "a", model_folder, rows=tokens - 1)
    with pytest.raises(ModelError, match=rf"tokenizer has {tokens} tokens, but its embedding has \d+ rows"):
        load(tmp_path / "a")


def test_a_trained_row_that_the_base_lacks_is_an_error(tmp_path: Path, tied_folder: Path) -> None:
    tokens = {"target_modules": ["q_proj"], "trainable_token_indices": [5, 9]}
    tuned = make_adapter(tmp_path / "a", tied_folder, **tokens)
    model = load(tmp_path / "a")
    assert same_logits(model, tuned)
    assert model.lm_head.weight is model.model.embed_tokens.weight  # peft trains such rows of both embeddings
    configure(tmp_path / "a", trainable_token_indices=[5, 361])
    with pytest.raises(ModelError, match="trained for token 361, but the base model's embedding has 360 rows"):
        load(tmp_path / "a")


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens", "q_proj"]])
def test_an_adapter_on_one_of_two_tied_embeddings_unties_them(
    tmp_path: Path, tied_folder: Path, targets: list[str], notes: Any
) -> None:
    tuned = make_adapter(tmp_path / "a", tied_folder, target_modules=targets)
    model = load(tmp_path / "a")
    assert same_logits(model, tuned)
    assert not model.config.tie_word_embeddings
    assert ["the merged model has tie_word_embeddings: false" in line for line in notes()] == [True]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (peft.PromptTuningConfig, {"num_virtual_tokens": 4}),
        (peft.PrefixTuningConfig, {"num_virtual_tokens": 4}),
        (peft.PromptEncoderConfig, {"num_virtual_tokens": 4, "encoder_hidden_size": 8}),
    ],
)
def test_an_adapter_type_that_cannot_be_merged_is_an_error(
    tmp_path: Path, model_folder: Path, kind: Any, settings: Any
) -> None:
    make_adapter(tmp_path / "a", model_folder, kind, **settings)
    name = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["peft_type"]
    with pytest.raises(ModelError, match=f"an adapter of type {name} cannot be merged"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (peft.IA3Config, {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        (peft.LoHaConfig, {"r": 2, "target_modules": ["q_proj"]}),
        (peft.LoraConfig, {"r": 2, "target_modules": ["q_proj"], "use_dora": True}),
        (peft.LoraConfig, {"r": 2, "target_modules": ["q_proj"], "use_rslora": True, "bias": "all"}),
    ],
)
def test_an_adapter_type_that_changes_weights_is_merged(
    tmp_path: Path, model_folder: Path, kind: Any, settings: Any, notes: Any
) -> None:
    tuned = make_adapter(tmp_path / "a", model_folder, kind, **settings)
    assert same_logits(load(tmp_path / "a"), tuned)
    assert notes() == []


@pytest.fixture
def adapter(tmp_path: Path, model_folder: Path) -> Path:
    make_adapter(tmp_path / "a", model_folder)
    return tmp_path / "a"


Q = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda t: t.pop(f"{Q}lora_A.weight"),
            r"1 of its tensors is missing: model.layers.0.self_attn.q_proj.lora_A.weight",
        ),
        (
            lambda t: t.update({f"{Q}lora_A.weight".replace("layers.0", "layers.7"): torch.zeros(4, 32)}),
            r"1 of its tensors matches no module of the base model: model.layers.7.self_attn.q_proj.lora_A.weight",
        ),
        (
            lambda t: t.update({f"{Q}lora_A.weight": torch.zeros(4, 64)}),
            r"shape: model.layers.0.self_attn.q_proj.lora_A.weight \(4x64 in the adapter, 4x32 in the base model\)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_an_error(adapter: Path, edit: Any, message: str) -> None:
    change(adapter, edit)
    with pytest.raises(ModelError, match=message):
        load(adapter)


def test_a_missing_module_to_save_is_an_error(tmp_path: Path, model_folder: Path) -> None:
    make_adapter(tmp_path / "a", model_folder, modules_to_save=["lm_head"])
    change(tmp_path / "a", lambda tensors: tensors.pop("base_model.model.lm_head.weight"))
    with pytest.raises(ModelError, match=r"1 of its tensors is missing: lm_head.weight"):
        load(tmp_path / "a")


@pytest.mark.parametrize(
    ("kind", "settings", "missing"),
    [
        (
            peft.LoraConfig,
            {"target_modules": ["q_proj"], "bias": "lora_only"},
            "layers.0.self_attn.q_proj.base_layer.bias",
        ),
        (peft.LoraConfig, {"target_modules": ["q_proj"], "bias": "all"}, "layers.1.self_attn.k_proj.bias"),
        (peft.ShiraConfig, {"target_modules": ["q_proj"], "r": 2}, "layers.0.self_attn.q_proj.shira_indices"),
    ],
)
def test_missing_tensors_that_peft_does_not_report_are_an_error(
    tmp_path: Path, tokenizer: Any, kind: Any, settings: dict[str, Any], missing: str
) -> None:
    base = tmp_path / "qwen"
    make_model("qwen2").save_pretrained(base)
    tokenizer.save_pretrained(base)
    tuned = make_adapter(tmp_path / "a", base, kind, **settings)
    assert same_logits(load(tmp_path / "a"), tuned)
    change(tmp_path / "a", lambda tensors: tensors.pop(f"base_model.model.model.{missing}"))
    with pytest.raises(ModelError, match=f"1 of its tensors is missing: model.{missing}"):
        load(tmp_path / "a")


def test_weights_are_read_from_safetensors_only(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    torch.save({name: torch.full_like(tensor, 9.0) for name, tensor in tensors.items()}, adapter / "adapter_model.bin")
    expected = load(adapter)  # if both files exist, safetensors is used
    assert float(expected.lm_head.weight.abs().max()) < 5
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"the weights are pickle files \(adapter_model.bin\)"):
        locate(str(adapter))
    (adapter / "adapter_model.bin").unlink()
    with pytest.raises(ModelError, match=r"no adapter_model.safetensors"):
        locate(str(adapter))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_model_name_or_path": None}, "has no base model"),
        ({"base_model_name_or_path": "./gone"}, r"adapter_config.json base_model_name_or_path ./gone: no such folder"),
        ({"task_type": "SEQ_CLS"}, "is for models of type SEQ_CLS, not for a language model"),
        ({"peft_type": "NOVEL"}, "does not support adapters of type NOVEL"),
        ({"target_modules": ["qkv"]}, "cannot load the adapter: Target modules"),
    ],
)
def test_an_invalid_adapter_config_is_an_error(adapter: Path, settings: Any, message: str) -> None:
    configure(adapter, **settings)
    with pytest.raises(ModelError, match=message):
        load(adapter)


def test_an_adapter_whose_base_is_an_adapter_is_an_error(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "b")
    configure(tmp_path / "b", base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="the base model of this adapter is itself an adapter"):
        load(tmp_path / "b")


def test_the_revision_of_the_base_model_is_used(
    adapter: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preftune.model.locate._reachable", lambda name, revision: True)
    configure(adapter, base_model_name_or_path="org/name", revision="abc")
    source = locate(str(adapter))
    assert (source.base, source.revision, source.adapter) == ("org/name", "abc", str(adapter))
    configure(adapter, base_model_name_or_path=str(model_folder), revision="abc")
    assert locate(str(adapter)).base == str(model_folder)


def test_an_adapter_as_a_reward_model_is_an_error(adapter: Path) -> None:
    with pytest.raises(ModelError, match="an adapter folder cannot be loaded with a scalar head"):
        open_reward(str(adapter), "--reward")


def test_unknown_adapter_settings_are_reported(adapter: Path, notes: Any) -> None:
    configure(adapter, setting_of_a_newer_version=True)
    load(adapter)
    assert len([line for line in notes() if "setting_of_a_newer_version" in line]) == 1


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "v_porj"], r"'v_porj' \(did you mean 'v_proj'\?\)"),
        (["nothing_like_it", "q_prj"], r"'nothing_like_it', 'q_prj' \(did you mean 'q_proj'\?\)"),
        ("q_proj", r"'q_proj' \(did you mean targets: \[q_proj\]\?\)"),
        ("all_linear", r"'all_linear' \(did you mean targets: all-linear\?\)"),
        (r".*layers\.7\..*", "no module of the model matches "),
        ("*q", "is not a valid regular expression"),
        ([], "the list is empty"),
        (["layers.0.self_attn.q_proj", "layers.9.self_attn.q_proj"], r"'layers.9.self_attn.q_proj'"),
    ],
)
def test_a_lora_target_that_matches_no_module_is_an_error(targets: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error_info:
        add_lora(make_model(), 4, 8.0, targets)
    assert error_info.value.where == "lora.targets"


@pytest.mark.parametrize(
    "targets",
    ["all-linear", "ALL-LINEAR", r".*\.(q|v)_proj", ["q_proj", "v_proj"], ["layers.0.self_attn.q_proj", "lm_head"]],
)
def test_a_new_adapter_does_not_change_logits_and_does_not_warn(targets: Any, notes: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = add_lora(make_model(tie_word_embeddings=True), 4, 8.0, targets)
    assert same_logits(tuned, make_model(tie_word_embeddings=True))
    assert notes() == []


def test_transposed_linear_modules_do_not_cause_a_warning(notes: Any) -> None:
    """GPT-2 has Conv1D modules, which peft detects."""
    small = {"n_embd": 32, "n_head": 4, "n_layer": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = add_lora(make_model("gpt2", **small), 4, 8.0, ["c_attn"])
    assert same_logits(tuned, make_model("gpt2", **small))
    assert notes() == []
