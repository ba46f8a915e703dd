"""Adapter folders: loaded by peft and transformers, served by `transformers serve`; the command for vLLM."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import peft
import pytest
import torch
import transformers
from tests.servers import transformers_serve

from preftune.client import Client
from preftune.errors import ConfigError, ModelError
from preftune.export.adapter import vllm_command
from preftune.export.run import ExportOptions, run
from preftune.train import manifest
from preftune.train.display import Display
from preftune.types import Message

# peft 0.21 with transformers 5.23
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
QUIET = Display(quiet=True)
IDS = torch.tensor([[5, 17, 42, 99, 200, 31]])


@torch.no_grad()
def test_peft_and_transformers_load_the_folder_from_everywhere(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run(str(lora_run), ExportOptions("adapter"), tmp_path / "a", QUIET)
    monkeypatch.chdir(tmp_path)
    options = {"dtype": torch.float32}
    expected = peft.AutoPeftModelForCausalLM.from_pretrained(lora_run / "final", **options).eval()(IDS).logits
    by_peft = peft.AutoPeftModelForCausalLM.from_pretrained("a", **options).eval()(IDS).logits
    plain = transformers.AutoModelForCausalLM.from_pretrained("a", **options).eval()(IDS).logits
    assert torch.equal(by_peft, expected)
    assert torch.equal(plain, expected)
    assert transformers.AutoTokenizer.from_pretrained("a").chat_template
    assert Path(json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"]).is_absolute()


def test_transformers_serve_answers_a_chat_with_the_exported_model(lora_run: Path, tmp_path: Path) -> None:
    """The served text is what the exported folder writes in this process."""
    pytest.importorskip("openai")
    out = run(str(lora_run), ExportOptions("merged"), tmp_path / "served", QUIET)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    prompt = [{"role": "user", "content": "the cat"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    expected = model.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    with transformers_serve(out) as url:
        reply = Client(url, str(out)).complete((Message("user", "the cat"),), max_tokens=6, temperature=0)
    assert reply.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert reply.text


def test_a_base_model_of_the_run_folder_is_copied(lora_run: Path, base_model: Path, tmp_path: Path) -> None:
    """As after training an adapter on top of an adapter, whose merged base exists only in the run folder."""
    own = tmp_path / "run"
    shutil.copytree(lora_run, own)
    shutil.copytree(base_model, own / "base")
    path = own / "final" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": str(own / "base")}))
    manifest.write(own, {**manifest.read(own), "final": manifest.model_hashes(own / "final")})
    out = run(str(own), ExportOptions("adapter"), tmp_path / "a", QUIET)
    shutil.rmtree(own)
    peft.AutoPeftModelForCausalLM.from_pretrained(out)


def test_the_command_for_vllm_names_base_adapter_and_rank(lora_run: Path, base_model: Path, tmp_path: Path) -> None:
    out = run(str(lora_run), ExportOptions("vllm"), tmp_path / "with space", QUIET)
    words = shlex.split(vllm_command(out, "mine"))
    assert words[:3] == ["vllm", "serve", str(base_model)]
    options = dict(zip(words[4::2], words[5::2], strict=True))
    assert words[3] == "--enable-lora"
    assert options == {"--max-lora-rank": "8", "--lora-modules": f"mine={out}", "--tokenizer": str(out)}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"r": 1000}, "rank 1000")],
)
def test_an_adapter_that_vllm_cannot_serve_is_refused(
    lora_run: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    shutil.copytree(lora_run / "final", tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelError, match=message):
        vllm_command(tmp_path / "a", "mine")


def test_a_merged_model_for_vllm(lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(str(lora_run), ExportOptions("vllm", merge=True), tmp_path / "m", QUIET)
    assert capsys.readouterr().out == f"vllm serve {out} --served-model-name my-run\n"
    assert (out / "model.safetensors").is_file()


def test_a_model_without_an_adapter_is_an_error(lora_run: Path, base_model: Path, tmp_path: Path) -> None:
    checkpoint = sorted((lora_run / "checkpoints").iterdir())[-1]
    for path, what in ((base_model, "this model has no adapter"), (checkpoint, "this is a checkpoint")):
        with pytest.raises(ConfigError, match=what):
            run(str(path), ExportOptions("adapter"), tmp_path / "a", QUIET)
