"""Weight files: a model loads only if its files have all tensors; errors list the names."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.conftest import make_model
from transformers import LlamaForSequenceClassification

from preftune.errors import ModelError
from preftune.model.load import load_model, locate
from preftune.model.scalar import load_scalar
from preftune.model.weight_files import shards_of
from preftune.model.weights import note
from preftune.rewards.judges import open_judge
from preftune.rewards.open import open_reward

Tensors = dict[str, Any]


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(model_folder, tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Any:
    note.cache_clear()
    caplog.set_level(logging.WARNING, "preftune")
    return lambda: [record.getMessage() for record in caplog.records]


def change(folder: Path, edit: Callable[[Tensors], Any]) -> Path:
    """Rewrite the weights of a model folder."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def configure(folder: Path, **settings: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    return folder


def renamed(tensors: Tensors, old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


def load(folder: Path) -> Any:
    return load_model(locate(str(folder)), torch.float32)


def classifier(folder: Path, labels: int = 1, **settings: Any) -> Path:
    """Save a sequence classifier in `folder`."""
    config = make_model().config
    config.num_labels = labels
    LlamaForSequenceClassification(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").touch()
    return configure(folder, **settings)


def shard(folder: Path, parts: int = 2, name: str = "model-{}.safetensors") -> list[str]:
    """Split the weights into several files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {tensor: name.format(number % parts) for number, tensor in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({t: tensors[t] for t in names if weight_map[t] == file}, folder / file, metadata={"format": "pt"})
    write_index(folder, weight_map)
    return sorted(set(weight_map.values()))


def write_index(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "1 of 21 tensors of the model is missing: model.norm.weight"),
        (lambda t: t.pop("lm_head.weight"), r"missing: lm_head.weight(.|\n)*set tie_word_embeddings: true"),
        (
            lambda t: renamed(t, "model.norm.weight", "model.final_norm.weight"),
            r"missing: model.norm.weight(.|\n)*1 tensor in the files is not used: model.final_norm.weight"
            r"(.|\n)*Perhaps renamed: model.final_norm.weight for model.norm.weight",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros(361, 32)}),
            r"1 of 21 tensors has the wrong shape: lm_head.weight \(361x32 in the file, 360x32 in the model\)",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if "layers.1" in name],
            r"9 of 21 tensors of the model are missing: .* and 5 more",
        ),
        (
            lambda t: [renamed(t, name, f"transformer.{name}") for name in list(t)],
            r"21 of 21 tensors of the model are missing(.|\n)*21 tensors in the files are not used",
        ),
    ],
)
def test_weights_that_do_not_fit_are_an_error(folder: Path, edit: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message) as error_info:
        load(change(folder, edit))
    assert error_info.value.exit_code == 4
    assert error_info.value.where == str(folder)


@given(st.sets(st.sampled_from(sorted(make_model().state_dict())), min_size=1, max_size=4))
def test_the_error_lists_every_missing_tensor(tmp_path_factory: Any, names: set[str]) -> None:
    folder = tmp_path_factory.mktemp("m")
    make_model().save_pretrained(folder)
    change(folder, lambda tensors: [tensors.pop(name) for name in names])
    with pytest.raises(ModelError) as error_info:
        load(folder)
    are = "is" if len(names) == 1 else "are"
    assert error_info.value.what == f"{len(names)} of 21 tensors of the model {are} missing: {', '.join(sorted(names))}"


@pytest.mark.parametrize(
    "edit",
    [
        lambda t: t.pop("model.layers.0.block_sparse_moe.experts.0.w1.weight"),
        lambda t: t.pop("model.layers.0.block_sparse_moe.experts.3.w2.weight"),
        lambda t: t.pop("model.layers.1.block_sparse_moe.gate.weight"),
    ],
)
def test_a_missing_expert_is_an_error_with_the_name_of_the_stacked_tensor(tmp_path: Path, edit: Any) -> None:
    make_model("mixtral", num_local_experts=4).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.layers\.[01]\.mlp\.(experts|gate)"):
        load(change(tmp_path, edit))


def test_unused_tensors_are_reported_once(folder: Path, notes: Any) -> None:
    extra = {f"mtp.{number}.weight": torch.zeros(2) for number in range(5)}
    change(folder, lambda tensors: tensors.update(extra))
    load(folder)
    load(folder)
    names = "mtp.0.weight, mtp.1.weight, mtp.2.weight, mtp.3.weight and 1 more"
    assert notes() == [f"note: {folder}: 5 tensors in the weight files are not used: {names}"]


def test_one_of_two_tied_embeddings_in_the_file_is_sufficient(tmp_path: Path, notes: Any) -> None:
    model = make_model(tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    change(tmp_path, lambda t: renamed(t, "model.embed_tokens.weight", "lm_head.weight"))  # under either name
    assert torch.equal(load(tmp_path).model.embed_tokens.weight, model.lm_head.weight)
    change(tmp_path, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(ModelError, match=r"missing: .*model.embed_tokens.weight"):
        load(tmp_path)
    assert notes() == []


def test_wrong_tie_word_embeddings_is_corrected_and_reported(folder: Path, notes: Any) -> None:
    loaded = load(configure(folder, tie_word_embeddings=True))
    assert not loaded.config.tie_word_embeddings
    assert torch.equal(loaded.lm_head.weight, make_model().lm_head.weight)
    assert ["have different values; both are used" in line for line in notes()] == [True]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "opt"])
def test_complete_models_load_without_notes(tmp_path: Path, architecture: str, notes: Any) -> None:
    make_model(architecture).save_pretrained(tmp_path)
    load(tmp_path)
    assert notes() == []


def test_a_missing_tensor_of_a_judge_or_reference_is_an_error(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"model.norm.weight"):
        open_judge(f"lm:{folder}", "--judge", device="cpu")
    with pytest.raises(ModelError, match=r"model.norm.weight"):
        open_reward(f"implicit:{folder},{folder}", "--reward")


def test_a_reward_model_without_head_is_an_error_unless_the_head_is_new(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer.save_pretrained(tmp_path)
    classifier(tmp_path)
    open_reward(str(tmp_path), "--reward")
    change(tmp_path, lambda tensors: tensors.pop("score.weight"))
    with pytest.raises(ModelError, match=r"the reward model has no head: score.weight is not in its weights"):
        open_reward(str(tmp_path), "--reward")
    new = load_scalar(locate(str(tmp_path)), torch.float32, new_head=True)
    assert not new.score.weight.any()
    change(tmp_path, lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(ModelError, match=r"missing: model.norm.weight"):
        load_scalar(locate(str(tmp_path)), torch.float32, new_head=True)


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("new_head", [True, False])
def test_a_reward_model_with_several_labels_is_an_error(tmp_path: Path, labels: int, new_head: bool) -> None:
    classifier(tmp_path, labels)
    with pytest.raises(ModelError, match=f"the model has {labels} labels, but a reward model has one"):
        load_scalar(locate(str(tmp_path)), torch.float32, new_head)


def test_a_new_reward_model_loads_from_a_language_model_without_notes(folder: Path, notes: Any) -> None:
    load_scalar(locate(str(folder)), torch.float32, new_head=True)
    assert notes() == []


def test_a_reward_model_as_a_policy_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing: lm_head.weight(.|\n)*not used: score.weight"):
        load(classifier(tmp_path))


def test_a_model_loads_from_shards(folder: Path) -> None:
    expected = load(folder)
    assert len(shard(folder, 3)) == 3
    assert torch.equal(load(folder).lm_head.weight, expected.lm_head.weight)


def test_a_missing_shard_is_an_error(folder: Path) -> None:
    _, second = shard(folder)
    (folder / second).unlink()
    with pytest.raises(ModelError, match=rf"1 of 2 weight files are missing: {second}"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/tmp/o.safetensors", "sub/../../o.safetensors", "..\\o.safetensors"]
)
def test_an_index_that_lists_a_file_outside_of_its_folder_is_an_error(folder: Path, tmp_path: Path, name: str) -> None:
    shard(folder)
    save_file({"lm_head.weight": torch.zeros(360, 32)}, tmp_path / "other.safetensors")
    write_index(folder, {"lm_head.weight": name, "model.norm.weight": "model-0.safetensors"})
    with pytest.raises(ModelError, match="the index lists a file outside of its folder: "):
        locate(str(folder))


def test_a_shard_that_links_to_another_folder_is_an_error(folder: Path, tmp_path: Path) -> None:
    first, _ = shard(folder)
    (folder / first).rename(tmp_path / "elsewhere.safetensors")
    (folder / first).symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ModelError, match=f"the index lists a file outside of its folder: {first}"):
        load(folder)


def test_links_in_the_cache_of_the_hub_are_followed(folder: Path, tmp_path: Path) -> None:
    first, second = shard(folder)
    (tmp_path / "c" / "blobs").mkdir(parents=True)
    (tmp_path / "c" / "snapshots").mkdir()
    for number, name in enumerate((first, second)):
        (folder / name).rename(tmp_path / "c" / "blobs" / str(number))
        (folder / name).symlink_to(os.path.join("..", "..", "blobs", str(number)))
    folder.rename(tmp_path / "c" / "snapshots" / "abc")
    load(tmp_path / "c" / "snapshots" / "abc")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"weight_map": {"a": "pytorch_model.bin"}}', "files that are not safetensors: pytorch_model.bin"),
        ('{"weight_map": {"a": 3}}', "not safetensors: 3"),
        ('{"weight_map": {}}', "does not list any files"),
        ('{"weight_map": ["a"]}', "not a valid shard index"),
        ("{", "not a valid shard index"),
    ],
)
def test_an_invalid_index_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=message):
        shards_of(path)


def test_a_pickle_file_in_config_json_is_an_error(folder: Path) -> None:
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"config.json has transformers_weights: 'adapter_model.bin'"):
        load(configure(folder, transformers_weights="adapter_model.bin"))


def test_safetensors_with_another_name_are_an_error(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(
        ModelError, match=r"neither model.safetensors nor .*index.json(.|\n)*the folder has weights.safetensors"
    ):
        load(folder)


def test_safetensors_take_precedence_over_pickle_files(folder: Path) -> None:
    torch.save(make_model(seed=9).state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(load(folder).lm_head.weight, make_model().lm_head.weight)


def test_a_quantisation_without_a_method_is_an_error_of_the_model(tmp_path: Path, model_folder: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": "x"}))
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(locate(str(path.parent)), torch.float32)


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_a_model_that_is_stored_quantised_is_an_error(tmp_path: Path, model_folder: Path, method: str) -> None:
    shutil.copytree(model_folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": {"quant_method": method}}))
    with pytest.raises(ModelError, match=f"stored quantised .{method}."):
        load_model(locate(str(path.parent)), torch.float32)
