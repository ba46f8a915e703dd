"""`preftune completion`: scripts that complete preftune's commands in bash, zsh and fish.

The scripts pass the line up to the cursor to the hidden command `preftune complete-line`, which prints the candidates.
"""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from typing import Annotated

import typer

from preftune.errors import ConfigError, did_you_mean

BASH = """\
# Completion of preftune for bash. Load it with: source <(preftune completion bash)
_preftune_complete() {
    local line is_file=
    COMPREPLY=()
    while IFS= read -r line; do
        case "$line" in
            */) is_file=1; line="${line%/}" ;;
            "file "*) is_file=1; line="${line#file }" ;;
        esac
        COMPREPLY+=("$line")
    done < <(preftune complete-line bash "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
    if [ -n "$is_file" ]; then
        compopt -o filenames 2>/dev/null
    elif [ "${#COMPREPLY[@]}" -eq 1 ] && [[ "${COMPREPLY[0]}" == *[=.] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -F _preftune_complete preftune
"""
ZSH = """\
#compdef preftune
# Completion of preftune for zsh. Save it as _preftune in a folder of $fpath, or load it after compinit with:
#   source <(preftune completion zsh)
_preftune() {
    local line value
    while IFS= read -r line; do
        value="${line%%$'\\t'*}"
        case "$value" in
            */|*=|*.) compadd -Q -U -S '' -- "$value" ;;
            *) compadd -Q -U -- "$value" ;;
        esac
    done < <(preftune complete-line zsh "$LBUFFER" 2>/dev/null)
}
if [ "$funcstack[1]" = "_preftune" ]; then _preftune "$@"; else compdef _preftune preftune; fi
"""
FISH = """\
# Completion of preftune for fish. Save it as ~/.config/fish/completions/preftune.fish
complete -c preftune -f -a '(preftune complete-line fish (commandline -cp) 2>/dev/null)'
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.", metavar="SHELL")],
) -> None:
    """Print the completion script of a shell.

    It completes commands, options, config keys such as optim.lr, their values and files.

    bash: echo 'source <(preftune completion bash)' >> ~/.bashrc
    """
    if shell not in SCRIPTS:
        what = f"unknown shell {shell!r}; {did_you_mean(shell, SCRIPTS)}"
        raise ConfigError(what, where="preftune completion", fix=f"use one of {', '.join(SCRIPTS)}")
    print(SCRIPTS[shell], end="")


def complete_line(
    context: typer.Context,
    shell: Annotated[str, typer.Argument()],
    line: Annotated[str, typer.Argument()],
    breaks: Annotated[str, typer.Argument()] = "",
) -> None:
    """Print the candidates for the last word of a command line, one per line."""
    from preftune.cli.candidates import Candidate, candidates

    words = split(line)
    if not words:
        return
    cut = _replaced_from(words[-1], line, breaks) if shell == "bash" else 0

    def shown(candidate: Candidate) -> str:
        text = candidate.text[cut:]
        if shell == "bash":
            return f"file {text}" if candidate.is_file and not text.endswith("/") else text
        text = shlex.quote(text) if shell == "zsh" and candidate.is_file and not text.startswith("~") else text
        return f"{text}\t{candidate.help}" if candidate.help and shell == "fish" else text

    with suppress(BrokenPipeError):
        for candidate in candidates(context.find_root().command, words):
            print(shown(candidate))


def split(line: str) -> list[str]:
    """Return the words after the last `preftune` of a command line. The last one is to be completed, and may be ""."""
    for end in ("", "'", '"'):  # a quote that is still open
        with suppress(ValueError):
            words = shlex.split(line + end)
            break
    else:
        return []
    if not words or (not end and line[-1:].isspace() and not line.endswith("\\ ")):
        words.append("")
    places = [place for place, word in enumerate(words[:-1]) if os.path.basename(word) == "preftune"]
    return words[places[-1] + 1 :] if places else []


def _replaced_from(word: str, line: str, breaks: str) -> int:
    """Return where the part of a word begins that bash replaces: after the last = or :, if they break words."""
    if line.endswith(word) or not word:
        return max((word.rfind(mark) + 1 for mark in "=:" if mark in breaks), default=0)
    return 0  # the word is quoted
