"""The monitor: its figures from the final model by plain means, no trace in the training, what it says."""

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
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def run(
    tmp_path: Path, source: Any, tokenizer: Any = None, rows: list[Any] | None = None, **sections: Any
) -> list[str]:
    """Train below `tmp_path`, and return what was said."""
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
    given = {"model": source, "tokenizer": tokenizer} if in_memory else {}
    dpo.run(DPOConfig(**settings), display=display, **given)
    return display.said


def lines(tmp_path: Path, split: str | None = None) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in every if split in (None, line["split"])]


def plain_logp(model: Any, prompt: list[int], response: list[int]) -> float:
    """By transformers alone."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double()
    table = torch.log_softmax(logits, -1)
    return sum(float(table[len(prompt) + i - 1, token]) for i, token in enumerate(response))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A run with a cached reference, which is read again from its files."""
    folder = tmp_path_factory.mktemp("tuned")
    run(folder, model_folder)
    return folder


def test_the_figures_are_those_of_the_final_model(tuned: Path, model_folder: Path, tokenizer: Any) -> None:
    """Sampled and scored again with the final weights, one response at a time."""
    policy = AutoModelForCausalLM.from_pretrained(tuned / "run" / "final").eval()
    reference = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    rows = [(tokenizer(p["prompt"])["input_ids"], p) for p in PAIRS]
    chosen = [PAIRS[i] for i in np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(PAIRS))[:6]]
    rows = [(ids, row) for ids, row in rows if row in chosen]
    drawn = sample(policy, tokenizer, [ids for ids, _ in rows], Sampling(2, 8, seed=0))
    own = [[(s.group.prompt_ids.tolist(), r.tolist()) for r in s.group.response_ids] for s in drawn]
    data = []
    for ids, row in rows:
        for side in ("chosen", "rejected"):
            whole = [*tokenizer(row["prompt"] + row[side])["input_ids"], tokenizer.eos_token_id]
            assert whole[: len(ids)] == ids
            data.append((ids, whole[len(ids) :][:8]))
    ratios = np.array([[plain_logp(policy, *r) - plain_logp(reference, *r) for r in some] for some in own])
    flat = [r for some in own for r in some]
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
    looks = figures([t for s in drawn for t in s.texts], [e for s in drawn for e in s.ended])
    assert last["drift/ended"] == looks["responses/ended"]
    assert last["drift/repetition"] == pytest.approx(looks["repetition"])
    assert last["drift/diversity"] == pytest.approx(looks["diversity"])


def test_drift_of_the_data_where_none_is_held_out(tuned: Path, model_folder: Path, tokenizer: Any) -> None:
    """drift/chosen, drift/rejected and drift/displaced of the watched pairs, whole responses."""
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


def test_at_step_0_the_policy_is_the_reference(tuned: Path) -> None:
    first = lines(tuned)[0]
    assert (first["step"], first["split"]) == (0, "eval")
    assert [first[f"drift/{name}"] for name in ("kl", "chosen", "rejected", "displaced")] == [0.0] * 4
    assert "loss" not in first  # nothing is held out


def test_every_reference_gives_the_same_kl(tmp_path: Path, tuned: Path, model_folder: Path, tokenizer: Any) -> None:
    """Cached (read again from its files), frozen, and a copy of a model that was given in memory."""
    expected = lines(tuned, "eval")
    same = {"frozen": (model_folder, {"kind": "frozen"}), "memory": (make_model(), {"kind": "cached"})}
    for name, (model, reference) in same.items():
        (tmp_path / name).mkdir()
        run(tmp_path / name, model, tokenizer, reference=reference)
        for one, other in zip(expected, lines(tmp_path / name, "eval"), strict=True):
            assert one == pytest.approx(other, abs=2e-4), name


def test_adapter_off_and_runs_without_reference(tmp_path: Path, model_folder: Path) -> None:
    """The KL is from the model without the adapter; without reference it is from step 0, and the data have no drift."""
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
def test_training_does_not_notice(tmp_path: Path, model_folder: Path, kind: str) -> None:
    """The same bytes and the same training lines with and without the monitor, in the middle of a run too."""
    options = {"bf16": {"dtype": "bf16"}, "checkpointing": {"gradient_checkpointing": True}}.get(kind, {})
    sections: dict[str, Any] = {
        "model": ModelConfig(path=str(model_folder), **{"dtype": "fp32", **options}),
        "train": TrainConfig(epochs=3, eval_every=2),
        "lora": LoraConfig(rank=4, alpha=8.0) if kind == "lora" else None,
        "loss": {"name": "kto" if kind == "kto" else "sigmoid"},
    }
    for name, watching in (("on", SMALL), ("off", None)):
        (tmp_path / name).mkdir()
        said = run(tmp_path / name, model_folder, monitor=watching, **sections)
        assert not any("no KL" in line for line in said)
    assert lines(tmp_path / "on", "train") == lines(tmp_path / "off", "train")
    assert [line["step"] for line in lines(tmp_path / "on", "eval")] == [0, 2, 4, 6]
    assert not lines(tmp_path / "off", "eval")
    assert all("drift/kl" in line for line in lines(tmp_path / "on", "eval"))
    one, other = (load_file(next((tmp_path / name / "run" / "final").glob("*.safetensors"))) for name in ("on", "off"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_held_out_prompts_come_first(tmp_path: Path, model_folder: Path) -> None:
    """And the drift of the data is then that of all held-out pairs."""
    data = DataConfig(train=str(tmp_path / "data.jsonl"), eval=0.4)
    said = run(tmp_path, model_folder, data=data)
    assert any(line.startswith("monitor: 3 held-out prompts, 2 x 8 tokens at most for each") for line in said)
    assert all({"loss", "drift/gap", "drift/displaced"} <= set(line) for line in lines(tmp_path, "eval"))


def test_prompts_without_room_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    """A model of 64 positions: 32 tokens at most are sampled, and prompts of more than 32 are left out."""
    long = [{"prompt": "x" * 40 + str(i), "chosen": " a", "rejected": " b"} for i in range(3)]
    model = make_model(max_position_embeddings=64)
    data = DataConfig(train=str(tmp_path / "data.jsonl"), max_length=64)
    watching = MonitorConfig(prompts=11, max_new_tokens=500)
    said = run(tmp_path, model, tokenizer, rows=[*PAIRS, *long], data=data, monitor=watching)
    assert (
        "monitor: 8 training prompts, 1 x 32 tokens at most for each; "
        "3 prompts leave no room for that in the model's 64 positions"
    ) in said
    (tmp_path / "none").mkdir()
    data = DataConfig(train=str(tmp_path / "none" / "data.jsonl"), max_length=64)
    tiny = make_model(max_position_embeddings=64)
    said = run(tmp_path / "none", tiny, tokenizer, rows=long, data=data, monitor=watching)
    assert any(line.startswith("monitor: none, as that needs 2 prompts: 0 training prompts") for line in said)
    assert not lines(tmp_path / "none", "eval")


def test_chat_data(tmp_path: Path, tokenizer: Any) -> None:
    """A chat's prompt ends where its answer begins, and what the model writes there is sampled."""
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


def test_advice_is_said_once_and_kept(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that ends far away from where it began is told so, with its last figure in manifest and report."""
    monkeypatch.setattr("preftune.measures.advice.KL", 0.5)
    monkeypatch.setattr("preftune.measures.advice.GAP", 1e6)
    said = run(tmp_path, model_folder, optim=OptimConfig(lr=2e-2), train=TrainConfig(epochs=3, eval_every=2))
    kept = json.loads((tmp_path / "run" / "manifest.json").read_text())["advice"]
    assert "gap" not in kept
    assert "start" not in kept
    assert len([line for line in said if "nats per response from the reference" in line]) == 1
    last = lines(tmp_path, "eval")[-1]
    assert last["drift/kl"] > 0.5
    assert kept["kl"]["step"] == last["step"]
    assert f"{last['drift/kl']:.1f} +- {last['drift/kl_se']:.1f} nats" in kept["kl"]["text"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Distance from data and reference</h2>" in page
    assert "nats per response from the reference (warning above 0.5). Lower optim.lr or raise loss.beta.</td>" in page


def test_a_run_that_stays_gets_no_advice(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preftune.measures.advice.GAP", 1e6)  # a random model is far from every text
    run(tmp_path, model_folder, optim=OptimConfig(lr=1e-6))
    assert "advice" not in json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "No metric has exceeded its threshold." in (tmp_path / "run" / "report.html").read_text()


def test_a_run_does_not_end_for_its_monitor(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that does not suffice and a reference whose files are gone cost figures, and a sentence says so."""
    copied = tmp_path / "copied"
    shutil.copytree(model_folder, copied)

    def no_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "sample", no_memory)
        (tmp_path / "a").mkdir()
        said = run(tmp_path / "a", copied)
    assert len([line for line in said if line.startswith("monitor: out of memory")]) == 2
    assert not lines(tmp_path / "a", "eval")
    real = monitor.of_data

    def and_remove(*args: Any) -> Any:
        make_model(seed=7).save_pretrained(copied)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(monitor, "of_data", and_remove)
        (tmp_path / "b").mkdir()
        said = run(tmp_path / "b", copied)
    assert any("monitor: no KL" in line and "not the one this run started from" in line for line in said)
    assert "drift/kl" not in lines(tmp_path / "b", "eval")[-1]
    assert "drift/gap" in lines(tmp_path / "b", "eval")[-1]


def test_a_finished_or_stopped_run_may_have_another_monitor(tmp_path: Path, model_folder: Path) -> None:
    """It changes no weight, so it is not what makes a run another one."""
    run(tmp_path, model_folder)
    for other in (None, MonitorConfig(prompts=9)):
        assert "is finished" in run(tmp_path, model_folder, monitor=other)[0]


def test_a_model_in_memory_is_copied_only_where_its_start_is_asked_for(
    tmp_path: Path, model_folder: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []
    real = monitor.start_of
    monkeypatch.setattr(monitor, "start_of", lambda *args: copies.append("copy") or real(*args))
    for kind, expected in (("frozen", 0), ("cached", 1)):
        (tmp_path / kind).mkdir()
        run(tmp_path / kind, make_model(), tokenizer, reference=ReferenceConfig(kind=kind))  # type: ignore[arg-type]
        assert len(copies) == expected


def test_responses_are_looked_at_as_far_as_samples_go() -> None:
    token_N, length_S = torch.tensor([-1.0, -2.0, -4.0, -8.0, -16.0, -32.0]), torch.tensor([3, 1, 2])
    sums, lengths = monitor.beginnings(token_N, length_S, 2)
    assert sums.tolist() == [-3.0, -8.0, -48.0]
    assert lengths.tolist() == [2, 1, 2]


def test_a_held_out_loss_that_rose_is_reported_at_the_end(tmp_path: Path, model_folder: Path) -> None:
    """With and without a monitor, with steps and numbers, in the manifest and on the page. The labels are those of a
    coin: what is learnt of some rows is wrong for others."""
    coin = np.random.default_rng(0).permuted([[" sat down", " ran away"]] * 40, axis=1)
    rows = [{"prompt": f"{i} the cat", "chosen": str(c), "rejected": str(r)} for i, (c, r) in enumerate(coin)]
    for name, watching in (("on", SMALL), ("off", None)):
        folder = tmp_path / name
        folder.mkdir()
        data = DataConfig(train=str(folder / "data.jsonl"), eval=0.4)
        optim, training = OptimConfig(lr=2e-2, warmup=0), TrainConfig(epochs=5, eval_every=6)
        loss = {"name": "sigmoid", "beta": 2.0}
        said = run(folder, model_folder, rows=rows, data=data, optim=optim, train=training, monitor=watching, loss=loss)
        found = lines(folder, "eval")
        best = min(found, key=lambda line: line["loss"])
        assert found[-1]["loss"] > best["loss"] + 1.6 * found[-1]["loss_se"], "the test needs a loss that rises"
        (sentence,) = [line for line in said if line.startswith("the held-out loss rose by")]
        assert f"to {found[-1]['loss']:.4g} at step {found[-1]['step']}" in sentence
        assert f"from {best['loss']:.4g} at step {best['step']}" in sentence
        assert "Use fewer epochs" in sentence
        kept = json.loads((folder / "run" / "manifest.json").read_text())["advice"]["held-out loss"]
        assert kept == {"step": found[-1]["step"], "text": sentence}
        assert "the held-out loss rose by" in (folder / "run" / "report.html").read_text()
