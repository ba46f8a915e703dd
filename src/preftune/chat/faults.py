"""Groups that the chat template cannot render: bad rows, found all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from preftune.chat.dropped import LeftOut
from preftune.errors import DataError, ModelError
from preftune.formats.account import Account, format_origins

LEFT_OUT = "the chat template leaves out part of the response"
NO_EXTENSION = "rendering with the response does not extend the rendering of the prompt"
FIXES = {
    LEFT_OUT: "set data.thinking=keep to train on reasoning as it is in the data, data.chat_template_kwargs if the "
    "template has a switch for it, another data.chat_template, or data.allow_dropped_text=true to accept the loss",
    NO_EXTENSION: "use a template whose rendering with the answer begins with its rendering of the prompt; if the "
    "generation prompt opens <think>, set data.thinking=keep; if data.chat_template_kwargs turns reasoning off, "
    "remove it from the responses",
}
ROW = (
    "set data.bad_rows=drop to leave these rows out, use another data.chat_template, or change the messages "
    "(for a system message: move its text into the user turn)"
)
LISTED = 10


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a group cannot be rendered. `lacking` is the text of a message that `rendered` does not have."""

    what: str
    detail: str = ""
    lacking: LeftOut | None = None
    rendered: str = ""

    @property
    def reason(self) -> str:
        """The fault with its example."""
        detail = self.lacking.shown(self.rendered) if self.lacking else self.detail
        return f"{self.what}: {detail}" if detail else self.what


def settle(
    faults: Sequence[tuple[str, Fault]], groups: int, bad_rows: Literal["error", "drop"], account: Account
) -> dict[str, str]:
    """The reason of each bad row's origin, for the account; rows with the same fault share the first one's example.

    Raises DataError for all of them together unless `bad_rows` is "drop", and ModelError where the template renders
    none of the `groups` as an extension of its prompt.
    """
    if not faults:
        return {}
    origin, first = faults[0]
    if len(faults) == groups and all(fault.what == NO_EXTENSION for _, fault in faults):
        raise ModelError(
            first.reason,
            where=f"chat template, {origin}",
            why="the model would be trained on another prompt than it is asked with",
            fix=FIXES[NO_EXTENSION],
        )
    reasons: dict[str, str] = {}
    origins: dict[str, list[str]] = {}
    for origin, fault in faults:
        reason = reasons.setdefault(fault.what, fault.reason)
        if origin not in origins.setdefault(reason, []):
            origins[reason].append(origin)
    fixes = list(dict.fromkeys(FIXES.get(fault.what, ROW) for _, fault in faults))
    if bad_rows == "error":
        raise _error(origins, fixes, account)
    account.remedies.extend(fix for fix in fixes if fix != ROW and fix not in account.remedies)
    return {origin: reason for reason, rows in origins.items() for origin in rows}


def _error(origins: dict[str, list[str]], fixes: list[str], account: Account) -> DataError:
    if sum(map(len, origins.values())) == 1:
        ((reason, [origin]),) = origins.items()
        return DataError(reason, where=origin, fix="; or ".join(dict.fromkeys([*fixes, ROW])))
    counted = [f"{reason} ({len(rows)} row{'s' * (len(rows) > 1)})" for reason, rows in origins.items()]
    lines = [format_origins(rows, account.source, LISTED) for rows in origins.values()]
    return DataError("; ".join(counted), where=account.source, why="; ".join(lines), fix="; or ".join(fixes))
