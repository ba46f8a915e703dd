"""The data of a run in files: the same as in memory, found by the next start, and built again if anything changed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import make_tokenizer
from tests.unit.formats.examples import write_jsonl

from preftune import in_memory
from preftune.chat.render import Renderer
from preftune.chat.template import ChatSettings
from preftune.config.schema import DataConfig
from preftune.data import cache, spool
from preftune.data.loss_items import as_labelled, as_pairs, as_rankings, require_columns, with_mismatches
from preftune.errors import DataError
from preftune.lifecycle import data as module
from preftune.lifecycle.data import TokenData, read_data, tokenize_data
from preftune.methods.reward import reward_groups
from preftune.methods.sft import preferred
from preftune.types import TokenGroup

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }} " + TEMPLATE
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "the", "moon", "while", "dogs", "ran", "over"]


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Preference pairs of different lengths; every seventh row is dropped, and some prompts occur twice."""

    def text(seed: int, length: int) -> str:
        return " ".join(WORDS[(seed * 7 + i * (seed % 5 + 1)) % len(WORDS)] for i in range(1 + length))

    return [
        {
            "prompt": f"{i // 2 if i % 10 < 2 else i} {text(i, i % 9)}",
            "chosen": f" {text(i + 1, i % 11)}",
            "rejected": "" if i % 7 == 6 else f" {text(i + 2, i % 6)} {i}",
        }
        for i in range(start, start + count)
    ]


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SMALL", 0)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(write_jsonl(tmp_path / "rows.jsonl", rows(60)))


def config(train: str, **settings: Any) -> DataConfig:
    return DataConfig(train=train, max_length=20, **settings)


def renderer(template: str | None = None, moment: datetime | None = None, **settings: Any) -> Renderer:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return Renderer.of(tokenizer, settings=ChatSettings(moment=moment, **settings))


def start(settings: DataConfig, render: Renderer) -> tuple[TokenData, list[str]]:
    """Do what a run does, and return the token ids and what is printed."""
    text = read_data(settings)
    tokens = tokenize_data(text, render, settings)
    lines = [line for account in text.accounts for line in account.lines()]
    return tokens, [*text.messages, *tokens.messages, *lines]


def plain(groups: Sequence[TokenGroup]) -> list[Any]:
    ids = [[g.prompt_ids.tolist(), *(one.tolist() for one in g.response_ids)] for g in groups]
    return [(i, g.judgements, g.labels, g.ranks, g.origin) for i, g in zip(ids, groups, strict=True)]


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a row is read, rendered or tokenised."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a stored entry was not used")

    monkeypatch.setattr(module, "read_groups", refuse)
    for name in ("_render", "_tokenize", "encode_all"):
        monkeypatch.setattr(Renderer, name, refuse)


@pytest.mark.parametrize("held_out", [None, 0.2, "file"])
@pytest.mark.parametrize("as_chat", [False, True])
def test_data_in_files_equal_data_in_memory(
    source: str, held_out: Any, as_chat: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if held_out == "file":
        held_out = str(write_jsonl(tmp_path / "eval.jsonl", rows(20, start=1000)))
    settings = config(source, eval=held_out, as_chat=as_chat)
    first, printed = start(settings, renderer(TEMPLATE, as_chat=as_chat))
    with monkeypatch.context() as patch:
        forbid(patch)
        second, printed_again = start(settings, renderer(TEMPLATE, as_chat=as_chat))
    monkeypatch.setattr(spool, "SMALL", 1000)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "empty"))
    expected, printed_in_memory = start(settings, renderer(TEMPLATE, as_chat=as_chat))
    assert isinstance(expected.train, list)
    assert not isinstance(first.train, list)
    assert printed == printed_again == printed_in_memory
    assert any("dropped 8" in line for line in printed)
    assert any("truncated" in line for line in printed)
    for stored in (first, second):
        assert plain(stored.train) == plain(expected.train)
        assert plain(stored.held_out) == plain(expected.held_out)
        assert stored.hash == expected.hash == TokenData(list(stored.train), list(stored.held_out)).hash
    assert bool(expected.held_out) == (held_out is not None)


@pytest.mark.parametrize(
    "shape",
    [
        lambda groups: as_pairs(groups, "sigmoid"),
        lambda groups: as_labelled(groups, "kto"),
        lambda groups: with_mismatches(as_labelled(groups, "kto"), "kto"),
        lambda groups: as_rankings(groups, "plackett_luce"),
        preferred,
        reward_groups,
    ],
)
def test_groups_in_files_are_converted_as_groups_in_memory(source: str, shape: Any) -> None:
    tokens, _ = start(config(source, eval=0.2), renderer())
    for groups in (tokens.train, tokens.held_out):
        expected = plain(shape(list(groups)))
        assert plain(shape(groups)) == expected
        assert plain(shape(groups)) == expected  # stored by the call before
        assert not isinstance(shape(groups), list)


def test_a_column_that_the_loss_ignores_is_refused_in_files_too(tmp_path: Path) -> None:
    marked = [{**row, "margin": 0.5, "probability": 0.9 if i == 30 else 1.0} for i, row in enumerate(rows(40))]
    groups = start(config(str(write_jsonl(tmp_path / "m.jsonl", marked))), renderer())[0].train
    for inputs in (frozenset(), frozenset({"margin"}), frozenset({"probability"})):
        errors = []
        for one in (groups, list(groups)):
            with pytest.raises(DataError) as error:
                require_columns(one, "mine", inputs, weighted=False, log_margin=False)
            errors.append(str(error.value))
        assert errors[0] == errors[1]
    require_columns(groups, "mine", frozenset({"margin", "probability"}), weighted=False, log_margin=True)


def entries() -> set[str]:
    return {path.name for path in cache.data_folder().iterdir()}


CHANGES = {
    "a row": {"rows": [*rows(59), {"prompt": "new", "chosen": " a", "rejected": " b"}]},
    "name of the file": {"name": "others.jsonl"},
    "data.eval": {"eval": 0.3},
    "data.format": {"format": "preference"},
    "data.ignore": {"rows": [{**row, "note": "some words"} for row in rows(60)], "ignore": ["note"]},
    "data.bad_rows": {"bad_rows": "drop"},
    "data.max_length": {"max_length": 19},
    "data.max_prompt_length": {"max_prompt_length": 7},
    "data.overlong": {"overlong": "drop", "max_dropped": 1.0},
    "vocabulary": {"tokens": ["<new>"]},
    "end of a response": {"end_ids": [7]},
    "chat template": {"template": TEMPLATE + " "},
    "its arguments": {"arguments": {"add_generation_prompt": True}},
    "reasoning": {"thinking": "keep"},
    "code": {"code": "other"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_anything_that_matters_builds_a_new_entry(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(
        rows: Sequence[Any] = tuple(rows(60)),
        name: str = "rows.jsonl",
        template: str = TEMPLATE,
        tokens: Sequence[str] = (),
        end_ids: Sequence[int] = (),
        code: str = "",
        thinking: Any = "template",
        arguments: Any = None,
        **settings: Any,
    ) -> set[str]:
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(list(tokens))
        tokenizer.chat_template = template
        chat = ChatSettings(arguments or {}, thinking=thinking)
        if code:
            monkeypatch.setattr(cache, "code_version", lambda: code)
        source = str(write_jsonl(tmp_path / name, list(rows)))
        options = DataConfig(**{"train": source, "max_length": 20, "eval": 0.2, **settings})
        start(options, Renderer.of(tokenizer, end_ids, chat))
        return entries()

    before = build()
    assert build() == before
    assert len(before) == 2  # text and token ids
    assert len(build(**CHANGES[change]) - before) in (1, 2)  # type: ignore[arg-type]


def test_a_date_of_the_chat_template_is_a_part_of_the_key(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = DataConfig(train=source, as_chat=True)  # long enough for the date

    def at(hour: int, day: int = 1) -> tuple[TokenData, list[str], Renderer]:
        render = renderer(DATED, datetime(2026, 5, day, hour), as_chat=True)
        return *start(settings, render), render

    first, printed, _ = at(8)
    assert any("2026-05-01 08:00:00" in line for line in printed)
    other_day, _, _ = at(8, day=2)
    assert other_day.hash != first.hash
    forbid(monkeypatch)
    later, printed, render = at(9)
    assert later.hash == first.hash
    assert any("2026-05-01 09:00:00" in line for line in printed)
    assert render.settings.moment == datetime(2026, 5, 1, 9)  # recorded with the model, as after rendering


def test_an_unknown_date_format_never_finds_an_entry() -> None:
    template = "{% set f = '%d' %}{{ strftime_now(f) }}"
    moments = [datetime(2026, 5, 1, 8, second=second) for second in (0, 1)]
    assert len({str(renderer(template, moment).identity()) for moment in moments}) == 2


@pytest.mark.parametrize("name", ["train.arrow", "held_out.npy", "groups.arrow", "shapes.safetensors", "meta.json"])
def test_damaged_files_are_reported_and_built_again(name: str, source: str) -> None:
    settings = config(source, eval=0.2)
    expected, printed = start(settings, renderer())
    before = plain(expected.train)
    for path in cache.data_folder().glob(f"*/{name}"):
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(damaged)
    tokens, messages = start(settings, renderer())
    assert plain(tokens.train) == before
    assert len([message for message in messages if "is damaged" in message]) == (2 if name == "meta.json" else 1)
    assert messages[-len(printed) :] == printed
    assert start(settings, renderer())[1] == printed


def test_a_function_of_the_user_is_called_at_each_start(tmp_path: Path) -> None:
    source = str(write_jsonl(tmp_path / "rows.jsonl", rows(30)))
    function = tmp_path / "mine.py"
    code = "from preftune import Judgement, PreferenceGroup\ndef mine(row):\n    return PreferenceGroup(row['prompt'], "
    hashes = []
    for responses in ("(' yes', ' no')", "(' yes', ' no')", "(' yes', ' nope')"):
        function.write_text(f"{code}{responses}, (Judgement(0, 1),))\n")
        hashes.append(start(config(source, format=f"{function}:mine"), renderer())[0].hash)
        if len(hashes) < 3:
            assert len(entries()) == 1  # the token ids of the same text
    assert hashes[0] == hashes[1] != hashes[2]


def test_rows_in_memory_have_an_entry_by_their_content(monkeypatch: pytest.MonkeyPatch) -> None:
    for values in (rows(40), rows(40), rows(41)):
        held = in_memory.as_rows(values, "data")
        with in_memory.holding({held.name: held}):
            start(config(held.name), renderer())
    assert len(entries()) == 4


def test_data_that_change_while_they_are_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "x", "rejected": "y"}])
    original = module.read_groups

    def reading_while_written(*arguments: Any) -> Any:
        result = original(*arguments)
        with Path(path).open("a") as file:
            file.write('{"prompt": "q", "chosen": "x", "rejected": "y"}\n')
        return result

    monkeypatch.setattr(module, "read_groups", reading_while_written)
    with pytest.raises(DataError, match=r"a.jsonl: the data changed while they were read"):
        read_data(DataConfig(train=str(path)))
    monkeypatch.setattr(module, "read_groups", original)
    assert len(read_data(DataConfig(train=str(path))).train) == 2


def test_few_groups_stay_in_memory(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "SMALL", 60)
    text = read_data(config(source, eval=0.2))
    assert isinstance(text.train, list)
    assert isinstance(tokenize_data(text, renderer(), config(source)).train, list)
    assert not cache.data_folder().exists()


MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.unit.lifecycle.test_data import config, renderer
from preftune.data.shapes import Shapes
from preftune.lifecycle.data import read_data, tokenize_data

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

settings, render = config(sys.argv[2], eval=0.01), renderer()
tokenize_data(read_data(config(sys.argv[3])), render, settings)  # loads all libraries
before = anonymous()
tokens = tokenize_data(read_data(settings), render, settings)
shapes = Shapes.of(tokens.train)
total = sum(group.tokens for group in tokens.train)
print(json.dumps([anonymous() - before, total, len(tokens.train)]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux only")
def test_memory_does_not_grow_with_the_data(tmp_path: Path) -> None:
    """Lists of groups would take at least 1.5 kB per pair: 30 MB for the difference of 20,000 pairs."""
    small = str(write_jsonl(tmp_path / "small.jsonl", rows(1500)))

    def measure(count: int) -> list[float]:
        source = str(write_jsonl(tmp_path / f"{count}.jsonl", rows(count)))
        root = str(Path(__file__).resolve().parents[3])
        command = [sys.executable, "-c", MEASURE, root, source, small]
        return [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in "12"]

    few, many = measure(2_000), measure(22_000)
    assert many[0][2] > 5 * few[0][2]
    for start_number in (0, 1):  # the first and the second start
        assert many[start_number][0] - few[start_number][0] < 20_000  # kB
