"""Detectors for a single response. Each returns whether the response has the defect."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from preftune.findings.text import normalised

MIN_ECHO = 15  # characters of a prompt that is looked for in the response
LOOP_WORDS, LOOP_REPEATS, LONGEST_PERIOD = 20, 5, 64
LOOP_LETTERS = 60

_NO = (
    r"(?:can(?:no|')?t|can not|won't|will not|am (?:not able|unable)|'m (?:not able|unable)|must decline|"
    r"have to decline)"
)
_HELP = (
    r"(?:assist|help|comply|fulfil|fulfill|provide|answer|do that|do this|create|generate|write|support|engage|"
    r"discuss|participate|give|offer|share|continue|process|complete|respond|satisfy|carry out|with that|with this)"
)
_REFUSAL = re.compile(
    rf"(?:(?:i'?m|i am|we'?re|we are)?\s*(?:very |so |really )?sorry,?\s*(?:but |however,? )?"
    rf"(?:as an? [^.,]{{0,60}},? )?"
    rf"(?:i|we)\s?{_NO}|(?:i )?apologi[sz]e,?\s*(?:but |however,? )?(?:i|we)\s?{_NO}"
    rf"|(?:unfortunately,? )?(?:as an? (?:\w+ )?(?:ai|artificial|language|large|assistant|chatbot)[^.,]{{0,60}},? )"
    rf"(?:i|we)\s?(?:{_NO}|don't|do not|am not)"
    rf"|(?:unfortunately,? |no,? |sorry,? )?i\s?{_NO} (?:to |be able to )?{_HELP}"
    rf"|i(?:'m| am) not (?:comfortable|willing|able) "
    rf"|i must (?:decline|refuse))"
)
_TOKEN = re.compile(
    r"<\|[A-Za-z][\w ]{1,40}\|>|<｜[^｜\n]{1,40}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|"
    r"\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS)\]|<\|(?:START|END)_[A-Z_]+\|>|<(?:bos|eos|pad)>|\[(?:BOS|EOS|PAD)\]"
)
_ROLE = re.compile(
    r"^[ \t]*(?:(?:Human|User|Assistant|USER|ASSISTANT|HUMAN):(?!:)|"
    r"#{2,4} ?(?:Instruction|Response|Human|Assistant|User|System)s?:)",
    re.M,
)
_HTML = re.compile(
    r"</?(?:p|br|div|span|font|center|ul|ol|li|table|tr|td|th|h[1-6]|strong|em|blockquote|a|img|pre|code)"
    r"(?:\s[^<>\n]{0,300})?\s*/?>|&(?:nbsp|amp|lt|gt|quot|apos|#\d{2,5}|#x[0-9a-fA-F]{2,4});",
    re.I,
)
_ASKS_FOR_HTML = re.compile(r"html|xml|<[a-z/!][^<>]*>|web ?(?:page|site)|markup|svg|jsx|react|css", re.I)


def is_refusal(text: str) -> bool:
    """Return whether the response begins as a refusal in English, such as "I'm sorry, but I can't help with that"."""
    begin = text[:400].replace("’", "'").replace("‘", "'").strip().lower()
    return bool(_REFUSAL.match(" ".join(begin.split())))


def has_template_token(text: str) -> bool:
    """Return whether the text has a control token of a chat template: <|im_start|>, [INST], an unpaired </s>, ..."""
    lower = text.lower()
    return bool(_TOKEN.search(text)) or lower.count("<s>") != lower.count("</s>")


def has_role_marker(prose: str) -> bool:
    """Return whether a line of a response without its code begins with a role: "Human:", "User:", "### Response:"."""
    return bool(_ROLE.search(prose))


def has_html(prose: str, prompt: str) -> bool:
    """Return whether a response without its code has HTML tags or entities, unless the prompt asks about them."""
    return bool(_HTML.search(prose)) and not _ASKS_FOR_HTML.search(prompt)


def repeats_prompt(text: str, prompt: str) -> bool:
    """Return whether the response begins with the whole prompt. Case and white space do not count."""
    key = normalised(prompt)
    return len(key) >= MIN_ECHO and normalised(text[: 4 * len(prompt) + 64]).lstrip("> \"'*“«").startswith(key)


# The characters that the bytes of UTF-8 become if they are read as Windows-1252 or Latin-1.
_MIDDLE = "".join(
    sorted({chr(b) for b in range(0x80, 0xC0)} | set(bytes(range(0x80, 0xC0)).decode("cp1252", "ignore")))
)
_QUOTES = "»”’…›—–“‘‹«„"  # these also follow an accented letter in correct text: «CAFÉ»
_OTHER = "".join(c for c in _MIDDLE if c not in _QUOTES)


def _one_of(characters: str) -> str:
    return "[" + "".join(map(re.escape, characters)) + "]"


_SEQUENCE = rf"(?:[Â-ß]{_one_of(_MIDDLE)}|[à-ï]{_one_of(_MIDDLE)}{{2}}|[ð-ô]{_one_of(_MIDDLE)}{{3}})"
_MOJIBAKE = re.compile(
    rf"[ÂÃ]{_one_of(_OTHER)}|â€|ðŸ|ï»¿|ï¿½|â{_one_of(_OTHER)}{_one_of(_MIDDLE)}|"
    rf"[Ð-Ñ]{_one_of(_OTHER)}[Ð-Ñ]{_one_of(_MIDDLE)}|{_SEQUENCE}{{3,}}"
)
_BROKEN = re.compile("[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f\ufffd\ud800-\udfff\ufffe\uffff]")


def has_encoding_damage(text: str) -> bool:
    """Return whether the text has U+FFFD, a lone surrogate, a control character, or UTF-8 read as Windows-1252."""
    return (not text.isascii() and bool(_MOJIBAKE.search(text))) or bool(_BROKEN.search(text))


def has_loop(prose: str) -> bool:
    """Return whether a response without its code repeats itself without end.

    That is a sequence of at most 64 words that is repeated at least 5 times in direct succession, over at least 20
    words; or, inside one long word, of at most 64 characters over at least 60 characters. The time is linear in the
    length. Numbers alone do not count.
    """
    words = re.findall(r"\w+", prose.casefold())
    return _has_period(words, LOOP_WORDS) or any(
        len(word) >= LOOP_LETTERS and _has_period(list(word), LOOP_LETTERS) for word in words
    )


def _has_period(items: list[str], shortest: int) -> bool:
    """Return whether the items have a part of at least `shortest` items that repeats a unit LOOP_REPEATS times."""
    if len(items) < shortest:
        return False
    triples = list(zip(items, items[1:], items[2:], strict=False))
    # of the n - 2 triples of such a part, at most n / LOOP_REPEATS are distinct
    if len(triples) - len(set(triples)) < shortest - 2 - shortest // LOOP_REPEATS:
        return False
    number: dict[str, int] = {}
    ids = np.array([number.setdefault(item, len(number)) for item in items])
    for period in range(1, min(LONGEST_PERIOD, len(items) // LOOP_REPEATS) + 1):
        needed = max(shortest, LOOP_REPEATS * period) - period
        breaks = np.flatnonzero(np.concatenate(([True], ids[period:] != ids[:-period], [True])))
        at = int(np.argmax(np.diff(breaks)))
        start, length = int(breaks[at]), int(breaks[at + 1] - breaks[at] - 1)
        if length >= needed and _has_letter(items[start : start + period]):
            return True
    return False


def _has_letter(items: Iterable[str]) -> bool:
    return any(character.isalpha() for item in items for character in item)
