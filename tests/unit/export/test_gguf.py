"""GGUF files and Modelfiles: the converter's result, what happens without it, and the Go template."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from tests.conftest import make_tokenizer

from preftune.chat.template import ChatSettings, Template
from preftune.errors import ConfigError, IncompleteError, ModelError
from preftune.export import gguf, ollama
from preftune.export.run import ExportOptions, run
from preftune.train.display import Display

QUIET = Display(quiet=True)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set s = '<<SYS>>' + messages[0]['content'] + '<</SYS>>' %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (s if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}{{ ' ' if add_generation_prompt }}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}<assistant>"
)


def template(text: str) -> Template:
    tokenizer = make_tokenizer(bos=False)
    tokenizer.chat_template = text
    return Template(tokenizer, ChatSettings(), text, datetime(2026, 1, 1))


@pytest.fixture
def no_converter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setattr(gguf, "find_converter", lambda path: None)


def fake(folder: Path, code: str) -> Path:
    """A program with the converter's name."""
    folder.mkdir()
    (folder / gguf.SCRIPT).write_text(code)
    return folder


def test_without_the_converter_the_commands_are_printed_and_the_model_is_kept(
    lora_run: Path, tmp_path: Path, no_converter: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(IncompleteError, match="converter was not found") as caught:
        run(str(lora_run), ExportOptions("gguf"), tmp_path / "g", QUIET)
    assert caught.value.exit_code == 9
    assert (tmp_path / "g" / "model" / "model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert f"convert_hf_to_gguf.py {tmp_path}/g/model --outfile {tmp_path}/g/my-run-bf16.gguf --outtype bf16" in printed


def test_the_converter_runs_and_only_its_file_is_kept(lora_run: Path, tmp_path: Path) -> None:
    code = "import sys, pathlib\nassert (pathlib.Path(sys.argv[1]) / 'config.json').is_file()\n"
    code += "pathlib.Path(sys.argv[3]).write_bytes(b'GGUF' + sys.argv[5].encode())\n"
    converter = fake(tmp_path / "llama.cpp", code)
    out = run(str(lora_run), ExportOptions("gguf", converter=str(converter)), tmp_path / "g", QUIET)
    assert (out / "my-run-bf16.gguf").read_bytes() == b"GGUFbf16"
    assert not (out / "model").exists()
    assert "llama-server" in (out / "README.md").read_text()


@pytest.mark.parametrize("code", ["raise SystemExit('unknown architecture')", "print('unknown architecture')"])
def test_a_converter_that_fails_or_writes_nothing_is_an_error(lora_run: Path, tmp_path: Path, code: str) -> None:
    converter = fake(tmp_path / "llama.cpp", code)
    with pytest.raises(ModelError, match="unknown architecture"):
        run(str(lora_run), ExportOptions("gguf", converter=str(converter)), tmp_path / "g", QUIET)
    assert not (tmp_path / "g").exists()


def test_a_converter_that_does_not_exist_is_an_error(lora_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no convert_hf_to_gguf\.py"):
        run(str(lora_run), ExportOptions("gguf", converter=str(tmp_path)), tmp_path / "g", QUIET)


def test_the_modelfile_has_weights_template_and_stop_texts(lora_run: Path, tmp_path: Path, no_converter: None) -> None:
    out = run(str(lora_run), ExportOptions("ollama"), tmp_path / "o", QUIET)
    text = (out / "Modelfile").read_text()
    assert "FROM ./model\n" in text
    assert 'PARAMETER stop "</s>"\n' in text
    assert "{{ else }}<s>system\nBe nice</s>\n<s>user\n{{ end }}" in text
    assert "PARAMETER repeat_penalty 1.0" in text


@pytest.mark.parametrize("text", [LLAMA2, NO_SYSTEM])
def test_the_pieces_render_chats_as_the_template_does(text: str) -> None:
    pieces = ollama.pieces_of(template(text), "here")
    chat = [("user", "a b"), ("assistant", "c"), ("user", "d"), ("assistant", "e"), ("user", "f")]
    assert pieces.render(chat) == ollama.render(template(text), chat)


def test_a_template_that_cannot_be_split_is_an_error() -> None:
    """It numbers the turns, so the text between two messages depends on their position."""
    numbered = "{% for m in messages %}{{ loop.index ~ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(ModelError, match="Go template"):
        ollama.pieces_of(template(numbered), "here")
