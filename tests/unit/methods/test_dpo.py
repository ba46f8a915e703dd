"""Preference training from config to run folder: step 1, references, adapters, refused settings, written files."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tests.conftest import PAIRS, make_model, random_groups, write_jsonl
from transformers import AutoModelForCausalLM

from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, LoraConfig, ModelConfig, OptimConfig, TrainConfig
from preftune.data.layout import Budget, micro_batches
from preftune.errors import ConfigError, DataError, ModelError, NumericError
from preftune.losses import PREFERENCE_LOSSES
from preftune.methods import dpo
from preftune.model.reference import Cached, Frozen
from preftune.train.display import Display


def run(tmp_path: Path, model: Any, tokenizer: Any = None, rows: list[Any] | None = None, **sections: Any) -> Path:
    data = write_jsonl(tmp_path / "data.jsonl", rows or PAIRS)
    in_memory = not isinstance(model, Path)
    more = sections.pop("data_options", {})
    config = DPOConfig(
        model=ModelConfig(
            path="toy" if in_memory else str(model), **{"dtype": "fp32", **sections.pop("model_options", {})}
        ),
        data=DataConfig(train=str(data), **more),
        optim=sections.pop("optim", OptimConfig(lr=1e-3)),
        batch=BatchConfig(pairs=4),
        train=sections.pop("train", TrainConfig(epochs=2)),
        monitor=None,
        out=str(tmp_path / "run"),
        **sections,
    )
    objects = {"model": model, "tokenizer": tokenizer} if in_memory else {}
    return dpo.run(config, display=Display(quiet=True), **objects)


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["auto", "frozen", "cached"])
@pytest.mark.parametrize("edited", [False, True])
def test_the_margin_is_exactly_0_at_step_1(tmp_path: Path, tokenizer: Any, kind: str, edited: bool) -> None:
    """Margin 0 and loss ln 2, also for a model that was changed in memory, and with a cache."""
    model = make_model()
    if edited:
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1.3)
    run(tmp_path, model, tokenizer, reference={"kind": kind}, data_options={"eval": 0.3})
    first = next(line for line in lines(tmp_path) if line["split"] == "train")
    assert (first["step"], first["rewards/margins"], first["rewards/accuracies"]) == (1, 0.0, 0.5)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/chosen"] == 0.0


@pytest.mark.parametrize("kind", ["auto", "frozen", "cached"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, called here
def test_the_margin_is_exactly_0_at_step_1_with_lora(tmp_path: Path, model_folder: Path, kind: str) -> None:
    final = run(tmp_path, model_folder, reference={"kind": kind}, lora=LoraConfig(rank=4, alpha=8.0))
    first, *_, last = lines(tmp_path)
    assert first["rewards/margins"] == 0.0
    assert last["rewards/margins"] > 0.01
    assert (final / "adapter_config.json").is_file()
    assert not (final / "model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    tuned = peft.PeftModel.from_pretrained(base, final)
    assert any(bool(p.abs().max() > 0) for name, p in tuned.named_parameters() if "lora_B" in name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft, called here
def test_an_adapter_is_trained_on_top_of_an_adapter(tmp_path: Path, model_folder: Path) -> None:
    """The reference is the tuned model, not its base, and the result can be loaded with peft."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    first = run(tmp_path / "one", model_folder, lora=LoraConfig(rank=4, alpha=8.0), optim=OptimConfig(lr=1e-2))
    second = run(tmp_path / "two", first, lora=LoraConfig(rank=2, alpha=4.0), optim=OptimConfig(lr=1e-2))
    assert lines(tmp_path / "two")[0]["rewards/margins"] == 0.0
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(second)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "run" / "base")
    merged = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder), first
    ).merge_and_unload()
    ids = torch.tensor([[1, 5, 9, 20]])
    assert torch.allclose(base(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4)
    assert not torch.allclose(base(input_ids=ids).logits, loaded(input_ids=ids).logits, atol=1e-3)


def test_the_final_folder_is_the_trained_model(tmp_path: Path, model_folder: Path) -> None:
    final = run(tmp_path, model_folder)
    tuned = AutoModelForCausalLM.from_pretrained(final)
    assert tuned.config.use_cache
    out = tuned.generate(torch.tensor([[1, 5, 9]]), max_new_tokens=4, do_sample=False)
    assert out.shape[1] > 3
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["finished"] is True
    assert manifest["versions"]["torch"]
    assert manifest["machine"]["threads"] >= 1
    assert next(iter(manifest["data"].values())) == {"read": 8, "kept": 8, "format": "preference"}


def test_the_resolved_config_reproduces_the_run(tmp_path: Path, model_folder: Path) -> None:
    """config.yaml can be used as a config file, and gives the same weights."""
    from preftune.config.load import load

    final = run(tmp_path, model_folder)
    again = load(DPOConfig, tmp_path / "run" / "config.yaml", [f"out={tmp_path / 'again'}"])
    other = dpo.run(again, display=Display(quiet=True))
    assert (final / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_bf16_trains_and_saves_in_the_source_precision(tmp_path: Path, model_folder: Path) -> None:
    final = run(tmp_path, model_folder, model_options={"dtype": "bf16"})
    first, *_, last = lines(tmp_path)
    assert first["rewards/margins"] == 0.0
    assert last["rewards/margins"] > 0.005
    assert AutoModelForCausalLM.from_pretrained(final, dtype="auto").dtype == torch.float32
    (tmp_path / "half").mkdir()
    half = run(tmp_path / "half", model_folder, model_options={"save_dtype": "bf16"})
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16


def test_gradient_checkpointing_gives_the_same_run(tmp_path: Path, model_folder: Path) -> None:
    for name, options in (("a", {}), ("b", {"gradient_checkpointing": True})):
        (tmp_path / name).mkdir()
        run(tmp_path / name, model_folder, model_options=options)
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)


@pytest.mark.parametrize("name", sorted(PREFERENCE_LOSSES))
def test_every_loss_trains(tmp_path: Path, model_folder: Path, name: str) -> None:
    """Each loss runs end to end and increases the margin."""
    rows = [{**pair, "margin": 0.5} for pair in PAIRS] if name == "odpo" else PAIRS
    run(tmp_path, model_folder, rows=rows, loss={"name": name}, optim=OptimConfig(lr=1e-3))
    metrics = lines(tmp_path)
    assert all(math.isfinite(value) for line in metrics for value in line.values() if not isinstance(value, str))
    if name not in ("nll", "discopop"):  # one ignores rejected responses, one is not monotone at 0
        gain = metrics[-1]["rewards/margins"] - metrics[0]["rewards/margins"]
        assert gain > 0


def test_a_sum_of_losses_trains_and_reports_its_terms(tmp_path: Path, model_folder: Path) -> None:
    run(tmp_path, model_folder, loss=[{"name": "sigmoid", "beta": 0.1}, {"name": "nll", "weight": 0.5}])
    for line in lines(tmp_path):
        assert line["loss"] == pytest.approx(line["loss/sigmoid"] + 0.5 * line["loss/nll"], abs=1e-5)


def test_labelled_responses_train(tmp_path: Path, model_folder: Path) -> None:
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in PAIRS
        for side in ("chosen", "rejected")
    ]
    run(tmp_path, model_folder, rows=rows, loss={"name": "kto"})
    first, *_, last = lines(tmp_path)
    assert last["rewards/chosen"] - last["rewards/rejected"] > first["rewards/chosen"] - first["rewards/rejected"]
    assert "rewards/margins" not in first


def test_rankings_train(tmp_path: Path, model_folder: Path) -> None:
    rows = [
        {"prompt": p["prompt"], "responses": [p["rejected"], p["chosen"], " moon"], "ranks": [3, 1, 2]} for p in PAIRS
    ]
    run(tmp_path, model_folder, rows=rows, loss={"name": "plackett_luce"})
    assert lines(tmp_path)[0]["loss"] == pytest.approx(math.log(6), abs=1e-6)  # 3! orders, equally likely


def test_the_reference_can_be_another_model(tmp_path: Path, model_folder: Path, tokenizer: Any) -> None:
    other = tmp_path / "other"
    make_model(seed=3).save_pretrained(other)
    tokenizer.save_pretrained(other)
    run(tmp_path, model_folder, reference={"path": str(other)})
    assert lines(tmp_path)[0]["rewards/margins"] != 0.0


def test_without_reference_the_reward_is_the_scaled_log_prob(tmp_path: Path, model_folder: Path) -> None:
    run(tmp_path, model_folder, reference={"kind": "none"})
    first = lines(tmp_path)[0]
    assert first["rewards/chosen"] == pytest.approx(0.1 * first["logps/chosen"])


def test_the_cache_is_used_with_other_losses_and_betas(tmp_path: Path, model_folder: Path) -> None:
    messages = []

    class Listening(Display):
        def say(self, text: str) -> None:
            messages.append(text)

    for name, loss in (("a", {"name": "sigmoid", "beta": 0.1}), ("b", {"name": "ipo", "beta": 0.5})):
        folder = tmp_path / name
        folder.mkdir()
        config = DPOConfig(
            model=ModelConfig(path=str(model_folder), dtype="fp32"),
            data=DataConfig(train=str(write_jsonl(folder / "d.jsonl", PAIRS))),
            loss=loss,
            out=str(folder / "run"),
        )
        dpo.run(config, display=Listening(quiet=True))
    reported = [line for line in messages if line.startswith("reference:")]
    assert "computed log-probs of 8 groups, read 0 from the cache" in reported[0]
    assert "computed log-probs of 0 groups, read 8 from the cache" in reported[1]


def test_non_finite_gradients_stop_before_the_update_and_name_the_row(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedding of the token 'z' is infinite, and one row contains it. The weights are those of the step before."""
    model = make_model(tie_word_embeddings=False)
    bad = tokenizer(" z", add_special_tokens=False)["input_ids"][-1]
    rows = [*PAIRS[:5], {"prompt": "a dog z", "chosen": " sat", "rejected": " ran"}, *PAIRS[5:]]
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = float("inf")
    monkeypatch.setattr(dpo, "check_start", lambda task, first: "")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(NumericError) as error:
        run(tmp_path, model, tokenizer, rows=rows, reference={"kind": "frozen"}, train=TrainConfig(epochs=1))
    text = str(error.value)
    assert error.value.exit_code == 6
    assert f"rows: {tmp_path / 'data.jsonl'}:6\n" in text
    step = int(text.removeprefix("step ").split(":")[0])
    assert f"step {step}: the gradient norm is" in text
    if step == 1:
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(line["step"] < step for line in lines(tmp_path) if line["split"] == "train") if step > 1 else True


def test_a_reference_that_differs_from_the_policy_stops_the_run(tmp_path: Path) -> None:
    """A frozen model with other weights, and a cache with a wrong value: refused before step 1 with the row."""
    from preftune.lifecycle.task import ResponseTask
    from preftune.losses import Objective
    from preftune.model.logprobs import Scorer
    from preftune.model.reference import fill
    from preftune.model.reference_cache import Store, response_key

    groups = random_groups(4)
    policy = Scorer.of(make_model())
    objective: Objective = dpo.bind_objective(DPOConfig(model={"path": "m"}, data={"train": "d"}).terms)
    frozen = ResponseTask(policy, Frozen(Scorer.of(make_model(seed=2))), objective, groups, [], Budget("rows", 1000))
    with pytest.raises(NumericError, match="policy and reference differ by"):
        dpo.check_start(frozen, groups)
    store = Store("k", tmp_path)
    fill(store, policy, groups, lambda part: micro_batches(part, frozen.budget))
    good = ResponseTask(policy, Cached(store, torch.device("cpu")), objective, groups, [], Budget("rows", 1000))
    assert "margin 0, loss ln 2" in dpo.check_start(good, groups)
    key = response_key(groups[2].prompt_ids, groups[2].response_ids[1])
    store.put(key, store.get(key) + 0.5)
    with pytest.raises(NumericError, match="toy:3"):
        dpo.check_start(
            ResponseTask(policy, Cached(store, torch.device("cpu")), objective, groups, [], Budget("rows", 1000)),
            groups,
        )


# settings, exception, message
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"loss": {"name": "simpo"}, "reference": {"kind": "frozen"}},
        ConfigError,
        "the loss 'simpo' does not use a reference",
    ),
    ({"loss": {"name": "tdpo1"}, "reference": {"kind": "cached"}}, ConfigError, "needs whole distributions"),
    ({"reference": {"kind": "adapter-off"}}, ConfigError, "there is no adapter without lora"),
    ({"reference": {"kind": "none", "path": "x"}}, ConfigError, "kind is none, but reference.path is set"),
    ({"reference": {"path": "./nothing"}}, ModelError, "no such folder"),
    ({"loss": {"name": "odpo"}}, DataError, "needs a margin"),
    ({"lora": LoraConfig(targets=["query"])}, ModelError, "linear modules"),
    ({"track": ["wandb"]}, ConfigError, r"pip install 'preftune\[wandb\]'"),
    ({"data_options": {"max_length": 1024, "eval": 0.9999}}, DataError, "cannot hold out"),
]


@pytest.mark.parametrize(("sections", "kind", "message"), REFUSED)
def test_invalid_settings_are_refused_before_the_run_folder_is_created(
    tmp_path: Path, model_folder: Path, sections: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(tmp_path, model_folder, **sections)
    assert not (tmp_path / "run").exists()


def test_sequences_longer_than_the_model_are_refused(tmp_path: Path, model_folder: Path) -> None:
    rows = [{"prompt": "x" * 300, "chosen": " a", "rejected": " b"}]
    with pytest.raises(ConfigError, match="but the model's context has 256"):
        run(tmp_path, model_folder, rows=rows, data_options={"max_length": 1024})


def test_soft_labels_are_refused_by_a_loss_that_does_not_use_them(tmp_path: Path, model_folder: Path) -> None:
    rows = [{**pair, "probability": 0.8} for pair in PAIRS]
    with pytest.raises(DataError, match=r"data.jsonl:1: the data have a probability, which 'dpop' does not use"):
        run(tmp_path, model_folder, rows=rows, loss={"name": "dpop"})
    run(tmp_path, model_folder, rows=rows, loss={"name": "sigmoid"})


def test_a_loss_that_needs_an_unavailable_statistic_is_refused(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import preftune.model.logprobs as logprobs

    monkeypatch.setattr(logprobs, "find_head", lambda model: None)
    with pytest.raises(ConfigError, match="over the whole vocabulary, which is not available"):
        run(tmp_path, model_folder, loss={"name": "wpo"})
