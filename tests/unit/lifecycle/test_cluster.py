"""The plan for several GPUs: sizes from config.json, memory, traffic, time, and published runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, make_model, make_tokenizer, random_groups, write_jsonl

from preftune.cli.cluster import planned
from preftune.config.schema import DataConfig, DPOConfig, LoraConfig, ModelConfig, OptimConfig, RunConfig, SFTConfig
from preftune.data.layout import batch_of
from preftune.errors import ConfigError, ModelError
from preftune.lifecycle.cluster import Cluster, Work, cluster_lines, memory_parts, operations, read_bytes, traffic
from preftune.lifecycle.cluster_model import read_shape
from preftune.lifecycle.cluster_run import plan_cluster, work_of
from preftune.model.adapter import Variant, add_lora
from preftune.model.logprobs import Scorer, model_size
from preftune.model.memory import activation_bytes
from preftune.train.display import Display

LLAMA_8B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_70B = (
    LLAMA_8B | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80} | {"num_attention_heads": 64}
)


def folder_of(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def sft(path: Path, max_length: int = 8192, **sections: Any) -> SFTConfig:
    model = ModelConfig(path=str(path), dtype="bf16", **sections.pop("model", {}))
    return SFTConfig(model=model, data=DataConfig(train="x.jsonl", max_length=max_length), **sections)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path / "tiny")
    for file in (tmp_path / "tiny").glob("*.safetensors"):
        file.unlink()
    return tmp_path / "tiny"


@pytest.mark.parametrize(
    "lora",
    [
        None,
        LoraConfig(rank=4),
        LoraConfig(rank=3, targets="attention", dora=True),
        LoraConfig(rank=2, targets=r".*q_proj", modules_to_save=["lm_head", "input_layernorm"]),
        LoraConfig(rank=2, targets=["mlp", "embed_tokens"]),
    ],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_parameters_are_counted_as_by_the_model_itself(tiny: Path, lora: LoraConfig | None) -> None:
    shape = read_shape(sft(tiny, lora=lora))
    model = make_model()
    assert shape.parameters == model_size(model)[0]
    trained = shape.parameters
    if lora:
        variant = Variant(dora=lora.dora, modules_to_save=tuple(lora.modules_to_save))
        trained = model_size(add_lora(model, lora.rank, lora.alpha, lora.targets, variant=variant))[1]
    assert shape.trained == trained
    assert shape.root + 2 * shape.block == shape.parameters
    assert shape.trained_root + 2 * shape.trained_block == trained


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt_neox", "phi3"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_activations_are_close_to_those_of_a_real_forward_pass(tmp_path: Path, architecture: str, dtype: str) -> None:
    model = make_model(architecture)
    model.save_pretrained(tmp_path)
    config = SFTConfig(model=ModelConfig(path=str(tmp_path), dtype=dtype), data=DataConfig(train="x"))  # type: ignore[arg-type]
    scorer = Scorer.of(model.to(torch.float32 if dtype == "fp32" else torch.bfloat16))
    batch = batch_of(random_groups(6), "rows")
    measured = activation_bytes(scorer, batch) / len(batch.ids_T)
    assert read_shape(config).per_slot == pytest.approx(measured, rel=0.15)


def test_llama_8b_and_70b_have_their_published_sizes(tmp_path: Path) -> None:
    assert read_shape(sft(folder_of(tmp_path / "8b", LLAMA_8B))).parameters == 8_030_261_248
    assert read_shape(sft(folder_of(tmp_path / "70b", LLAMA_70B))).parameters == 70_553_706_496


def test_memory_is_sharded_over_ranks_and_quantised_weights_are_not(tmp_path: Path) -> None:
    config = sft(folder_of(tmp_path, LLAMA_8B))
    shape = read_shape(config)
    one = memory_parts(shape, config, Cluster(1, 80 * 10**9), 8192, 8192)
    eight = memory_parts(shape, config, Cluster(8, 80 * 10**9), 8192, 8192)
    n = shape.parameters
    assert (one["weights"], one["fp32 masters"], one["gradients"], one["optimizer"]) == (2 * n, 4 * n, 4 * n, 8 * n)
    assert (eight["weights"], eight["fp32 masters"]) == (4 * n // 8, 0)
    assert (eight["gradients"], eight["optimizer"]) == (4 * n // 8, n)
    assert eight["activations"] == one["activations"]
    lora = sft(tmp_path, lora=LoraConfig(), model={"quant": "nf4"})
    shape = read_shape(lora)
    stored = memory_parts(shape, lora, Cluster(8, 80 * 10**9), 512, 512)["weights"]
    # 4.127 bits per weight (QLoRA, section 3), on each rank; embedding and output layer in bf16 shards
    assert stored == pytest.approx(shape.linear * 4.127 / 8 + (2 * 2 * 128256 * 4096 + 4 * shape.trained) / 8, rel=0.01)


def test_traffic_counts_each_gathered_and_reduced_weight(tmp_path: Path) -> None:
    config = sft(folder_of(tmp_path, LLAMA_8B))
    shape = read_shape(config)
    sent = traffic(shape, config, Cluster(4, 1), 2)
    assert sent["weights"] == pytest.approx(2 * 0.75 * 2 * (2 * shape.parameters - shape.root), rel=1e-9)
    assert sent["gradients"] == pytest.approx(2 * 0.75 * 4 * shape.parameters, rel=1e-9)
    assert sum(traffic(shape, config, Cluster(1, 1), 2).values()) == 0


def test_operations_are_six_per_parameter_and_token_and_attention(tmp_path: Path) -> None:
    config = sft(folder_of(tmp_path, LLAMA_8B), max_length=8192)
    shape, work = read_shape(config), Work(8192, 8192, 8192, 1, "")
    body = shape.parameters - 128256 * 4096  # an embedding is a look-up
    attention = 3 * 2 * 2 * 32 * 4096 * 8192 / 2  # QK and PV, causal
    norms = 4096  # the last norm is in the root
    assert operations(shape, config, work) == pytest.approx(8192 * (6 * (body - norms) + attention), rel=1e-6)


# docs/do/scale.md has the sources: torchtitan (8B on 8 GPUs of 96 GB, 70B on 64 of 80 GB), torchtune (QLoRA on 24 GB).
def test_published_runs_fit_where_they_ran(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "8b", LLAMA_8B)
    full = sft(path, batch={"pairs": 16, "tokens": 16384})
    work = Work(16 * 8192, 8192, 16 * 8192, 1, "")
    lines, fits = cluster_lines(
        full.model_copy(update={"model": full.model.model_copy(update={"gradient_checkpointing": True})}),
        Cluster(8, 96 * 10**9),
        work,
        False,
    )
    assert fits, lines
    qlora = sft(path, 2048, lora=LoraConfig(), model={"quant": "nf4", "gradient_checkpointing": True})
    assert cluster_lines(qlora, Cluster(1, 24 * 10**9), Work(4096, 2048, 4096, 1, ""), False)[1]
    big = sft(folder_of(tmp_path / "70b", LLAMA_70B), model={"gradient_checkpointing": True})
    assert cluster_lines(big, Cluster(64, 80 * 10**9), Work(64 * 8192, 8192, 64 * 8192, 1, ""), False)[1]
    lines, fits = cluster_lines(big, Cluster(8, 80 * 10**9), Work(64 * 8192, 8192, 64 * 8192, 1, ""), False)
    assert not fits
    assert "does not fit" in lines[-1]
    assert "lora" in lines[-1]
    assert "64 ranks" in lines[-1]


def test_a_plan_needs_only_config_and_data(tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", PAIRS)
    config = DPOConfig(model=ModelConfig(path=str(tiny)), data=DataConfig(train=str(data), max_length=64))
    work = work_of(config)
    assert (work.largest, work.slots, work.steps) == (128, 64 * 128, 1)
    assert plan_cluster(config, Cluster(4, 10**10, 1e12, 1e9), Display())
    out = "".join(capsys.readouterr())
    assert "memory per rank" in out
    assert "each rank receives" in out
    assert "time: about" in out
    make_tokenizer().save_pretrained(tiny)
    exact = work_of(config)
    assert exact.slots < 8 * 128
    assert "8 groups" in exact.source


def test_a_reference_that_runs_adds_passes(tmp_path: Path, tiny: Path) -> None:
    def cost(**sections: Any) -> float:
        config: RunConfig = DPOConfig(model=ModelConfig(path=str(tiny)), data=DataConfig(train="x"), **sections)
        return operations(read_shape(config), config, Work(1000, 100, 500, 1, ""))

    assert cost(reference={"kind": "frozen"}) == pytest.approx(cost() * 4 / 3)
    assert cost(lora=LoraConfig()) == pytest.approx(cost())  # 2 passes and that of the reference
    assert cost(lora=LoraConfig(), reference={"kind": "cached"}) == pytest.approx(cost() * 2 / 3)


def test_a_loss_over_the_whole_step_runs_the_forward_passes_twice(tiny: Path) -> None:
    def dpo(**sections: Any) -> DPOConfig:
        return DPOConfig(model=ModelConfig(path=str(tiny), dtype="fp32"), data=DataConfig(train="x"), **sections)

    plain, joint = dpo(), dpo(loss="kto")
    shape, work, cluster = read_shape(plain), Work(1000, 100, 500, 1, ""), Cluster(2, 10**9)
    assert operations(shape, joint, work) == pytest.approx(operations(shape, plain, work) * 4 / 3)
    blocks = 2 * shape.block * 4 // 2  # half of two blocks in fp32
    assert traffic(shape, joint, cluster, 3)["weights"] - traffic(shape, plain, cluster, 3)["weights"] == 3 * blocks
    frozen = {"reference": {"kind": "frozen"}}
    more = traffic(shape, dpo(loss="kto", **frozen), cluster, 1)["weights"]
    assert more - traffic(shape, dpo(**frozen), cluster, 1)["weights"] == blocks + shape.parameters * 4 // 2


def test_the_chunks_of_logits_are_not_larger_than_the_logits(tiny: Path) -> None:
    config = sft(tiny)
    shape = read_shape(config)
    buffers = [memory_parts(shape, config, Cluster(1, 10**9), 64, scored)["buffers"] for scored in (10, 20, 10**9)]
    assert buffers[1] - buffers[0] == 3 * 4 * 10 * shape.vocabulary
    assert buffers[2] < 3 * 512_000_000 + 10**6


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("80GiB", 80 * 2**30), ("24", 24 * 10**9), ("1.5 TB", 15 * 10**11)]
)
def test_sizes_have_units(text: str, size: int) -> None:
    assert read_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["", "GB", "80XB", "-3GB", "1.2.3GB", "0GB", "1e400"])
def test_a_malformed_size_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size"):
        read_bytes(text, "--memory")


def test_a_folder_without_config_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError):
        read_shape(sft(tmp_path / "empty"))


def test_optimizer_moments_in_bf16_are_half_as_large(tmp_path: Path) -> None:
    path = folder_of(tmp_path, LLAMA_8B)
    plain, half = sft(path), sft(path, optim=OptimConfig(moments="bf16"))
    shape, cluster = read_shape(plain), Cluster(8, 10**11)
    sizes = [memory_parts(shape, config, cluster, 512, 512)["optimizer"] for config in (plain, half)]
    assert sizes[0] == 2 * sizes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((False, True, 8, "80GB", None, None), "does not start it"),
        ((True, True, 8, None, None, None), "the memory of each GPU is missing"),
        ((True, True, None, "80GB", None, None), "the option needs --ranks"),
    ],
)
def test_options_of_a_plan_need_each_other(options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(sft(Path("model")), *options)


def test_without_ranks_nothing_is_planned() -> None:
    assert not planned(sft(Path("model")), True, True, None, None, None, None)
