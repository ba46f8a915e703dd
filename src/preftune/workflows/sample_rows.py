"""Read the files that `preftune sample` has written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preftune.errors import RunError
from preftune.files import digest, read_sealed

Key = tuple[str, int]  # hash of a prompt, and index of one of its responses


@dataclass(frozen=True, slots=True)
class Response:
    """One response: its text, whether it ended before the token limit, and its number of tokens."""

    text: str
    ended: bool
    tokens: int


def read_out(out: Path) -> dict[Key, Response]:
    """Return the responses in an existing `out`."""
    responses = {}
    for number, line in enumerate(out.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
            key = hashlib.sha256(json.dumps(row["prompt"]).encode()).hexdigest()
            for k, fields in enumerate(zip(row["responses"], row["ended"], row["tokens"], strict=True)):
                responses[key, k] = Response(*fields)
        except (ValueError, LookupError, TypeError) as error:
            fix = "delete the file, or choose a different --out"
            raise RunError(f"not a line of samples: {error}", where=f"{out}:{number}", fix=fix) from error
    return responses


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of <out>.meta.json; empty without one. Raises RunError if it is damaged."""
    try:
        return read_sealed(path)
    except OSError:
        return {}
    except ValueError as error:
        fix = "restore the file, or choose a different --out"
        raise RunError(f"the file is damaged: {error}", where=str(path), fix=fix) from error


def require_unchanged(out: Path, meta: dict[str, Any]) -> None:
    """Raise RunError if a file of samples is not the one that the command has written, or was about to write."""
    hashes = {meta.get("content"), meta.get("next")} - {None}
    if not hashes or digest(out) in hashes:
        return
    raise RunError(
        "the samples were changed or damaged after they had been written",
        where=str(out),
        why="a command that continues with them would use wrong responses",
        fix=f"restore the file, choose a different --out, or delete it and {out.name}.meta.json to sample again",
    )
