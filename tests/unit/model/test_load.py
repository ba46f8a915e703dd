"""Model folders: loading, errors for invalid folders, hashes, sampling."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import make_model
from transformers import AutoModelForCausalLM

from preftune.errors import ModelError
from preftune.model.generate import Sampling, sample
from preftune.model.load import end_ids, load_config, load_model, load_tokenizer, locate, source_dtype, weights_hash


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_folder, tmp_path / "m")
    return tmp_path / "m"


def test_a_model_folder_loads_in_evaluation_mode_with_its_tokenizer(model_folder: Path) -> None:
    source = locate(str(model_folder))
    model = load_model(source, torch.float32)
    assert weights_hash(model) == weights_hash(make_model())
    assert not model.training
    assert source_dtype(source) == torch.float32
    assert end_ids(source) == [2]
    assert load_tokenizer(source).eos_token_id == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nothing", "no such folder"),
        ("/no/such/model", "no such folder"),
        ("a/b/c", "no such folder"),
        ("nothing", "no such folder"),
    ],
)
def test_a_missing_folder_is_an_error(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        locate(path)


def test_an_unreachable_hub_is_an_error_before_loading() -> None:
    with pytest.raises(ModelError, match="the Hub is unreachable and the model is not in the cache"):
        locate("org/name")


def test_a_hub_id_with_revision_is_loaded_by_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preftune.model.locate._reachable", lambda name, revision: True)
    assert locate("org/name@abc").base == "org/name"
    assert locate("org/name@abc").revision == "abc"
    with pytest.raises(ModelError, match="or a Hub id that this machine can download"):
        load_model(locate("org/nothing"), torch.float32)


def test_a_folder_without_config_or_safetensors_is_an_error(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "model.bin")
    with pytest.raises(ModelError, match=r"the weights are pickle files \(model.bin\)"):
        locate(str(copy))
    (copy / "model.bin").unlink()
    with pytest.raises(ModelError, match=r"no \*.safetensors weights"):
        locate(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match="not a Hugging Face model folder"):
        locate(str(copy))


def test_a_config_that_is_not_an_object_is_an_error(copy: Path) -> None:
    (copy / "config.json").write_text('"1e-5"')
    with pytest.raises(ModelError, match=r"config.json is not a JSON object"):
        load_model(locate(str(copy)), torch.float32)


def test_truncated_weights_are_an_error(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(locate(str(copy)), torch.float32)


def test_code_in_a_model_folder_is_not_run(copy: Path) -> None:
    canary = copy / "canary"
    (copy / "modeling.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.M", "AutoConfig": "modeling.C"}
    config["model_type"] = "unheard_of"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not run"):
        load_model(locate(str(copy)), torch.float32)
    assert not canary.exists()


@pytest.mark.parametrize("custom", [True, False])
def test_the_config_of_an_unknown_model_type_is_an_error_that_advises_no_code(copy: Path, custom: bool) -> None:
    config = json.loads((copy / "config.json").read_text()) | {"model_type": "unheard_of"}
    config |= {"auto_map": {"AutoConfig": "modeling.C"}} if custom else {}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match="cannot load the config: the model needs" if custom else "update transf"
    ) as error:
        load_config(locate(str(copy)))
    assert "trust_remote_code" not in str(error.value)


@pytest.mark.parametrize("name", ["my models/the one", "owner/a--b", "owner/" + "x" * 120, "owner/-x", "a/b/c"])
def test_a_name_that_the_hub_cannot_have_is_a_missing_folder(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        locate(name)


def test_a_folder_without_tokenizer_is_an_error(copy: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(locate(str(copy)))


def test_damaged_settings_of_a_tokenizer_are_an_error(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": [1]}))
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(locate(str(copy)))


def test_a_panic_of_the_tokenizers_library_is_an_error(copy: Path) -> None:
    path = copy / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(locate(str(copy)))


def test_a_chat_template_is_set_by_name_or_file(model_folder: Path, tmp_path: Path) -> None:
    source = locate(str(model_folder))
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert load_tokenizer(source, str(tmp_path / "t.jinja")).chat_template == "{{ messages }}"
    assert "Human" in load_tokenizer(source, "dialogue").chat_template
    with pytest.raises(ModelError, match=r"is neither the name of a template \(dialogue\) nor a file"):
        load_tokenizer(source, "dialog")
    (tmp_path / "t.jinja").write_bytes(b"{\x8b}")
    with pytest.raises(ModelError, match=r"t\.jinja: the template cannot be read: .*utf-8"):
        load_tokenizer(source, str(tmp_path / "t.jinja"))


@pytest.mark.parametrize(
    ("name", "content"),
    [("generation_config.json", "true"), ("config.json", "[]"), ("config.json", '{"eos_token_id": "</s>"}')],
)
def test_damaged_ends_of_responses_are_named(copy: Path, name: str, content: str) -> None:
    source = locate(str(copy))
    (copy / name).write_text(content)
    with pytest.raises(ModelError, match=rf"cannot load the token ids that end a response \({name}\)"):
        end_ids(source)


def test_an_adapter_is_merged_into_the_base_model_in_its_config(copy: Path, tmp_path: Path) -> None:
    import peft

    from preftune.model.adapter import add_lora

    tuned = add_lora(make_model(), 4, 8.0, "all-linear")
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    tuned.peft_config["default"].base_model_name_or_path = str(copy)
    tuned.save_pretrained(tmp_path / "adapter")
    source = locate(str(tmp_path / "adapter"))
    assert (source.base, source.adapter) == (str(copy), str(tmp_path / "adapter"))
    merged = load_model(source, torch.float32)
    ids = torch.tensor([[1, 5, 9]])
    assert torch.allclose(merged(input_ids=ids).logits, tuned(input_ids=ids).logits, atol=1e-4)
    assert not isinstance(merged, peft.PeftModel)


def test_the_error_for_unknown_lora_targets_lists_the_modules() -> None:
    from preftune.model.adapter import add_lora

    with pytest.raises(ModelError, match=r"linear modules: .*q_proj"):
        add_lora(make_model(), 4, 8.0, ["query"])


def test_samples_follow_the_seed_and_end_with_eos(model_folder: Path, tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    prompts = [tokenizer(text)["input_ids"] for text in ("the cat", "a", "once upon a time")]
    runs = [sample(model, tokenizer, prompts, Sampling(3, 40, seed=s), rows=6) for s in (1, 1, 2)]
    texts = [[s.texts for s in run] for run in runs]
    assert texts[0] == texts[1] != texts[2]
    for sampled, prompt in zip(runs[0], prompts, strict=True):
        assert sampled.group.prompt_ids.tolist() == prompt
        for ids, ended in zip(sampled.group.response_ids, sampled.ended, strict=True):
            assert (ids.tolist()[-1] == 2) == ended
            assert ids.tolist()[:-1].count(2) == 0
