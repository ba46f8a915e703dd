"""The commands and configs of the documentation parse, and those for the reader's own data run on a toy model."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import typer
import yaml
from tests.conftest import PAIRS, write_jsonl

from preftune.cli.main import app, run
from preftune.cli.settings import check_settings, data_section
from preftune.cli.training import config_from
from preftune.config.commands import CONFIGS
from preftune.config.schema import (
    UNUSED_BY_SAMPLE,
    UNUSED_BY_SCORE,
    UNUSED_BY_WINRATE,
    DataConfig,
    DPOConfig,
    SFTConfig,
)
from preftune.formats.registry import FORMATS
from preftune.losses import PREFERENCE_LOSSES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN_DATA = ROOT / "docs" / "start" / "your-data.md"
TRAINING = ROOT / "docs" / "do" / "training.md"
QWEN = "Qwen/Qwen2.5-0.5B-Instruct"
UNUSED = {
    "score": UNUSED_BY_SCORE,
    "sample": UNUSED_BY_SAMPLE,
    "frontier": UNUSED_BY_SAMPLE,
    "winrate": UNUSED_BY_WINRATE,
}
ROOT_COMMAND: Any = typer.main.get_command(app)
MINIMAL = "model: {path: MODEL}\ndata: {train: prefs.jsonl}\n"


def blocks(page: Path, language: str = "") -> list[str]:
    """The fenced blocks of a page that are marked with `language`."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    return [text for mark, text in fenced if mark == language]


def commands(page: Path) -> list[str]:
    """The lines of a page's blocks that call preftune, without their comments."""
    lines = [line for block in blocks(page) for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines if line.startswith("preftune ")]


def command_of(words: list[str]) -> tuple[Any, list[str], list[str]]:
    """The command that the first words name, the words after it, and the names of the command."""
    command: Any = ROOT_COMMAND
    names: list[str] = []
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, names, words = command.commands[words[0]], [*names, words[0]], words[1:]
    return command, words, names


def config_of(file: str, folder: Path) -> Path:
    """The config of the repository with this name, or a minimal config in place of the reader's own."""
    if (ROOT / file).is_file():
        return ROOT / file
    path = folder / Path(file).name
    path.write_text(MINIMAL)
    return path


LINES = [(page, line) for page in PAGES for line in commands(page)]


def test_the_documentation_has_commands() -> None:
    assert len(LINES) > 25
    assert len({line.split()[1] for _, line in LINES}) > 7


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page.name}: {line[9:60]}" for page, line in LINES])
def test_a_command_line_parses(page: Path, line: str, tmp_path: Path) -> None:
    """The command and its options exist, and its settings are keys of the config."""
    command, words, names = command_of(shlex.split(line)[1:])
    assert names, line
    name = names[-1]
    options = command.make_context(name, words).params
    if name in CONFIGS:
        arguments = [word if "=" in word else str(config_of(word, tmp_path)) for word in options.pop("arguments") or ()]
        named = {key: options[key] for key in ("model", "lora", "out")}
        config_from(name, arguments, data=options["data"] or (), **named)
    elif name in ("check", "show", "convert"):
        config = config_of(str(options["config"]), tmp_path) if options.get("config") else None
        check_settings(options["arguments"] or (), config, {}, line)
    elif name in UNUSED:
        source = options.get("data") or options["prompts"]
        data_section(source, options["settings"], {}, command=line, unused=UNUSED[name])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_exist(page: Path) -> None:
    """`preftune score --tokens` in a sentence: the command exists and has the option."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for line in re.findall(r"`preftune ([^`]+)`", text):
        command, words, names = command_of(line.split())
        if not names:
            assert words[0].startswith("--"), f"{page.name}: preftune {line}"
            continue
        options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
        used = {word.partition("=")[0] for word in words if word.startswith("-")} - {
            "--help",
            "--debug",
            "--allow-code",
        }
        assert used <= options, f"{page.name}: preftune {line}"


@pytest.fixture
def own_data(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages assume the reader has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))  # what the reader writes to `preftune chat`
    Path("configs").symlink_to(ROOT / "configs")
    rows = [{**pair, "prompt": f"{pair['prompt']} {i}", "source": "web"} for i in range(3) for pair in PAIRS]
    for name in ("prefs", "train"):
        write_jsonl(Path(f"{name}.jsonl"), rows[:20])
    write_jsonl(Path("test.jsonl"), rows[20:])
    write_jsonl(Path("a.jsonl"), rows[:6])
    Path("drop.txt").write_text("train.jsonl:2\ntest.jsonl:1\n")  # what the pair browser of a report saves
    votes = [{"prompt": f"{i}?", "response_a": "yes", "response_b": "no", "winner": "ab"[i % 2]} for i in range(6)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(votes), "b.parquet")
    write_jsonl(Path("shp.jsonl"), [{**row, "score_ratio": 1 + i % 3} for i, row in enumerate(rows)])
    rated = [{"prompt": row["prompt"], "response": row["chosen"], "helpfulness": 4} for row in rows]
    worse = [{"prompt": row["prompt"], "response": row["rejected"], "helpfulness": 1} for row in rows]
    write_jsonl(Path("helpsteer2.jsonl"), [row for both in zip(rated, worse, strict=True) for row in both])
    Path("drop.txt").write_text("train.jsonl:3\ntest.jsonl:1\n")
    Path("run.yaml").write_text(MINIMAL.replace("MODEL", str(model_folder)))
    return model_folder


@pytest.mark.parametrize("page", ["README.md", "docs/do/data.md", "docs/start/your-data.md"])
def test_the_commands_for_your_own_data_run(page: str, own_data: Path) -> None:
    lines = commands(ROOT / page)
    if page == "docs/do/data.md":  # it scores the policy that the commands of the README train
        lines = [*commands(ROOT / "README.md"), *lines]
    lines = [line for line in lines if not line.startswith("preftune demo")]
    assert len(lines) >= 3
    for line in lines:
        words = shlex.split(line.replace("MODEL", str(own_data)))[1:]
        if words[0] == "dpo":
            words += ["data.max_length=128", "monitor=null"]
        assert run(words) == 0, line


@pytest.mark.parametrize("page", [ROOT / "README.md", OWN_DATA], ids=lambda page: page.name)
def test_the_first_commands_score_other_data_than_it_trains_on(page: Path) -> None:
    lines = "\n".join(commands(page))
    trained = set(re.findall(r"preftune dpo .*?(?:data\.train=|--data )(\S+)", lines))
    scored = set(re.findall(r"preftune score .*?--data (\S+)", lines))
    assert trained
    assert scored
    assert not trained & scored


def complete(config: object) -> bool:
    """Whether a YAML block is a whole config and not a part of one."""
    return isinstance(config, dict) and "path" in (config.get("model") or {}) and "train" in (config.get("data") or {})


YAML_BLOCKS = [(page, text) for page in PAGES for text in blocks(page, "yaml") if complete(yaml.safe_load(text))]


def test_the_configs_of_the_training_page_are_accepted(own_data: Path, tmp_path: Path) -> None:
    texts = [text for page, text in YAML_BLOCKS if page == TRAINING]
    assert texts
    for text in texts:
        (tmp_path / "page.yaml").write_text(text.replace(QWEN, str(own_data)))
        assert run(["dpo", "page.yaml", "--dry-run"]) == 0


def test_learning_rates_are_those_that_the_start_page_recommends() -> None:
    """In the configs of the pages, in those of configs/, and in the table of the training page."""
    table = re.search(r"start with (\S+) for all weights, (\S+) for LoRA", OWN_DATA.read_text())
    assert table
    full, lora = map(float, table.groups())
    assert DPOConfig.model_fields["optim"].default.lr == full
    configs = [yaml.safe_load(text) for _, text in YAML_BLOCKS if "loss" in yaml.safe_load(text)]
    configs += [yaml.safe_load((ROOT / "configs" / name).read_text()) for name in ("dpo.yaml", "dpo-lora.yaml")]
    assert any(config.get("lora") for config in configs)
    for config in configs:
        assert float(config.get("optim", {}).get("lr", full)) == (lora if config.get("lora") else full)
    rows = re.findall(r"^\| (DPO|SFT), (all weights|\[LoRA).*\| (\S+) \|$", TRAINING.read_text(), re.M)
    rates = {(method, what): float(rate) for method, what, rate in rows}
    sft = SFTConfig.model_fields["optim"].default.lr
    assert rates == {("DPO", "all weights"): full, ("DPO", "[LoRA"): lora, ("SFT", "all weights"): sft}


def test_the_format_function_of_the_data_page_runs(own_data: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "do" / "data.md", "python")
    Path("my_format.py").write_text(block)
    answers = [{"text": "a", "votes": 1}, {"text": "b", "votes": 3}, {"text": "c", "votes": 2}]
    write_jsonl(Path("votes.jsonl"), [{"question": "q", "answers": answers}])
    assert run(["data", "check", "votes.jsonl", "data.format=my_format.py:votes"]) == 0


def code_of(file: str) -> str:
    """The Python block of the documentation that begins with the comment `# file`."""
    (block,) = [text for page in PAGES for text in blocks(page, "python") if text.startswith(f"# {file}")]
    return block


def test_the_loss_and_the_reward_of_the_pages_run(own_data: Path) -> None:
    for file in ("my_losses.py", "my_reward.py"):
        Path(file).write_text(code_of(file))
    (line,) = [line for line in commands(ROOT / "docs" / "do" / "your-own-loss.md") if "my_losses.py" in line]
    words = shlex.split(line)[1:]
    config_of("dpo.yaml", Path()).write_text(MINIMAL.replace("MODEL", str(own_data)))
    assert run([*words, "monitor=null"]) == 0
    assert run(["score", "--reward", "my_reward.py:reward", "--data", "test.jsonl"]) == 0


def test_the_pages_count_the_losses() -> None:
    assert re.findall(r"one of (\d+) related losses", (ROOT / "README.md").read_text()) == [
        str(len(PREFERENCE_LOSSES) - 1)
    ]
    assert re.findall(r"\[(\d+) losses\]", TRAINING.read_text()) == [str(len(PREFERENCE_LOSSES))]


def test_the_pages_count_and_list_the_formats() -> None:
    for page in ("README.md", "CHANGELOG.md"):
        assert re.findall(r"(\w+) \[?data formats", (ROOT / page).read_text()) == [str(len(FORMATS))], page
    table = (ROOT / "docs/lookup/formats.md").read_text().partition("## Formats")[2].partition("\n\nOther names")[0]
    names = {name for line in table.splitlines() for name in re.findall(r"`([\w-]+)`", line.partition(" | ")[0])}
    assert {data_format.name for data_format in FORMATS} <= names


def test_the_changelog_lists_the_settings_of_the_data_section() -> None:
    listed = set(re.findall(r"`data\.(\w+)", (ROOT / "CHANGELOG.md").read_text()))
    assert listed <= {*DataConfig.model_fields, "KEY"}
