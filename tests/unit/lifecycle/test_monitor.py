"""The monitor: its metrics against plain transformers, no effect on the training, and its messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.conftest import PAIRS, make_model, write_jsonl
from transformers import AutoModelForCausalLM

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    LoraConfig,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    ReferenceConfig,
    TrainConfig,
)
from preftune.lifecycle import monitor
from preftune.measures.drift import figures
from preftune.methods import dpo
from preftune.model.generate import Sampling, sample
from preftune.train.display import Display

SMALL = MonitorConfig(prompts=6, samples=2, max_new_tokens=8)
TIMES = {"pairs_per_s", "tokens_per_s"}


class Listening(Display):
    """A display that records its messages."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.messages: list[str] = []

    def say(self, text: str) -> None:
        self.messages.append(text)


def run(
    tmp_path: Path, source: Any, tokenizer: Any = None, rows: list[Any] | None = None, **sections: Any
) -> list[str]:
    """Train below `tmp_path`, and return the messages."""
    data = write_jsonl(tmp_path / "data.jsonl", rows or PAIRS)
    in_memory = not isinstance(source, Path)
    settings: dict[str, Any] = {
        "model": ModelConfig(path="toy" if in_memory else str(source), dtype="fp32"),
        "data": DataConfig(train=str(data)),
        "optim": OptimConfig(lr=3e-3),
        "batch": BatchConfig(pairs=4),
        "train": TrainConfig(epochs=2),
        "monitor": SMALL,
        "out": str(tmp_path / "run"),
        **sections,
    }
    display = Listening()
    objects = {"model": source, "tokenizer": tokenizer} if in_memory else {}
    dpo.run(DPOConfig(**settings), display=display, **objects)
    return display.messages


def lines(tmp_path: Path, split: str | None = None) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in every if split in (None, line["split"])]


def plain_logp(model: Any, prompt: list[int], response: list[int]) -> float:
    """Return the summed log-prob of a response, computed with transformers."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
    table = torch.log_softmax(logits, -1)
    return sum(float(table[len(prompt) + i - 1, token]) for i, token in enumerate(response))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A run with a cached reference, so the monitor loads the reference from its files."""
    folder = tmp_path_factory.mktemp("tuned")
    run(folder, model_folder)
    return folder


def test_the_metrics_equal_those_of_the_final_model_in_plain_transformers(
    tuned: Path, model_folder: Path, tokenizer: Any
) -> None:
    """Responses are sampled and scored again with the final weights, one at a time."""
    policy = AutoModelForCausalLM.from_pretrained(tuned / "run" / "final").eval()
    reference = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    rows = [(tokenizer(p["prompt"])["input_ids"], p) for p in PAIRS]
    chosen = [PAIRS[i] for i in np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(PAIRS))[:6]]
    rows = [(ids, row) for ids, row in rows if row in chosen]
    samples = sample(policy, tokenizer, [ids for ids, _ in rows], Sampling(2, 8, seed=0))
    own = [[(s.group.prompt_ids.tolist(), r.tolist()) for r in s.group.response_ids] for s in samples]
    data = []
    for ids, row in rows:
        for side in ("chosen", "rejected"):
            whole = [*tokenizer(row["prompt"] + row[side])["input_ids"], tokenizer.eos_token_id]
            assert whole[: len(ids)] == ids
            data.append((ids, whole[len(ids) :][:8]))
    ratios = np.array([[plain_logp(policy, *r) - plain_logp(reference, *r) for r in responses] for responses in own])
    flat = [r for responses in own for r in responses]
    per_token = [sum(plain_logp(policy, *r) for r in rs) / sum(len(r[1]) for r in rs) for rs in (flat, data)]
    last = lines(tuned, "eval")[-1]
    assert last["drift/own_logps"] == pytest.approx(np.mean([plain_logp(policy, *r) for r in flat]), abs=1e-3)
    assert last["drift/data_logps"] == pytest.approx(np.mean([plain_logp(policy, *r) for r in data]), abs=1e-3)
    assert last["drift/own_per_token"] == pytest.approx(per_token[0], abs=1e-4)
    assert last["drift/data_per_token"] == pytest.approx(per_token[1], abs=1e-4)
    mean_length = np.mean([len(r) for _, r in data])
    assert last["drift/gap"] == pytest.approx((per_token[0] - per_token[1]) * mean_length, abs=1e-3)
    assert last["drift/kl"] == pytest.approx(ratios.mean(), abs=1e-3)
    assert last["drift/kl"] > 0.01
    assert last["drift/kl_se"] == pytest.approx(ratios.mean(axis=1).std(ddof=1) / np.sqrt(6), abs=1e-3)
    assert last["drift/tokens"] == pytest.approx(np.mean([len(r) for _, r in flat]))
    surface = figures([t for s in samples for t in s.texts], [e for s in samples for e in s.ended])
    assert last["drift/ended"] == surface["responses/ended"]
    assert last["drift/repetition"] == pytest.approx(surface["repetition"])
    assert last["drift/diversity"] == pytest.approx(surface["diversity"])


def test_the_monitor_uses_training_pairs_without_held_out_data(tuned: Path, model_folder: Path, tokenizer: Any) -> None:
    """drift/chosen, drift/rejected and drift/displaced use the whole responses of the monitored pairs."""
    policy = AutoModelForCausalLM.from_pretrained(tuned / "run" / "final").eval()
    reference = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    chosen = [PAIRS[i] for i in np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(PAIRS))[:6]]
    change: dict[str, list[float]] = {"chosen": [], "rejected": []}
    tokens = {"chosen": 0, "rejected": 0}
    for row in chosen:
        ids = tokenizer(row["prompt"])["input_ids"]
        for side in change:
            response = [*tokenizer(row["prompt"] + row[side])["input_ids"][len(ids) :], tokenizer.eos_token_id]
            change[side].append(plain_logp(policy, ids, response) - plain_logp(reference, ids, response))
            tokens[side] += len(response)
    last = lines(tuned, "eval")[-1]
    for side in change:
        assert last[f"drift/{side}"] == pytest.approx(sum(change[side]) / tokens[side], abs=1e-4)
    both = [c < 0 and r < 0 for c, r in zip(change["chosen"], change["rejected"], strict=True)]
    assert last["drift/displaced"] == pytest.approx(np.mean(both))


def test_there_is_no_drift_at_step_0(tuned: Path) -> None:
    first = lines(tuned)[0]
    assert (first["step"], first["split"]) == (0, "eval")
    assert [first[f"drift/{name}"] for name in ("kl", "chosen", "rejected", "displaced")] == [0.0] * 4
    assert "loss" not in first  # nothing is held out


def test_every_reference_gives_the_same_kl(tmp_path: Path, tuned: Path, model_folder: Path, tokenizer: Any) -> None:
    """Cached (loaded from its files), frozen, and a copy of a model that was passed in memory."""
    expected = lines(tuned, "eval")
    same = {"frozen": (model_folder, {"kind": "frozen"}), "memory": (make_model(), {"kind": "cached"})}
    for name, (model, reference) in same.items():
        (tmp_path / name).mkdir()
        run(tmp_path / name, model, tokenizer, reference=reference)
        for one, other in zip(expected, lines(tmp_path / name, "eval"), strict=True):
            assert one == pytest.approx(other, abs=2e-4), name


def test_the_kl_is_measured_with_adapter_off_and_without_a_reference(tmp_path: Path, model_folder: Path) -> None:
    """The KL is to the model without adapter; without a reference, to step 0, and data drift is not measured."""
    lora = LoraConfig(rank=4, alpha=8.0)
    for name, sections in (
        ("off", {"lora": lora}),
        ("cached", {"lora": lora, "reference": {"kind": "cached"}}),
        ("free", {"lora": lora, "loss": {"name": "simpo"}}),
        ("full", {"loss": {"name": "simpo"}}),
    ):
        (tmp_path / name).mkdir()
        run(tmp_path / name, model_folder, **sections)
        first, last = lines(tmp_path / name, "eval")
        assert abs(first["drift/kl"]) < 1e-4, name
        assert last["drift/kl"] > 1e-3, name
        assert ("drift/chosen" in last) == ("loss" not in sections), name
    off, cached = (lines(tmp_path / name, "eval")[-1] for name in ("off", "cached"))
    assert off["drift/kl"] == pytest.approx(cached["drift/kl"], abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "bf16", "lora", "checkpointing", "kto"])
def test_the_monitor_does_not_affect_the_training(tmp_path: Path, model_folder: Path, kind: str) -> None:
    """Final weights and training metrics are equal with and without the monitor."""
    options = {"bf16": {"dtype": "bf16"}, "checkpointing": {"gradient_checkpointing": True}}.get(kind, {})
    sections: dict[str, Any] = {
        "model": ModelConfig(path=str(model_folder), **{"dtype": "fp32", **options}),
        "train": TrainConfig(epochs=3, eval_every=2),
        "lora": LoraConfig(rank=4, alpha=8.0) if kind == "lora" else None,
        "loss": {"name": "kto" if kind == "kto" else "sigmoid"},
    }
    for name, monitoring in (("on", SMALL), ("off", None)):
        (tmp_path / name).mkdir()
        messages = run(tmp_path / name, model_folder, monitor=monitoring, **sections)
        assert not any("no KL" in line for line in messages)
    assert lines(tmp_path / "on", "train") == lines(tmp_path / "off", "train")
    assert [line["step"] for line in lines(tmp_path / "on", "eval")] == [0, 2, 4, 6]
    assert not lines(tmp_path / "off", "eval")
    assert all("drift/kl" in line for line in lines(tmp_path / "on", "eval"))
    one, other = (load_file(next((tmp_path / name / "run" / "final").glob("*.safetensors"))) for name in ("on", "off"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_held_out_prompts_are_preferred(tmp_path: Path, model_folder: Path) -> None:
    """The drift metrics of the data then use all held-out pairs."""
    data = DataConfig(train=str(tmp_path / "data.jsonl"), eval=0.4)
    messages = run(tmp_path, model_folder, data=data)
    assert any(line.startswith("monitor: 3 held-out prompts, at most 2 x 8 tokens per prompt") for line in messages)
    assert all({"loss", "drift/gap", "drift/displaced"} <= set(line) for line in lines(tmp_path, "eval"))


def test_prompts_that_are_too_long_are_skipped_and_counted(tmp_path: Path, tokenizer: Any) -> None:
    """A model with a context of 64 tokens samples at most 32 tokens, so prompts of more than 32 tokens are skipped."""
    long = [{"prompt": "x" * 40 + str(i), "chosen": " a", "rejected": " b"} for i in range(3)]
    model = make_model(max_position_embeddings=64)
    data = DataConfig(train=str(tmp_path / "data.jsonl"), max_length=64)
    monitoring = MonitorConfig(prompts=11, max_new_tokens=500)
    messages = run(tmp_path, model, tokenizer, rows=[*PAIRS, *long], data=data, monitor=monitoring)
    assert (
        "monitor: 8 training prompts, at most 1 x 32 tokens per prompt; "
        "skipped 3 prompts without room for 32 tokens in the model's context of 64; "
        "too few for most warnings, which need 16 responses: set monitor.samples=2"
    ) in messages
    (tmp_path / "none").mkdir()
    data = DataConfig(train=str(tmp_path / "none" / "data.jsonl"), max_length=64)
    tiny = make_model(max_position_embeddings=64)
    messages = run(tmp_path / "none", tiny, tokenizer, rows=long, data=data, monitor=monitoring)
    assert any(
        line.startswith("monitor off: it needs at least 2 distinct prompts, the training data have 0 (skipped 3")
        for line in messages
    )
    assert not lines(tmp_path / "none", "eval")


def test_chat_prompts_end_where_the_response_begins(tmp_path: Path, tokenizer: Any) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": p["prompt"]}],
            "chosen": [{"role": "assistant", "content": p["chosen"]}],
            "rejected": [{"role": "assistant", "content": p["rejected"]}],
        }
        for p in PAIRS
    ]
    data = DataConfig(train=str(tmp_path / "data.jsonl"), chat_template="dialogue")
    run(tmp_path, make_model(), tokenizer, rows=rows, data=data)
    last = lines(tmp_path, "eval")[-1]
    assert 1 <= last["drift/tokens"] <= 8
    assert last["drift/kl"] > 0


def test_a_warning_is_printed_once_and_saved(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with a large KL gets a warning; manifest and report contain it with the last value."""
    monkeypatch.setattr("preftune.measures.advice.KL", 0.5)
    monkeypatch.setattr("preftune.measures.advice.ENOUGH", 2)
    monkeypatch.setattr("preftune.measures.advice.GAP", 1e6)
    messages = run(tmp_path, model_folder, optim=OptimConfig(lr=2e-2), train=TrainConfig(epochs=3, eval_every=2))
    saved = json.loads((tmp_path / "run" / "manifest.json").read_text())["advice"]
    assert "gap" not in saved
    assert "start" not in saved
    assert len([line for line in messages if "nats per response from the reference" in line]) == 1
    last = lines(tmp_path, "eval")[-1]
    assert last["drift/kl"] > 0.5
    assert saved["kl"]["step"] == last["step"]
    assert f"{last['drift/kl']:.1f} +- {last['drift/kl_se']:.1f} nats" in saved["kl"]["text"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert ">Distance from data and reference</h2>" in page
    assert "nats per response from the reference (warning above 0.5). Lower optim.lr or raise loss.beta.</p>" in page


def test_a_run_without_drift_gets_no_warning(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("preftune.measures.advice.GAP", 1e6)  # a random model is far from every text
    run(tmp_path, model_folder, optim=OptimConfig(lr=1e-6))
    assert "advice" not in json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "No metric has exceeded its threshold." in (tmp_path / "run" / "report.html").read_text()


def test_a_failure_of_the_monitor_does_not_stop_the_run(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory, or if the files of the reference have changed, metrics are missing and a message is printed."""
    copied = tmp_path / "copied"
    shutil.copytree(model_folder, copied)

    def no_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "sample", no_memory)
        (tmp_path / "a").mkdir()
        messages = run(tmp_path / "a", copied)
    assert len([line for line in messages if line.startswith("monitor: skipped at this evaluation, because")]) == 2
    assert not lines(tmp_path / "a", "eval")
    real = monitor.measure_data

    def and_replace_model(*args: Any) -> Any:
        make_model(seed=7).save_pretrained(copied)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "measure_data", and_replace_model)
        (tmp_path / "b").mkdir()
        messages = run(tmp_path / "b", copied)
    assert any("the KL was not measured" in line and "not the one this run started from" in line for line in messages)
    assert "drift/kl" not in lines(tmp_path / "b", "eval")[-1]
    assert "drift/gap" in lines(tmp_path / "b", "eval")[-1]


def test_a_run_is_the_same_with_another_monitor(tmp_path: Path, model_folder: Path) -> None:
    run(tmp_path, model_folder)
    for other in (None, MonitorConfig(prompts=9)):
        assert any("is finished" in line for line in run(tmp_path, model_folder, monitor=other))


def test_a_model_in_memory_is_copied_only_if_the_reference_is_not_in_memory(
    tmp_path: Path, model_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []
    real = monitor.reference_loader
    monkeypatch.setattr(monitor, "reference_loader", lambda *args: copies.append("copy") or real(*args))
    for kind, expected in (("frozen", 0), ("cached", 1)):
        (tmp_path / kind).mkdir()
        run(tmp_path / kind, make_model(), tokenizer, reference=ReferenceConfig(kind=kind))  # type: ignore[arg-type]
        assert len(copies) == expected


def test_only_the_first_tokens_of_responses_are_used() -> None:
    token_N, length_S = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0]), torch.tensor([3, 1, 2])
    sums, lengths = monitor.first_tokens(token_N, length_S, 2)
    assert sums.tolist() == [-3.0, -8.0, -48.0]
    assert lengths.tolist() == [2, 1, 2]


def test_a_held_out_loss_that_rose_is_reported_at_the_end(tmp_path: Path, model_folder: Path) -> None:
    """The message is printed with and without a monitor, and saved in manifest and report. The labels are random, so
    what is learnt on some rows is wrong for others."""
    coin = np.random.default_rng(0).permuted([[" sat down", " ran away"]] * 40, axis=1)
    rows = [{"prompt": f"{i} the cat", "chosen": str(c), "rejected": str(r)} for i, (c, r) in enumerate(coin)]
    for name, monitoring in (("on", SMALL), ("off", None)):
        folder = tmp_path / name
        folder.mkdir()
        data = DataConfig(train=str(folder / "data.jsonl"), eval=0.4)
        optim, training = OptimConfig(lr=2e-2, warmup=0), TrainConfig(epochs=5, eval_every=6)
        loss = {"name": "sigmoid", "beta": 2.0}
        messages = run(
            folder, model_folder, rows=rows, data=data, optim=optim, train=training, monitor=monitoring, loss=loss
        )
        evaluations = lines(folder, "eval")
        best = min(evaluations, key=lambda line: line["loss"])
        assert evaluations[-1]["loss"] > best["loss"] + 1.6 * evaluations[-1]["loss_se"], (
            "the test needs a loss that rises"
        )
        (message,) = [line for line in messages if line.startswith("the held-out loss rose by")]
        assert f"to {evaluations[-1]['loss']:.4g} at step {evaluations[-1]['step']}" in message
        assert f"from {best['loss']:.4g} at step {best['step']}" in message
        assert "Use fewer epochs" in message
        saved = json.loads((folder / "run" / "manifest.json").read_text())["advice"]["held-out loss"]
        assert saved == {"step": evaluations[-1]["step"], "text": message}
        assert "the held-out loss rose by" in (folder / "run" / "report.html").read_text()
