"""A run keeps its chat settings (date and template arguments) when it resumes and when its model is evaluated."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import PAIRS, write_jsonl

from preftune.chat.open import ChatOptions, load_renderer, renderer_of
from preftune.chat.template import ChatSettings
from preftune.config.sampling import IterateConfig, PPOConfig, PromptConfig, RolloutConfig, SampleConfig
from preftune.config.schema import BatchConfig, DataConfig, DPOConfig, ModelConfig, TrainConfig
from preftune.errors import ConfigError, RunError
from preftune.lifecycle.open_policy import open_policy
from preftune.methods import dpo, ppo
from preftune.model.generate import Sampling
from preftune.model.load import locate
from preftune.train.display import Display
from preftune.train.manifest import write
from preftune.train.run import Run
from preftune.types import Message, PreferenceGroup
from preftune.workflows import iterate, score
from preftune.workflows import sample as samples
from preftune.workflows.score import ScoreOptions

QUIET = Display(quiet=True)
TEMPLATE = (
    "{{ strftime_now('%H:%M:%S.%f') }} {{ style }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GROUP = PreferenceGroup((Message("user", "hello"),), ())


def config(tmp_path: Path, model: Path, **data: Any) -> DPOConfig:
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    file = write_jsonl(tmp_path / "pairs.jsonl", PAIRS)
    options = {"chat_template": str(tmp_path / "t.jinja"), "as_chat": True, **data}
    return DPOConfig(
        model=ModelConfig(path=str(model), dtype="fp32"),
        data=DataConfig(train=str(file), **options),
        batch=BatchConfig(pairs=4),
        train=TrainConfig(max_steps=2, save_every=1),
        monitor=None,
        out=str(tmp_path / "run"),
    )


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


def unfinished(folder: Path) -> None:
    """Leave the run folder as if the run had been stopped after step 1."""
    shutil.rmtree(folder / "final")
    shutil.rmtree(folder / "checkpoints" / "step-00000002")
    write(folder, {**Run.manifest(folder), "finished": False})


def test_a_run_resumes_and_is_evaluated_with_its_date(tmp_path: Path, model_folder: Path) -> None:
    final = dpo.run(config(tmp_path, model_folder), display=QUIET)
    moment = manifest(tmp_path / "run")["chat"]["moment"]
    date = datetime.fromisoformat(moment).strftime("%H:%M:%S.%f")
    unfinished(tmp_path / "run")
    dpo.run(config(tmp_path, model_folder), display=QUIET)
    assert manifest(tmp_path / "run")["chat"]["moment"] == moment
    step = tmp_path / "run" / "checkpoints" / "step-00000001"
    for source in (locate(str(final)), open_policy(str(step), "x", dtype_of(), device_of()).source):
        renderer = renderer_of(source, str(tmp_path / "t.jinja"))
        (samples,) = renderer.encode([GROUP])
        assert renderer.tokenizer.decode(samples.prompt_ids).startswith(date)
    scoring = ScoreOptions(str(final), str(model_folder), DataConfig(train=str(tmp_path / "pairs.jsonl")), tokens=True)
    score.run(scoring, tmp_path / "scores.jsonl", QUIET)
    assert date in (tmp_path / "scores.html").read_text()


def dtype_of() -> Any:
    import torch

    return torch.float32


def device_of() -> Any:
    import torch

    return torch.device("cpu")


def test_a_run_does_not_resume_with_other_template_arguments(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'style'"):
        dpo.run(config(tmp_path, model_folder, chat_template_kwargs={"stile": 1}), display=QUIET)
    final = dpo.run(config(tmp_path, model_folder, chat_template_kwargs={"style": "terse"}), display=QUIET)
    with pytest.raises(RunError, match="chat_template_kwargs"):
        dpo.run(config(tmp_path, model_folder, chat_template_kwargs={"style": "long"}), display=QUIET)
    renderer = renderer_of(locate(str(final)))
    assert "terse" in renderer.tokenizer.decode(renderer.encode([GROUP])[0].prompt_ids)
    renderer = renderer_of(locate(str(final)), options=ChatOptions({"style": "long"}))
    assert "long" in renderer.tokenizer.decode(renderer.encode([GROUP])[0].prompt_ids)


def test_training_a_model_further_with_other_arguments_warns(
    tmp_path: Path, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    final = dpo.run(config(tmp_path, model_folder, chat_template_kwargs={"style": "terse"}), display=QUIET)
    source = locate(str(final))
    load_renderer(DataConfig(train="x", chat_template_kwargs={"style": "terse"}), source)
    assert not caplog.messages
    load_renderer(DataConfig(train="x"), source)
    assert caplog.messages == [
        f'{final} was trained with data.chat_template_kwargs={{"style": "terse"}}; the chat template now uses {{}}'
    ]


def test_a_run_without_chat_saves_no_chat_settings(tmp_path: Path, model_folder: Path) -> None:
    final = dpo.run(config(tmp_path, model_folder, chat_template=None, as_chat="auto"), display=QUIET)
    assert not (final / "chat_settings.json").exists()
    assert renderer_of(locate(str(final))).settings == ChatSettings()


def test_all_rounds_of_iterate_use_the_same_date(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in ("the cat", "a dog", "we can")])
    config = IterateConfig(
        model=ModelConfig(path=str(model_folder), dtype="fp32"),
        data=PromptConfig(
            train=str(prompts),
            chat_template=str(tmp_path / "t.jinja"),
            chat_template_kwargs={"style": "terse"},
            as_chat=True,
        ),
        reward="length",
        rounds=2,
        sample=SampleConfig(n=4, max_new_tokens=4, evaluation=2),
        out=str(tmp_path / "run"),
    )
    iterate.run(config, display=QUIET)
    moment = manifest(tmp_path / "run")["rendered_at"]
    for number in (1, 2):
        chat = manifest(tmp_path / "run" / f"round-0{number}" / "dpo")["chat"]
        assert chat["moment"] == moment
        assert chat["chat_template_kwargs"] == {"style": "terse"}


def test_ppo_resumes_with_its_date(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": p} for p in ("the cat", "a dog", "we can")])
    config = PPOConfig(
        model=ModelConfig(path=str(model_folder), dtype="fp32"),
        data=PromptConfig(train=str(prompts), chat_template=str(tmp_path / "t.jinja"), as_chat=True),
        reward="length",
        rollout=RolloutConfig(prompts=3, responses=2, max_new_tokens=4),
        train=TrainConfig(epochs=2, max_steps=2, save_every=1),
        out=str(tmp_path / "run"),
    )
    final = ppo.run(config, display=QUIET)
    moment = manifest(tmp_path / "run")["chat"]["moment"]
    unfinished(tmp_path / "run")
    ppo.run(config, display=QUIET)
    assert manifest(tmp_path / "run")["chat"]["moment"] == moment
    assert json.loads((final / "chat_settings.json").read_text())["moment"] == moment


def test_samples_depend_on_the_template_arguments(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ style }}" + TEMPLATE.partition(" ")[2].partition("}}")[2])
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}])
    template = str(tmp_path / "t.jinja")

    def drawn(name: str, **chat: Any) -> Any:
        data = DataConfig(train=str(prompts), chat_template=template, **chat)
        options = samples.SampleOptions(str(model_folder), data, Sampling(2, 8))
        return json.loads(samples.run(options, tmp_path / name, QUIET).read_text())["responses"]

    first = drawn("a.jsonl", as_chat=True)
    assert drawn("b.jsonl", as_chat=True, chat_template_kwargs={"style": "in a very terse style"}) != first
    assert drawn("c.jsonl") != first
    with pytest.raises(RunError, match="samples with different settings"):
        drawn("a.jsonl")
