"""Report all groups that the chat template cannot render, as bad rows in one error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from preftune.chat.lost_text import MissingText
from preftune.errors import DataError, ModelError
from preftune.formats.account import Account, format_origins

LEFT_OUT = "the chat template removes part of the response"
CHANGED = "the chat template writes an earlier turn of the response differently once later turns follow"
TOOLS_LEFT_OUT = "the chat template does not write the tools of the row"
NO_EXTENSION = "the rendered dialogue does not begin with the rendered prompt"
FIXES = {
    LEFT_OUT: "set data.thinking=keep to train on the reasoning in the data; set data.chat_template_kwargs if the "
    "template has an option for it; set a different data.chat_template; or accept the omission with "
    "data.allow_dropped_text=true",
    CHANGED: "set data.scored_turns=last to score the last turn only; or set a different data.chat_template",
    TOOLS_LEFT_OUT: "set a different data.chat_template; or accept the omission with data.allow_dropped_text=true, or "
    "leave the tools out with data.ignore=[tools]",
    NO_EXTENSION: "if the generation prompt opens <think>, set data.thinking=keep; if data.chat_template_kwargs turns "
    "reasoning off, remove it from the responses; otherwise set a different data.chat_template",
}
FIX_ROWS = (
    "set data.bad_rows=drop to drop these rows, set a different data.chat_template, or change the messages "
    "(for a system message: set data.system_message=merge to move its text into the user turn)"
)
LISTED = 10  # rows that an error lists


@dataclass(frozen=True, slots=True)
class Fault:
    """The reason why a group cannot be rendered. `missing` is a text of a message that `rendered` does not contain."""

    what: str
    detail: str = ""
    missing: MissingText | None = None
    rendered: str = ""

    @property
    def reason(self) -> str:
        """The fault with an example."""
        detail = self.missing.describe(self.rendered) if self.missing else self.detail
        return f"{self.what}: {detail}" if detail else self.what


def first_difference(prompt: str, text: str) -> str:
    """Return where a rendered prompt and a rendered dialogue differ first."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), min(len(prompt), len(text)))
    return (
        f"after {prompt[max(0, same - 20) : same]!r}, the prompt has {prompt[same : same + 30]!r}, "
        f"but the dialogue has {text[same : same + 30]!r}"
    )


def report_faults(
    faults: Sequence[tuple[str, Fault]], groups: int, bad_rows: Literal["error", "drop"], account: Account
) -> dict[str, str]:
    """Return the reason for each bad row by its origin; rows with the same fault share the example of the first one.

    Raises one DataError for all bad rows unless `bad_rows` is "drop". Raises ModelError if for every one of the
    `groups`, the rendered dialogue does not begin with the rendered prompt.
    """
    if not faults:
        return {}
    origin, first = faults[0]
    if len(faults) == groups and all(fault.what == NO_EXTENSION for _, fault in faults):
        raise ModelError(
            first.reason,
            where=f"chat template, {origin}",
            why="the model would be trained on a different prompt than the one used for generation",
            fix=FIXES[NO_EXTENSION],
        )
    reasons: dict[str, str] = {}
    origins: dict[str, list[str]] = {}
    for origin, fault in faults:
        reason = reasons.setdefault(fault.what, fault.reason)
        if origin not in origins.setdefault(reason, []):
            origins[reason].append(origin)
    fixes = list(dict.fromkeys(FIXES.get(fault.what, FIX_ROWS) for _, fault in faults))
    if bad_rows == "error":
        raise _error(origins, fixes, account)
    account.remedies.extend(fix for fix in fixes if fix != FIX_ROWS and fix not in account.remedies)
    return {origin: reason for reason, rows in origins.items() for origin in rows}


def _error(origins: dict[str, list[str]], fixes: list[str], account: Account) -> DataError:
    if sum(map(len, origins.values())) == 1:
        ((reason, [origin]),) = origins.items()
        return DataError(reason, where=origin, fix="; or ".join(dict.fromkeys([*fixes, FIX_ROWS])))
    counted = [f"{reason} ({len(rows)} row{'s' * (len(rows) > 1)})" for reason, rows in origins.items()]
    lines = [format_origins(rows, account.source, LISTED) for rows in origins.values()]
    return DataError("; ".join(counted), where=account.source, why="; ".join(lines), fix="; or ".join(fixes))
