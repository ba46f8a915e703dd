"""Classify columns that no parser reads, by their names and values."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from preftune.formats.values import Fields, has_role, is_dialogue, peek
from preftune.types import PreferenceGroup, Text

#: Columns that describe a row and are not used for training.
NAMES = frozenset(
    [
        *("id", "ids", "idx", "index", "uid", "uuid", "guid", "hash", "md5", "sha", "sha256", "key"),
        *("source", "sources", "src", "origin", "dataset", "dataset_name", "datasource", "data_source"),
        *("subset", "split", "config", "model", "models", "model_a", "model_b", "chosen-model"),
        *("rejected-model", "generator", "generators", "generation_model", "generation_models", "judge"),
        *("judges", "annotator", "annotators", "worker", "workers", "category", "categories", "subcategory"),
        *("topic", "topics", "domain", "task", "tasks", "type", "kind", "tag", "tags", "lang", "language"),
        *("languages", "locale", "country", "date", "datetime", "time", "timestamp", "tstamp", "created"),
        *("created_at", "updated_at", "url", "urls", "link", "links", "license", "licence", "author"),
        *("authors", "username", "version", "revision", "batch", "file", "filename", "path", "meta"),
        *("metadata", "difficulty", "level", "status", "toxicity", "flags", "turn", "turns", "order"),
        *("rationale", "rationales", "rating", "ratings", "annotations", "openai_moderation"),
        *("toxic_chat_tag", "redacted", "avatarurl", "avatar_url", "hashed_ip", "header", "headers", "state"),
        *("ability", "critique", "critiques", "quality", "intent", "comment", "comments", "gender", "temperature"),
        *("subreddit", "session", "ip", "region", "sampling_params"),
    ]
)
PATTERNS = re.compile(
    r"(.+[_-](id|ids|idx|index|uuid|hash|sha256|model|models|source|sources|url|urls|date|time|at|type|lang|language|"
    r"count|tokens|length|score|scores|rating|ratings|policy|version|tag|tags|metadata|category|domain|dataset|split|"
    r"license|author|name|subset|level|rationale|rationales|moderation|generator|annotator|judge|provider|quality|"
    r"comment|comments|reason|config|configs|state|status|guard|difficulty|critique|critiques|feedback)"
    r"([_-][abjk01234])?)|((quality|judge|annotator|labeler)[_-].+)",
    re.IGNORECASE,
)
#: Columns with these prefixes describe a row if their text is a label.
LABEL_PREFIXES = re.compile(r"(is|has|num|n|meta)[_-].+", re.IGNORECASE)
SIDE_AFFIX = re.compile(r"^(chosen|rejected)[_-]|[_-]([abjk01234]|chosen|rejected)$")
#: Columns of NAMES and PATTERNS that may contain sentences. In the others, long text may belong to the prompt.
PROSE = re.compile(
    r"(.+[_-])?(rationales?|meta|metadata|annotations|moderation|headers?|comments?|reason|critiques?|feedback|configs?|"
    r"revision|flags)([_-].+)?|(quality|judge|annotator|labeler)[_-].+"
)
MAX_LABEL_WORDS = 15
#: Columns of NAMES that may be the prompt if no other column is.
POSSIBLE_PROMPTS = frozenset({"task", "topic"})
#: Columns of public data sets with text that is not part of the pair, after the columns that identify the data set.
PUBLIC = (
    # argilla/distilabel-*: how the pair was made and judged
    ({"labelling_prompt"}, {"generations", "labelling_prompt", "raw_labelling_response", "original_chosen",
      "original_rejected"}),
    ({"generation_model"}, {"generations", "generation_prompt", "raw_generation_responses", "original_response",
      "conversation"}),
    ({"distilabel_metadata"}, {"generations"}),
    # openbmb/UltraFeedback: answers from TruthfulQA
    ({"completions", "correct_answers"}, {"correct_answers", "incorrect_answers"}),
    # nvidia/HelpSteer2 and HelpSteer3: the opinion of each annotator
    ({"preference_strength"}, {"preference_statement", "preference_elaboration", "three_most_similar_preferences",
      "all_preferences_unprocessed"}),
    ({"overall_preference"}, {"individual_preference"}),
    # snorkelai: the responses from which the pair was selected
    ({"all_rm_scores"}, {"all_generated_responses"}),
    # openai/summarize_from_feedback
    ({"info", "summaries"}, {"extra", "worker", "batch"}),
    # HuggingFaceH4/stack-exchange-preferences
    ({"qid"}, {"metadata"}),
)  # fmt: skip
ALPACA = re.compile(r"### *Instruction|Below is an instruction")  # `text` repeats the row in Alpaca's template
#: Columns that the model would have to see, and why preftune does not support them.
UNUSABLE = {
    "documents": "contains documents for the chat template, which are not supported",
    **dict.fromkeys(("image", "images"), "contains images, but preftune trains on text only"),
    **dict.fromkeys(("video", "videos"), "contains videos, but preftune trains on text only"),
    **dict.fromkeys(("audio", "audios"), "contains audio, but preftune trains on text only"),
    "chat_template_kwargs": "has template arguments for single rows, which are not supported; "
    "data.chat_template_kwargs sets them for all rows",
}
#: Columns that belong to the prompt or precede it.
CONTEXT = {
    *("system", "system_prompt", "system_message", "history", "context", "contexts", "input", "passage", "document"),
    *("persona", "background"),
}
#: Columns that grade the responses. A format that ignores them could train in the wrong direction.
LABEL_COLUMNS = {"weight", "probability", "margin", "label", "labels", "kto_tag", "winner", "preference",
    "choice", "ended",
          "preference_strength", "overall_preference"}  # fmt: skip
#: Ratings of single responses.
RATINGS = {
    *("helpfulness", "correctness", "coherence", "harmlessness", "honesty", "score", "reward", "rating"),
    "overall_score",
}
#: Columns that mark the only response of a row as good or bad.
FLAGS = {
    *("desirable", "is_desirable", "liked", "thumbs_up", "upvoted", "good", "is_good", "correct", "is_correct"),
    *("accepted", "is_accepted", "preferred", "is_preferred", "passed", "approved"),
}
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?%?|true|false|nan|none|null|n/a|inf", re.IGNORECASE)
MEDIA = {"image", "images", "video", "videos", "audio", "audios"}
FILE_WORDS = {"url", "urls", "path", "paths", "file", "files", "bytes", "base64", "b64", "data"}


def texts_in(value: Any) -> list[str]:
    """Return all non-blank texts in a value, at any depth, without the roles of messages."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_in(item)]
    if isinstance(value, dict):
        return [
            text for key, item in value.items() if key not in ("role", "from", "speaker") for text in texts_in(item)
        ]
    return []


@lru_cache(maxsize=4096)
def _kind_by_name(name: str) -> str:
    """Return what a column with this name contains if it describes its row, else "".

    "prose" is any text, "label" at most MAX_LABEL_WORDS words and "short" at most 3 words.
    """
    if name.lower() in ("task", "tasks"):  # longer text is an instruction
        return "short"
    if SIDE_AFFIX.sub("", name.lower()) in NAMES or PATTERNS.fullmatch(name):
        return "prose" if PROSE.fullmatch(name.lower()) else "label"
    return "short" if LABEL_PREFIXES.fullmatch(name) else ""


def is_metadata(name: str, row: Fields) -> bool:
    """Return whether a column describes its row, judged by its name, its value and the other columns of the row."""
    kind = _kind_by_name(name)
    if kind == "prose":
        return True
    value = peek(row, name)
    words = max((len(text.split()) for text in texts_in(value)), default=0) if kind else 0
    if kind and not has_role(value) and not is_dialogue(value) and words <= (MAX_LABEL_WORDS if kind == "label" else 3):
        return True
    if name == "text" and ALPACA.search(str(value)):
        return {"instruction", "output"} <= row.keys()
    return any(name in columns and marks <= row.keys() for marks, columns in PUBLIC)


def is_number(value: Any) -> bool:
    """Return whether a value contains no words, only numbers and true/false, possibly as the text of a CSV cell."""
    return all(NUMBER.fullmatch(text.strip()) for text in texts_in(value))


def can_be_prompt(name: str, value: Any) -> bool:
    """Return whether a column with a metadata name can be the prompt of a row that has no other prompt."""
    return name.lower() in POSSIBLE_PROMPTS and any(len(text.split()) > 3 for text in texts_in(value))


def marks_bad(name: str, value: Any) -> bool:
    """Return whether a column marks the only response of its row as bad."""
    return name.lower() in FLAGS and str(value).strip().lower() in ("false", "0", "0.0", "-1", "-1.0")


@lru_cache(maxsize=4096)
def why_unusable(name: str) -> str:
    """Say why preftune does not support a column that the model would have to see, or return ""."""
    name = name.lower()
    first, *_, last = re.split(r"[^a-z0-9]+", f"{name}_{name}")
    return UNUSABLE.get(name) or (UNUSABLE.get(first, "") if last in FILE_WORDS and first in MEDIA else "")


def only_repeats(name: str, value: Any, read_texts: set[str]) -> bool:
    """Return whether a column repeats `read_texts`: all its texts are among them, or one of two special cases applies.

    A list with at least two of `read_texts` is the list from which the responses were selected. A column `text` with
    every line of `read_texts` is the row in some template.
    """
    texts = {text.strip() for text in texts_in(value)}
    if texts <= read_texts:
        return True
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return len(texts & read_texts) > 1
    lines = [line.strip() for text in read_texts for line in text.splitlines()]
    return name == "text" and isinstance(value, str) and all(line in value for line in lines)


def texts_of(groups: list[PreferenceGroup]) -> set[str]:
    """Return all texts of groups, stripped of surrounding white space."""
    parts: list[Text] = [part for group in groups for part in (group.prompt, *group.responses)]
    texts: set[str] = set()
    for part in parts:
        texts |= {part.strip()} if isinstance(part, str) else {m.content.strip() for m in part}
    return texts - {""}
