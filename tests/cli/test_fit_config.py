"""preftune init fits a config to the model, the data and the machine; the command that it prints runs."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.conftest import PAIRS, make_model, write_jsonl

from preftune.cli import fit_config, machine
from preftune.cli.fit_config import ModelFacts, facts_of, holds_messages, reasons
from preftune.cli.init import GOALS, command_of
from preftune.cli.machine import Machine, parameters_in, this_machine
from preftune.cli.main import run
from preftune.config.commands import CONFIGS
from preftune.config.load import load

SMALL = Machine(2, 8 * 10**9, why="this CPU has no AMX instructions")
LARGE = Machine(32, 80 * 10**9, "a GPU", True, "this GPU supports it")
CHAT_ROW: dict[str, Any] = {
    "prompt": [{"role": "user", "content": "Hi"}],
    "chosen": [{"role": "assistant", "content": "Hello"}],
    "rejected": [{"role": "assistant", "content": "No"}],
}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("prefs.jsonl"), [{**pair, "prompt": f"{pair['prompt']} {i}"} for i in range(4) for pair in PAIRS])
    write_jsonl(Path("chat.jsonl"), [CHAT_ROW] * 4)


def settings_for(
    monkeypatch: pytest.MonkeyPatch, method: str, on: Machine, facts: ModelFacts, **chosen: str
) -> list[str]:
    """The settings that a model with these facts gets."""
    monkeypatch.setattr(fit_config, "facts_of", lambda path: facts)
    raw = {"optim": {"lr": 5e-7}, **({"value": {"kind": "network"}} if method == "ppo" else {})}
    changes = reasons(method, raw, {"model.path": "m", **chosen}, on)
    return [setting for reason in changes for setting in reason.settings]


def test_weights_that_do_not_fit_in_memory_get_an_adapter_with_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    billion = ModelFacts(10**9, 4096, 2048, False)
    assert settings_for(monkeypatch, "dpo", LARGE, billion) == []
    assert settings_for(monkeypatch, "dpo", SMALL, billion) == [
        "lora={rank: 16, alpha: 32, targets: all-linear}",
        "optim.lr=5.0e-06",
        "model.gradient_checkpointing=true",
    ]
    assert "value={kind: head}" in settings_for(monkeypatch, "ppo", SMALL, billion)
    assert settings_for(monkeypatch, "dpo", SMALL, ModelFacts(10**8, 4096, 768, False)) == []
    chosen = {"lora": "null", "optim.lr": "1e-6"}
    assert settings_for(monkeypatch, "dpo", SMALL, billion, **chosen) == []


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dpo", ["data.max_length=256"]),
        ("iterate", ["max_length=256"]),
        ("ppo", ["data.max_prompt_length=192"]),
    ],
)
def test_lengths_fit_into_the_context(method: str, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings_for(monkeypatch, method, SMALL, ModelFacts(1000, 256, 64, False)) == settings
    assert settings_for(monkeypatch, method, SMALL, ModelFacts(1000, None, 64, False)) == []


@pytest.mark.parametrize(
    ("data", "has_template", "chat", "settings"),
    [
        ("prefs.jsonl", False, None, []),
        ("prefs.jsonl", True, None, ["data.as_chat=true"]),
        ("prefs.jsonl", True, False, []),
        ("prefs.jsonl", False, True, ["data.as_chat=true", "data.chat_template=dialogue"]),
        ("chat.jsonl", False, None, ["data.chat_template=dialogue"]),
        ("chat.jsonl", True, None, []),
        ("not-there.jsonl", True, None, []),
    ],
)
def test_text_or_chat_follows_from_model_and_data(
    data: str, has_template: bool, chat: bool | None, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_config, "facts_of", lambda path: ModelFacts(1000, None, 64, has_template))
    changes = reasons("dpo", {}, {"model.path": "m", "data.train": data}, SMALL, chat)
    assert [setting for reason in changes for setting in reason.settings] == settings


def test_facts_are_those_of_the_model(model_folder: Path, tmp_path: Path) -> None:
    facts = facts_of(str(model_folder))
    assert facts
    assert (facts.context, facts.width, facts.has_template) == (256, 32, False)
    assert facts.parameters == sum(parameter.numel() for parameter in make_model().parameters())
    assert facts_of("org/name") is None
    assert facts_of(str(tmp_path)) is None
    (tmp_path / "broken.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="Expecting value"):
        parameters_in([tmp_path / "broken.safetensors"])


def test_messages_are_recognised_in_the_first_rows() -> None:
    assert holds_messages("chat.jsonl") is True
    assert holds_messages("prefs.jsonl") is False
    write_jsonl(Path("cells.jsonl"), [{"chosen": json.dumps(CHAT_ROW["chosen"])}])
    assert holds_messages("cells.jsonl") is True
    write_jsonl(Path("texts.jsonl"), [{"text": "once upon a time"}])
    for name in ("texts.jsonl", "none.jsonl"):
        assert holds_messages(name) is None


def test_the_facts_of_this_machine_are_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = this_machine()
    assert facts.cores >= 1
    assert facts.free > 0
    assert facts.why
    monkeypatch.setattr(machine, "_nvidia", lambda: ("Some GPU", 10**10, 7.5))
    assert this_machine() == Machine(facts.cores, 10**10, "Some GPU", False, "this GPU does not support bf16")
    assert "Some GPU with 10.0 GB of free memory" in this_machine().describe()


@pytest.mark.parametrize("goal", GOALS)
def test_the_printed_command_runs(
    goal: str, model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["reward=length"] if command_of(goal) in ("ppo", "iterate") else []
    file = f"my configs/{goal}.yaml"
    options = ["--model", str(model_folder), "--data", "prefs.jsonl", "--out", file]
    assert run(["init", goal, *options, *more]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command == ["preftune", command_of(goal), file]
    text = Path(file).read_text()
    assert f"# For this machine: {this_machine().describe().partition(',')[0]}" in text
    assert text.count(" # ") + text.count("\n# ") > 5
    assert "=..." not in text
    config: Any = load(CONFIGS[command_of(goal)], file)
    assert config.model.path == str(model_folder)
    assert run([*command[1:], "--dry-run", "--quiet"]) == 0


def test_all_goals_are_valid_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    for goal in GOALS:
        assert run(["init", goal, "--chat"]) == 0
        text = Path(f"{goal}.yaml").read_text()
        load(CONFIGS[command_of(goal)], f"{goal}.yaml")
        assert yaml.safe_load(text)["data"]["as_chat"] is True
    assert "model.path=... data.train=... reward=..." in capsys.readouterr().out
