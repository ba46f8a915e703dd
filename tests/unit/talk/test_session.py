"""A whole chat on tiny models: answers against transformers, commands, the model's context, preference data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.conftest import make_model, make_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.errors import ConfigError, DataError
from preftune.model.generate import Sampling
from preftune.talk.dialogue import Dialogue
from preftune.talk.files import Pairs
from preftune.talk.screen import Screen, statistics
from preftune.talk.session import Session
from preftune.talk.speakers import OpenOptions, open_speakers
from preftune.types import as_json

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GREEDY = Sampling(max_new_tokens=10, temperature=0)


def save_model(folder: Path, template: str | None, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny model whose EOS is not the token with which its template ends a turn."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    make_model(seed=seed, vocab_size=364, **changes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "chat": save_model(folder / "chat", CHATML),
        "other": save_model(folder / "other", CHATML, seed=1),
        "base": save_model(folder / "base", None, seed=2),
        "short": save_model(folder / "short", CHATML, max_position_embeddings=80),
    }


Chat = Callable[..., Session]


@pytest.fixture
def chat(models: dict[str, Path]) -> Chat:
    """Open a chat with models of these names. `session.messages` holds what it prints."""

    def open_chat(*names: str, sampling: Sampling = GREEDY, plain: bool = False, **options: Any) -> Session:
        messages: list[str] = []
        speakers = open_speakers(OpenOptions(tuple(str(models[name]) for name in names), **options), messages.append)
        screen = Screen(names, False, Console(file=io.StringIO()))
        session = Session(speakers, Dialogue(plain), sampling, screen, messages.append)
        session.messages = messages  # type: ignore[attr-defined]
        return session

    return open_chat


def by_transformers(folder: Path, dialogue: Dialogue, text: str) -> str:
    """The greedy answer of transformers' generate to the dialogue in the model's template."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    messages = as_json(dialogue.prompt(text))
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    row = torch.tensor([ids])
    out = model.generate(
        row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=10, eos_token_id=ends
    )
    return str(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))


def test_greedy_answers_of_several_turns_equal_those_of_transformers(chat: Chat, models: dict[str, Path]) -> None:
    session = chat("chat", "other")
    for text in ("the cat", "once upon a time", "ä 猫\nyes."):
        before = session.dialogue
        session.handle(text)
        answers = [answer.text for answer in session.dialogue.turns[-1].answers]
        assert answers == [by_transformers(models[name], before, text) for name in ("chat", "other")]
        assert answers[0] != answers[1]
    assert len(session.dialogue.turns) == 3


def test_the_token_with_which_the_template_ends_a_turn_ends_an_answer(chat: Chat) -> None:
    (speaker,) = chat("chat").speakers
    end = speaker.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert speaker.stream.ends == {speaker.tokenizer.eos_token_id, end}


def test_set_changes_the_next_answer_and_retry_draws_another_one(chat: Chat, models: dict[str, Path]) -> None:
    session = chat("chat")
    session.handle("the cat")
    with pytest.raises(ConfigError, match="at temperature 0"):
        session.handle("/retry")
    for line in ("/set temperature 1", "/set max_tokens 6", "/retry"):
        session.handle(line)
    first = session.dialogue.turns[0].answers[0]
    assert first.tokens <= 6
    session.handle("/retry")
    second = session.dialogue.turns[0]
    assert second.answers[0].text != first.text
    assert (second.attempt, len(session.dialogue.turns)) == (2, 1)
    assert session.messages[-1].startswith("[")  # type: ignore[attr-defined]


def test_undo_clear_and_system(chat: Chat, models: dict[str, Path]) -> None:
    session = chat("chat")
    for line in ("/system Be brief.", "the cat", "a dog", "/undo"):
        session.handle(line)
    assert [turn.text for turn in session.dialogue.turns] == ["the cat"]
    before = session.dialogue
    session.handle("yes")
    assert session.dialogue.turns[-1].answer == by_transformers(models["chat"], before, "yes")
    assert as_json(session.dialogue.turns[-1].prompt)[0] == {"role": "system", "content": "Be brief."}
    session.handle("/clear")
    assert session.dialogue == Dialogue(system="Be brief.")
    session.handle("/system none")
    assert session.dialogue == Dialogue()
    for line in ("/undo", "/retry", "/save a", "/undo twice", "/save"):
        with pytest.raises(ConfigError):
            session.handle(line)


def test_a_system_message_that_the_template_refuses_is_not_set(chat: Chat, tmp_path: Path) -> None:
    refusing = tmp_path / "no-system.jinja"
    check = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    refusing.write_text(check + CHATML)
    session = chat("chat", chat_template=str(refusing))
    with pytest.raises(DataError, match="no system role"):
        session.handle("/system Be brief.")
    assert session.dialogue == Dialogue()


def test_the_oldest_turns_are_left_out_when_the_context_is_full(chat: Chat, models: dict[str, Path]) -> None:
    """No more than necessary, the same for both models, and it is reported once for each turn."""
    session = chat("chat", "short")
    (long, short) = session.speakers
    assert (long.limit, short.limit) == (256, 80)
    for number in range(5):
        session.handle(f"the cat {number}")
    last = session.dialogue.turns[-1]
    kept = [message.content for message in last.prompt if message.role == "user"]  # type: ignore[union-attr]
    assert 1 <= len(kept) < 5
    assert kept == [f"the cat {number}" for number in range(5 - len(kept), 5)]
    shown = replace_turns(session.dialogue, 5 - len(kept), 4)
    assert last.answers[1].text == by_transformers(models["short"], shown, "the cat 4")
    longer = replace_turns(session.dialogue, 5 - len(kept) - 1, 4).prompt("the cat 4")
    ids = short.tokenizer.apply_chat_template(as_json(longer), add_generation_prompt=True, return_dict=False)
    assert len(ids) + 10 > 80
    notes = [m for m in session.messages if "left out" in m]  # type: ignore[attr-defined]
    assert f"the oldest {5 - len(kept)} of 4 turns are left out" in notes[-1]
    assert "context has 80 tokens" in notes[-1]


def replace_turns(dialogue: Dialogue, first: int, last: int) -> Dialogue:
    return Dialogue(turns=dialogue.turns[first:last])


def test_a_message_that_is_too_long_is_an_error_and_changes_nothing(chat: Chat) -> None:
    session = chat("short")
    session.handle("the cat")
    before = session.dialogue
    with pytest.raises(DataError, match=r"the message is too long: it has \d+ tokens, and the model's context has 80"):
        session.handle("x y " * 60)
    assert session.dialogue == before
    session.handle("/set max_tokens 500")
    session.handle("x y " * 12)  # an answer gets the room that is left
    assert session.dialogue.turns[-1].answers[0].tokens <= 40


def test_a_base_model_continues_the_text(chat: Chat, models: dict[str, Path]) -> None:
    session = chat("base", plain=True)
    session.handle("the cat")
    first = session.dialogue.turns[0].answer
    session.handle(" sat")
    tokenizer = AutoTokenizer.from_pretrained(models["base"])
    model = AutoModelForCausalLM.from_pretrained(models["base"])
    row = torch.tensor([tokenizer(f"the cat{first}\n sat")["input_ids"]])
    out = model.generate(row, attention_mask=torch.ones_like(row), do_sample=False, max_new_tokens=10, eos_token_id=2)
    assert session.dialogue.turns[1].answer == tokenizer.decode(out[0, row.shape[1] :], skip_special_tokens=True)
    with pytest.raises(ConfigError, match="no system message"):
        session.handle("/system x")


def test_a_model_without_a_template_gets_that_of_the_other(chat: Chat) -> None:
    session = chat("base", "chat")
    assert "base has no chat template; it uses that of chat" in session.messages  # type: ignore[attr-defined]
    session.handle("the cat")
    assert session.speakers[0].renderer.template.source == CHATML
    assert session.dialogue.turns[0].answers[0].tokens > 0


def test_the_same_model_twice_is_loaded_once_and_gives_two_answers(chat: Chat) -> None:
    session = chat("chat", "chat", sampling=Sampling(max_new_tokens=10))
    assert session.speakers[0].stream.model is session.speakers[1].stream.model
    session.handle("the cat")
    left, right = session.dialogue.turns[0].answers
    assert left.text != right.text


def test_marked_pairs_are_read_unchanged_and_the_dialogue_continues_with_the_better_answer(
    chat: Chat, models: dict[str, Path], tmp_path: Path
) -> None:
    from preftune.cli.main import run

    path = tmp_path / "prefs.jsonl"
    session = chat("chat", "other", sampling=Sampling(max_new_tokens=8, temperature=0.8))
    session.pairs = Pairs.open(str(path))
    for line in (
        "/system Be brief.",
        "the cat",
        "/better right",
        "a dog",
        "/better left",
        "/better tie",
        "/better right",
    ):
        session.handle(line)
    session.handle("once upon")
    session.handle("/better tie")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first, second, _ = session.dialogue.turns
    assert len(rows) == 2
    for row, turn in zip(rows, (first, second), strict=True):
        assert row["prompt"] == as_json(turn.prompt)
        assert row["chosen"] == [{"role": "assistant", "content": turn.answers[1].text}]
        assert row["rejected"] == [{"role": "assistant", "content": turn.answers[0].text}]
    assert rows[1]["prompt"][1:] == [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": first.answers[1].text},
        {"role": "user", "content": "a dog"},
    ]
    assert session.summary() == f"2 pairs added to {path}, 1 ties without a pair"
    config = tmp_path / "dpo.yaml"
    config.write_text(f"model: {{path: {models['chat']}}}\ndata: {{train: {path}}}\nmonitor: null\n")
    assert run(["dpo", str(config), f"out={tmp_path / 'run'}", "-q"]) == 0
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["finished"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert run(["data", "check", str(path)]) == 0


def test_better_without_two_answers_or_a_file_is_explained(chat: Chat) -> None:
    with pytest.raises(ConfigError, match="only one answer"):
        chat("chat").handle("/better left")
    session = chat("chat", "other")
    session.handle("the cat")
    with pytest.raises(ConfigError, match="'middle' is not left, right or tie"):
        session.handle("/better middle")
    session.handle("/better right")
    assert "not saved, because there is no preference file" in session.messages[-1]  # type: ignore[attr-defined]
    assert session.dialogue.turns[0].chosen == 1


def test_a_verdict_is_changed_only_if_its_pair_is_the_last_one(chat: Chat, tmp_path: Path) -> None:
    """And a verdict from before the preference file was named can be repeated."""
    session = chat("chat", "other")
    for line in ("the cat", "/better left", f"/prefs {tmp_path / 'p.jsonl'}", "/better left", "/better left"):
        session.handle(line)
    assert session.pairs is not None
    assert len(session.pairs.rows) == 1
    for line in ("a dog", "/better left", "/undo"):
        session.handle(line)
    before = (tmp_path / "p.jsonl").read_text()
    with pytest.raises(ConfigError, match="it is not the last one"):
        session.handle("/better right")
    assert (tmp_path / "p.jsonl").read_text() == before
    assert len(before.splitlines()) == 2
    assert session.dialogue.turns[0].verdict == "left"


def test_a_file_that_this_chat_did_not_write_is_not_overwritten(chat: Chat, tmp_path: Path) -> None:
    session = chat("chat")
    session.handle("the cat")
    (tmp_path / "a.md").write_text("notes")
    with pytest.raises(ConfigError, match="the file exists"):
        session.handle(f"/save {tmp_path / 'a'}")
    assert not (tmp_path / "a.jsonl").exists()
    for _ in range(2):
        session.handle(f"/save {tmp_path / 'b'}")
    assert (tmp_path / "b.md").exists()


def test_running_out_of_memory_is_reported_and_leaves_the_dialogue_as_it_was(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = chat("chat")
    session.handle("the cat")
    before, model = session.dialogue, session.speakers[0].stream.model

    def forward(**_: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", forward)
        with pytest.raises(ConfigError, match="out of memory"):
            session.handle("a dog")
    assert session.dialogue == before
    session.handle("a dog")
    assert len(session.dialogue.turns) == 2


def test_two_answers_are_shown_in_columns() -> None:
    """Each column shows its last lines while the models generate, and whole answers at the end."""
    from preftune.talk.dialogue import Answer

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=70, height=8, color_system=None, legacy_windows=False)
    screen = Screen(("dpo", "base"), True, console)
    assert screen.has_columns
    assert not Screen(("dpo", "base"), True, Console(file=out, force_terminal=True, width=50)).has_columns
    assert not Screen(("dpo",), True, console).has_columns
    words = [f"word{n}" for n in range(40)]
    parts = [
        lambda _: (Answer("\n".join(words[:n]), n) for n in range(1, 41)),
        lambda _: (Answer("short \x1b[2J", n) for n in range(1, 3)),
    ]
    answers = screen.show(parts)
    assert [answer.tokens for answer in answers] == [40, 2]
    final = out.getvalue().rpartition("left: dpo")[2]
    lines = [line for line in final.splitlines() if "word" in line]
    assert [line.split()[0] for line in lines] == words
    assert "right: base" in final
    assert "short \\x1b[2J" in lines[0]
    assert "\x1b[2J" not in out.getvalue()


def test_the_statistics_say_why_an_answer_ended() -> None:
    from preftune.talk.dialogue import Answer

    assert statistics(Answer("a", 4, True, 2.0), 8) == "4 tokens, 2.0 tokens/s"
    assert statistics(Answer("a", 8, False, 2.0), 8) == "8 tokens, 4.0 tokens/s; cut off at 8 tokens"
    assert statistics(Answer("a", 3, False, 0.0), 8) == "3 tokens; stopped"
