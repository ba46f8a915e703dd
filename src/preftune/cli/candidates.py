"""What can follow on a command line: commands, options, config keys, values and files."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

SHELLS = ("bash", "zsh", "fish")
DTYPES = ("auto", "fp32", "bf16")
#: The values of options that are names.
OPTION_VALUES = {
    "--dtype": DTYPES,
    "--select": ("best-worst", "best-random", "all", "top-k", "rso"),
    "--to": ("merged", "adapter", "gguf", "vllm", "ollama", "hub"),
    "--gguf-type": ("auto", "f32", "f16", "bf16", "q8_0"),
    "--mode": ("corrected", "compatible"),
    "--chat-template": ("dialogue",),
    "--template": ("dialogue",),
    "--pairs": ("1", "all"),
    "--reward": ("vader", "length", "short", "random"),
    "--judge": ("first", "random"),
}
#: Options whose value is neither a name nor a file.
NO_VALUES = {
    "--n", "--k", "--seed", "--temperature", "--temperatures", "--top-p", "--top-k", "--beta", "--gap", "--port",
    "--votes", "--annotator", "--max-new-tokens", "--max-tokens", "--max-prompts", "--max-length", "--concurrency",
    "--timeout", "--api-key-env", "--server-settings", "--chat-template-kwargs", "--system", "--server", "--name",
    "--repo", "--price-in", "--price-out", "--samples", "--limit", "--line",
}  # fmt: skip
#: Config keys whose values are files or folders.
PATH_KEYS = re.compile(r"(model|reference|value)\.path|data(\.train|\.eval|\.chat_template)?|out|reward|data\.format")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that can replace the last word, what it means, and whether it is a file."""

    text: str
    help: str = ""
    is_file: bool = False


def candidates(command: Any, words: Sequence[str]) -> list[Candidate]:
    """Return the candidates for the last of the words after `preftune`; it may be "" or the beginning of a word.

    `command` is the click command of the whole program.
    """
    path: list[str] = []
    before, word = list(words[:-1]), words[-1]
    while hasattr(command, "commands"):
        before = [other for other in before if other not in ("--debug", "--allow-code", "--json")]
        if not before:
            names = [(name, one) for name, one in command.commands.items() if not one.hidden]
            return _begin([Candidate(name, _first_line(one.help)) for name, one in names] + _options(command), word)
        name = before.pop(0)
        if name not in command.commands:
            return []
        command = command.commands[name]
        path.append(name)
    return _begin(list(_for_command(command, path, before, word)), word)


def _begin(every: Sequence[Candidate], word: str) -> list[Candidate]:
    """Return the candidates that begin with `word`, each once."""
    return list({candidate.text: candidate for candidate in every if candidate.text.startswith(word)}.values())


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _options(command: Any) -> list[Candidate]:
    names = [
        Candidate(name, _first_line(getattr(option, "help", "")))
        for option in command.params
        for name in [*option.opts, *option.secondary_opts]
        if name.startswith("--") and not getattr(option, "hidden", False)
    ]
    return [*names, Candidate("--help", "Show the options and end.")]


def _for_command(command: Any, path: Sequence[str], before: Sequence[str], word: str) -> Iterator[Candidate]:
    """Yield the candidates for a word after a command and the words `before` it."""
    takes_value = {name for option in command.params if not getattr(option, "is_flag", False) for name in option.opts}
    if before and before[-1] in takes_value and before[-1].startswith("-"):
        yield from _option_values(before[-1], word)
        return
    if word.startswith("-"):
        name, equals, value = word.partition("=")
        if equals:
            values = _option_values(name, value)
            yield from (Candidate(f"{name}={one.text}", one.help, one.is_file) for one in values)
        else:
            yield from _options(command)
        return
    name = path[-1]
    if name == "init" and not [other for other in before if not other.startswith("-")]:
        from preftune.cli.init import summary_of, templates

        for goal, file in templates().items():
            yield Candidate(goal, summary_of(file.read_text(encoding="utf-8")))
        return
    if name in ("schema", "completion"):
        from preftune.config.commands import CONFIGS

        yield from map(Candidate, CONFIGS if name == "schema" else SHELLS)
        return
    method, sections = _method_of(command, path, before)
    if method:
        yield from _settings(method, sections, before, word)
    key, equals, _ = word.partition("=")
    if not (equals and re.fullmatch(r"[\w.-]+", key)):
        yield from _files(word, (".yaml", ".yml") if method and not sections else ())


def _option_values(option: str, word: str) -> Iterator[Candidate]:
    yield from map(Candidate, OPTION_VALUES.get(option, ()))
    if option == "--format":
        from preftune.formats.registry import BY_NAME

        yield from map(Candidate, ["auto", *BY_NAME])
    elif option not in NO_VALUES and (option not in OPTION_VALUES or option in ("--reward", "--chat-template")):
        yield from _files(word)


def _method_of(command: Any, path: Sequence[str], before: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return whose config keys the command accepts, and which of its sections; no sections are all."""
    from preftune.config.commands import CONFIGS

    if path[-1] in CONFIGS:
        return path[-1], ()
    if path[-1] == "init":
        from preftune.cli.init import command_of

        goal = next((word for word in before if not word.startswith("-")), "")
        with suppress(StopIteration):
            return command_of(goal).split()[-1], ()
        return "", ()
    texts = [str(option.metavar or "") for option in command.params]
    if any("SECTION.KEY=VALUE" in text for text in texts) or path[-1] == "check":
        return "dpo", ("data", "model", "loss")
    return ("dpo", ("data",)) if any("data.KEY=VALUE" in text for text in texts) else ("", ())


def _settings(method: str, sections: Sequence[str], before: Sequence[str], word: str) -> Iterator[Candidate]:
    """Yield config keys up to the next dot, and the values of a whole key."""
    from preftune.config.json_schema import keys_of

    keys = {key: node for key, node in keys_of(method).items() if not sections or key.partition(".")[0] in sections}
    if "=" in word:
        yield from _values(keys, word)
        return
    own = _parameters_of_loss(before)
    for key, node in keys.items():
        if own is not None and key.startswith("loss.") and key[5:] not in ("name", *own):
            continue
        rest = key[len(word) :] if key.startswith(word) else ""
        inside, dot, _ = rest.partition(".")
        if dot:
            yield Candidate(f"{word}{inside}.", "section")
        elif key.startswith(word):
            yield Candidate(f"{key}=", _first_line(node.get("description")))


def _values(keys: Mapping[str, Any], word: str) -> Iterator[Candidate]:
    """Yield `key=value` for the values of a key that can be listed, and for files."""
    from preftune.config.json_schema import values_of

    name, _, value = word.partition("=")
    values = values_of(keys.get("loss.name" if name == "loss" else name, {}))
    if name == "data.format":
        from preftune.formats.registry import BY_NAME

        values = ["auto", *BY_NAME]
    yield from (Candidate(f"{name}={one}") for one in values)
    if PATH_KEYS.fullmatch(name):
        yield from (Candidate(f"{name}={file.text}", is_file=True) for file in _files(value))


def _parameters_of_loss(before: Sequence[str]) -> Sequence[str] | None:
    """Return the parameters of the loss that the line names, or None if it names none."""
    from preftune.config.loss_names import loss_signatures

    names = [word.partition("=")[2] for word in before if word.startswith(("loss=", "loss.name="))]
    losses = loss_signatures()
    return tuple(losses[names[-1]].parameters) if names and names[-1] in losses else None


def _files(word: str, suffixes: Sequence[str] = ()) -> Iterator[Candidate]:
    """Yield folders, with a slash at the end, and files that begin with `word`; only those with one of `suffixes`."""
    head, slash, tail = word.rpartition("/")
    folder = os.path.expanduser(head + slash) or "."
    with suppress(OSError):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if not entry.name.startswith(tail) or (entry.name.startswith(".") and not tail.startswith(".")):
                continue
            if entry.is_dir():
                yield Candidate(f"{head}{slash}{entry.name}/", is_file=True)
            elif not suffixes or entry.name.endswith(tuple(suffixes)):
                yield Candidate(f"{head}{slash}{entry.name}", is_file=True)
