"""The size of micro-batches, recovery when memory runs out, and the estimates of a dry run."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import PAIRS, make_model, random_groups, write_jsonl
from transformers import AutoModelForCausalLM

from preftune.config.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    LoraConfig,
    LossTerm,
    ModelConfig,
    MonitorConfig,
    OptimConfig,
    TrainConfig,
)
from preftune.data.layout import Budget, batch_of, micro_batches
from preftune.errors import ConfigError, Stopped
from preftune.lifecycle import estimate, start
from preftune.lifecycle.estimate import Footprint, choose_tokens
from preftune.lifecycle.task import ResponseTask
from preftune.methods import dpo
from preftune.methods.objective import bind_objective
from preftune.model import memory
from preftune.model.generate import Sampling
from preftune.model.logprobs import Scorer, logps
from preftune.train.display import Display
from preftune.train.run import Run
from preftune.types import Batch


def config(folder: Path, out: Path, **sections: Any) -> DPOConfig:
    data = write_jsonl(out.parent / "pairs.jsonl", PAIRS)
    return DPOConfig(
        data=DataConfig(train=str(data)),
        out=str(out),
        optim=OptimConfig(lr=1e-3),
        **{
            "model": ModelConfig(path=str(folder), attention="rows"),
            "batch": BatchConfig(pairs=4),
            "train": TrainConfig(epochs=2),
            "monitor": None,
            **sections,
        },
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_that_runs_out_of_memory_is_repeated_with_smaller_micro_batches(
    tmp_path: Path, model_folder: Path, backward: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the forward pass, and in the backward pass, when part of the gradient has been added already."""
    small = dpo.run(config(model_folder, tmp_path / "small", batch=BatchConfig(pairs=4, tokens=8)), display=Display())
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    failures = fails_above(model, 40, backward)
    halved = dpo.run(config(model_folder, tmp_path / "halved"), model=model, display=Display())
    assert failures
    assert "out of memory; repeating it with micro-batches of up to" in capsys.readouterr().err
    for name, expected in weights(small).items():
        assert torch.allclose(weights(halved)[name], expected, atol=1e-5), name


def fails_above(model: Any, slots: int, backward: bool) -> list[int]:
    """Raise OutOfMemoryError in the first layer of training passes with more than `slots` token slots."""
    failures: list[int] = []

    def check(_module: Any, _args: Any, hidden: Any) -> None:
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        if not hidden.requires_grad or hidden.numel() // hidden.shape[-1] <= slots:
            return

        def fail(_grad: Any) -> None:
            failures.append(1)
            raise torch.OutOfMemoryError("no memory")

        if backward:
            hidden.register_hook(fail)
        else:
            fail(None)

    model.model.layers[0].register_forward_hook(check)
    return failures


def test_a_single_group_that_does_not_fit_is_refused_with_its_row(tmp_path: Path, model_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    fails_above(model, 0, backward=True)
    with pytest.raises(ConfigError, match=r"pairs.jsonl:\d+: out of memory on a single group of \d+ token slots"):
        dpo.run(config(model_folder, tmp_path / "run"), model=model, display=Display(quiet=True))


def test_a_step_completes_under_a_real_memory_limit(tmp_path: Path) -> None:
    """The address space is limited, so torch's allocator fails, and the step continues with smaller micro-batches."""
    make_model(hidden_size=64, vocab_size=8000).save_pretrained(tmp_path / "model")
    program = f"""
import resource, sys, torch
from tests.conftest import random_groups
from transformers import AutoModelForCausalLM
from preftune.config.schema import (LossTerm, OptimConfig, TrainConfig)
from preftune.data.layout import Budget
from preftune.data.steps import Step
from preftune.methods.objective import bind_objective
from preftune.lifecycle.task import ResponseTask
from preftune.model.logprobs import Scorer
from preftune.model.reference import Frozen
from preftune.train.loop import fit
from preftune.train.metrics import Tally
from preftune.train.optim import Weights, build_optimizer
torch.set_num_threads(1)
model = AutoModelForCausalLM.from_pretrained(r"{tmp_path / "model"}").eval()
groups = random_groups(64, vocabulary=8000, longest=60)
class Log:
    tally = Tally()
    cut = []
    evaluation_due = False
    def log_train(self, step, metrics): print("loss", metrics["loss"])
    def save(self, step, tally, tokens): pass
    def reached(self, *_, evaluated): pass
    def planned(self, step, total): return total
    def save_if_due(self, step, tally, tokens): pass
    def keep_last_state(self): pass
    def log_halved(self, step, tokens): self.cut.append(tokens)
    def stop_requested(self): return False
objective = bind_objective([LossTerm(name="sigmoid")])
task = ResponseTask(Scorer.of(model), Frozen.copy_of(model), objective, groups, [], Budget("rows", 100000))
weights = Weights(model)
optimizer = build_optimizer(weights.masters, "adamw", 1e-3, 0.0)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 160_000_000,) * 2)
for _ in fit(task, [Step(1, 0, tuple(range(64)))], 0, weights, optimizer, OptimConfig(), TrainConfig(), Log()):
    pass
print("cut", Log.cut)
"""
    if not Path("/proc/self/statm").is_file():
        pytest.skip("needs /proc")
    here = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loss 0.6931" in done.stdout
    assert re.search(r"cut \[\d+", done.stdout), done.stdout


def test_scoring_continues_in_halves_when_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Scorer.of(make_model())
    groups = random_groups(7)

    def make_batches(part: Any) -> list[Batch]:
        return micro_batches(part, Budget("rows", 10_000))

    def compute(batch: Batch) -> Any:
        if len(batch.groups) > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
        return logps(scorer, batch)

    [whole] = make_batches(groups)
    parts = list(memory.compute_in_parts(compute, whole, make_batches))
    assert [group for batch, _ in parts for group in batch.groups] == list(whole.groups)
    sum_S = torch.cat([values.sum_S for _, values in parts])
    assert torch.allclose(sum_S, logps(scorer, whole).sum_S, atol=1e-4)
    with pytest.raises(RuntimeError, match="a defect"):
        list(memory.compute_in_parts(lambda _: (_ for _ in ()).throw(RuntimeError("a defect")), whole, make_batches))


def test_auto_chooses_the_largest_size_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    footprint = Footprint({"in use now": 1000, "gradients": 500}, per_slot=1000, max_scored=50_000, per_scored=100)
    for free, expected in ((10_000_000, 4096), (3_500_000, 2048), (1_000_000, 512), (10, 512)):
        monkeypatch.setattr(memory, "available", lambda _device, free=free: free)
        assert choose_tokens(footprint, torch.device("cpu"), 64, torch.float32) == expected
    monkeypatch.setattr(memory, "available", lambda _device: 1 << 40)
    cpu, widths = torch.device("cpu"), (64, 128, 256, 512, 900, 4096)
    sizes = [choose_tokens(footprint, cpu, width, torch.float32) for width in widths]
    assert sizes == [4096, 4096, 2048, 1024, 1024, 1024]
    assert {choose_tokens(footprint, cpu, width, torch.bfloat16) for width in widths} == {4096}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_activation_memory_is_proportional_to_the_slots(architecture: str) -> None:
    changes = {"llama": {}, "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4}, "mixtral": {"num_local_experts": 4}}
    scorer = Scorer.of(make_model(architecture, **changes[architecture]))
    sizes = []
    for n in (4, 8):
        batch = batch_of(random_groups(n), "rows")
        sizes.append(memory.activation_bytes(scorer, batch) / len(batch.ids_T))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.3)
    config = scorer.model.config
    assert sizes[1] > 4 * config.num_hidden_layers * config.hidden_size  # at least the input of each layer


def test_a_dry_run_reports_a_run_that_does_not_fit_or_takes_days(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(estimate, "DAY_S", 1e-6)
    before = {path.name for path in tmp_path.iterdir()}
    dpo.run(config(model_folder, tmp_path / "run"), display=Display(), dry_run=True)
    output = capsys.readouterr().err
    for part in (
        "tokens: ",
        "without shared prompts",
        "memory: ",
        "at the peak",
        "time: about",
        "this run takes more than a day",
    ):
        assert part in output
    assert "does not fit" not in output
    monkeypatch.setattr(memory, "available", lambda _device: 1000)
    dpo.run(config(model_folder, tmp_path / "run"), display=Display(), dry_run=True)
    output = capsys.readouterr().err
    assert "this run does not fit in memory: 0.00 GB is free on cpu. Train with lora" in output
    assert "time: about" not in output
    assert {path.name for path in tmp_path.iterdir()} - before == {"pairs.jsonl"}


@pytest.mark.filterwarnings("ignore")  # the compiler reads deprecated things
def test_a_compiled_run_pads_its_rows_and_has_the_same_result(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    budgets: list[Budget] = []
    finals = []
    for compiled in (False, True):
        model = ModelConfig(path=str(model_folder), attention="shared", compile=compiled)
        settings = config(model_folder, tmp_path / f"{compiled}", model=model, train=TrainConfig(max_steps=2))
        with monkeypatch.context() as patch:
            patch.setattr(
                estimate, "micro_batches", lambda g, budget: budgets.append(budget) or micro_batches(g, budget)
            )
            dpo.run(settings, display=Display(), dry_run=True)
        assert budgets.pop().constant == compiled
        padding = re.search(r"(\d+)% padding", capsys.readouterr().err)
        assert padding
        assert (int(padding[1]) > 0) == compiled
        finals.append(weights(dpo.run(settings, display=Display(quiet=True))))
    for name, expected in finals[0].items():
        assert torch.allclose(finals[1][name], expected, atol=1e-5), name


def test_the_time_estimate_includes_the_monitor(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first token takes 10 s and each of the other 15 takes 1 s, so the two evaluations take 50 s."""
    clock = [0.0]

    def slow(_model: Any, _tokenizer: Any, _prompts: Any, sampling: Sampling) -> None:
        clock[0] += 9 + sampling.max_new_tokens

    monkeypatch.setattr(estimate, "sample", slow)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    monitor = MonitorConfig(prompts=2, max_new_tokens=16)
    dpo.run(config(model_folder, tmp_path / "run", monitor=monitor), display=Display(), dry_run=True)
    assert "time: about 50 s (monitor 50 s)" in capsys.readouterr().err


def test_halving_ends_with_single_groups() -> None:
    """A group that is larger than all others together cannot be split, but the other micro-batches are still halved."""
    [long] = random_groups(1, longest=200, seed=3)
    groups = [replace(long, prompt_ids=long.prompt_ids.repeat(50)), *random_groups(9)]
    scorer = Scorer.of(make_model())
    task = ResponseTask(scorer, None, bind_objective([LossTerm(name="simpo")]), groups, [], Budget("rows", 4096))
    sizes = []

    def halve() -> None:
        nonlocal task
        while True:
            batches = micro_batches(groups, task.budget)
            sizes.append(max(len(batch.groups) for batch in batches))
            task = task.halved(batches)

    with pytest.raises(ConfigError, match="out of memory on a single group"):
        halve()
    assert sizes[-1] == 1
    assert len(sizes) < 15


def test_a_resumed_run_uses_the_halved_micro_batches(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint contains the size, so the resumed run gives the same bits even if there is enough memory now."""
    finals = []
    for name, stop in (("whole", None), ("parts", 3)):
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        fails_above(model, 40, backward=True)
        settings = config(model_folder, tmp_path / name)
        if stop:
            with monkeypatch.context() as patch:
                seen: list[int] = []
                patch.setattr(Run, "stop_requested", lambda _self, seen=seen: seen.append(1) or len(seen) >= 3)
                with pytest.raises(Stopped):
                    dpo.run(settings, model=model, display=Display(quiet=True))
            model = AutoModelForCausalLM.from_pretrained(model_folder)  # this time there is memory
        finals.append(weights(dpo.run(settings, model=model, display=Display(quiet=True))))
    assert all(torch.equal(value, finals[1][name]) for name, value in finals[0].items())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_dry_run_does_not_change_a_model_in_memory(
    tmp_path: Path, model_folder: Path, dtype: str, lora: LoraConfig | None
) -> None:
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = config(model_folder, tmp_path / "run", model=ModelConfig(path=str(model_folder)), lora=lora)
    attention = model.config._attn_implementation
    dpo.run(settings, model=model, display=Display(quiet=True), dry_run=True)
    assert model.config._attn_implementation == attention
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert (dpo.run(settings, model=model, display=Display(quiet=True)) / "tokenizer.json").is_file()


def test_running_out_of_memory_in_the_optimizer_is_reported_with_advice(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(ConfigError, match="out of memory\n  CUDA error: out of memory\n  fix: train with lora"):
        dpo.run(config(model_folder, tmp_path / "run"), display=Display(quiet=True))


def test_a_refused_run_restores_the_attention_of_a_model_in_memory(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(policy: Any, *_: Any) -> None:
        assert policy.model.config._attn_implementation != before
        raise ConfigError("refused")

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    before = model.config._attn_implementation
    monkeypatch.setattr(start, "check_policy", refuse)
    settings = config(model_folder, tmp_path / "run", model=ModelConfig(path=str(model_folder)))
    with pytest.raises(ConfigError, match="refused"):
        dpo.run(settings, model=model, display=Display(quiet=True))
    assert model.config._attn_implementation == before
