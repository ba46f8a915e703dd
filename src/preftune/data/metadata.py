"""What a column that no parser reads can be, by its name and by its values."""

from __future__ import annotations

import re
from typing import Any

from preftune.data.values import Fields
from preftune.types import PreferenceGroup, Text

#: Columns that describe a row. Nobody trains on them.
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
        *("toxic_chat_tag", "redacted", "avatarurl", "avatar_url", "hashed_ip"),
    ]
)
PATTERNS = re.compile(
    r"(.+[_-](id|ids|idx|index|hash|sha256|model|models|source|sources|url|urls|date|time|at|type|lang|language|count|"
    r"tokens|length|score|scores|rating|ratings|policy|version|tag|tags|metadata|category|domain|dataset|split|license|"
    r"author|name|subset|level|rationale|rationales|moderation))|((is|has|num|n|meta)[_-].+)",
    re.IGNORECASE,
)
#: Columns of public data sets that hold text which is not part of the pair, by the column that marks the data set.
PUBLIC = (
    # argilla/distilabel-*: how the pair was made and judged
    ({"labelling_prompt"}, {"generations", "labelling_prompt", "raw_labelling_response", "original_chosen",
      "original_rejected"}),
    ({"generation_model"}, {"generations", "generation_prompt", "raw_generation_responses", "original_response",
      "conversation"}),
    ({"distilabel_metadata"}, {"generations"}),
    # openbmb/UltraFeedback: answers of TruthfulQA
    ({"completions", "correct_answers"}, {"correct_answers", "incorrect_answers"}),
    # nvidia/HelpSteer2 and HelpSteer3: what each annotator said
    ({"preference_strength"}, {"preference_statement", "preference_elaboration", "three_most_similar_preferences",
      "all_preferences_unprocessed"}),
    ({"overall_preference"}, {"individual_preference"}),
    # snorkelai: the pool that the pair was taken from
    ({"all_rm_scores"}, {"all_generated_responses"}),
    # alpaca: the row again, in the template of that project
    ({"instruction", "output"}, {"text"}),
    # openai/summarize_from_feedback
    ({"info", "summaries"}, {"extra", "worker", "batch"}),
    # HuggingFaceH4/stack-exchange-preferences
    ({"qid"}, {"metadata"}),
)  # fmt: skip
#: Columns that a model would have to see, and cannot.
UNUSABLE = {
    "tools": "describes tools for the chat template, which are not supported",
    "functions": "describes tools for the chat template, which are not supported",
    "documents": "holds documents for the chat template, which are not supported",
    "images": "holds images, and preftune trains on text",
    "image": "holds images, and preftune trains on text",
    "videos": "holds videos, and preftune trains on text",
    "video": "holds videos, and preftune trains on text",
    "audios": "holds audio, and preftune trains on text",
    "audio": "holds audio, and preftune trains on text",
    "chat_template_kwargs": "has template arguments for single rows; only data.chat_template_kwargs, one for all rows, "
    "is supported",
}
#: Columns that belong in front of a prompt or into it.
CONTEXT = {
    "system",
    "system_prompt",
    "system_message",
    "history",
    "context",
    "contexts",
    "input",
    "passage",
    "document",
    "persona",
    "background",
}
#: Columns that say something about the responses. A format that does not read them would train against them.
GRADES = {"weight", "probability", "margin", "label", "labels", "kto_tag", "winner", "preference", "choice", "ended"}
#: Ratings of single responses, without anything to compare them with.
RATINGS = {
    "helpfulness",
    "correctness",
    "coherence",
    "harmlessness",
    "honesty",
    "score",
    "reward",
    "rating",
    "overall_score",
}


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: null, empty text, an empty list or object, also as JSON text or of such values."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    return value is None or (items is not None and all(map(is_blank, items)))


def texts_in(value: Any) -> list[str]:
    """All texts in a value that are not blank, at any depth; of messages only what is said, not the role."""
    if isinstance(value, str):
        return [value] if value.strip() else []
    if isinstance(value, list | tuple):
        return [text for item in value for text in texts_in(item)]
    if isinstance(value, dict):
        return [
            text for key, item in value.items() if key not in ("role", "from", "speaker") for text in texts_in(item)
        ]
    return []


def is_metadata(name: str, row: Fields) -> bool:
    """Whether a column is known to describe its row, by its name and by the other columns of the row."""
    if name.lower() in NAMES or PATTERNS.fullmatch(name):
        return True
    return any(name in columns and marks <= row.keys() for marks, columns in PUBLIC)


def repeats(name: str, value: Any, said: set[str]) -> bool:
    """Whether a column only repeats what was read: each of its texts is one of `said`.

    A list of responses that holds those that were read is where they were taken from; a column `text` that holds all
    that was read is the row again in some template.
    """
    texts = {text.strip() for text in texts_in(value)}
    if texts <= said:
        return True
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return len(texts & said) > 1
    return name == "text" and isinstance(value, str) and all(text in value for text in said)


def said_in(groups: list[PreferenceGroup]) -> set[str]:
    """All texts of groups, without white space around them."""
    parts: list[Text] = [part for group in groups for part in (group.prompt, *group.responses)]
    texts: set[str] = set()
    for part in parts:
        texts |= {part.strip()} if isinstance(part, str) else {m.content.strip() for m in part}
    return texts - {""}
