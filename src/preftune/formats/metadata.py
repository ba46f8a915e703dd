"""What a column that no parser reads can be, by its name and by its values."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from preftune.formats.values import Fields, has_role, is_dialogue, peek
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
        *("toxic_chat_tag", "redacted", "avatarurl", "avatar_url", "hashed_ip", "header", "headers", "state"),
        *(
            "ability",
            "critique",
            "critiques",
            "quality",
            "intent",
            "comment",
            "comments",
            "gender",
            "temperature",
            "subreddit",
            "session",
            "ip",
            "region",
            "sampling_params",
        ),
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
#: Names that begin so describe a row if their text is a label.
LABELS = re.compile(r"(is|has|num|n|meta)[_-].+", re.IGNORECASE)
SIDE = re.compile(r"^(chosen|rejected)[_-]|[_-]([abjk01234]|chosen|rejected)$")
#: Columns of NAMES and PATTERNS that may hold sentences. The others hold labels; long text may belong to the prompt.
PROSE = re.compile(
    r"(.+[_-])?(rationales?|meta|metadata|annotations|moderation|headers?|comments?|reason|critiques?|feedback|configs?|"
    r"revision|flags)([_-].+)?|(quality|judge|annotator|labeler)[_-].+"
)
LONGEST = 15  # words of a label
#: Names of NAMES that may stand for a prompt, where no other column is one.
ASKS = frozenset({"task", "topic"})
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
    # openai/summarize_from_feedback
    ({"info", "summaries"}, {"extra", "worker", "batch"}),
    # HuggingFaceH4/stack-exchange-preferences
    ({"qid"}, {"metadata"}),
)  # fmt: skip
ALPACA = re.compile(r"### *Instruction|Below is an instruction")  # the row again, in the template of that project
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
GRADES = {"weight", "probability", "margin", "label", "labels", "kto_tag", "winner", "preference", "choice", "ended",
          "preference_strength", "overall_preference"}  # fmt: skip
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


#: Columns that say whether the one response of a row is good.
FLAGS = {
    *("desirable", "is_desirable", "liked", "thumbs_up", "upvoted", "good", "is_good", "correct", "is_correct"),
    *("accepted", "is_accepted", "preferred", "is_preferred", "passed", "approved"),
}
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?%?|true|false|nan|none|null|n/a|inf", re.IGNORECASE)
MEDIA = {"image", "images", "video", "videos", "audio", "audios"}
PLACES = {"url", "urls", "path", "paths", "file", "files", "bytes", "base64", "b64", "data"}


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


@lru_cache(maxsize=4096)
def _kind_by_name(name: str) -> str:
    """What a column of this name holds, if it describes its row: prose, a label, or a label of few words; else ""."""
    if name.lower() in ("task", "tasks"):  # a longer one is an instruction
        return "short"
    if SIDE.sub("", name.lower()) in NAMES or PATTERNS.fullmatch(name):
        return "prose" if PROSE.fullmatch(name.lower()) else "label"
    return "short" if LABELS.fullmatch(name) else ""


def is_metadata(name: str, row: Fields) -> bool:
    """Whether a column is known to describe its row, by its name and by the other columns of the row."""
    kind = _kind_by_name(name)
    if kind == "prose":
        return True
    value = peek(row, name)
    words = max((len(text.split()) for text in texts_in(value)), default=0) if kind else 0
    if kind and not has_role(value) and not is_dialogue(value) and words <= (LONGEST if kind == "label" else 3):
        return True
    if name == "text" and ALPACA.search(str(value)):
        return {"instruction", "output"} <= row.keys()
    return any(name in columns and marks <= row.keys() for marks, columns in PUBLIC)


def is_number(value: Any) -> bool:
    """Whether a value holds no words: numbers and true/false, also as the text of a CSV cell."""
    return all(NUMBER.fullmatch(text.strip()) for text in texts_in(value))


def may_ask(name: str, value: Any) -> bool:
    """Whether a column that is metadata by its name can be the prompt of a row that has no other."""
    return name.lower() in ASKS and any(len(text.split()) > 3 for text in texts_in(value))


def says_bad(name: str, value: Any) -> bool:
    """Whether a column says that the one response of its row is a bad one."""
    return name.lower() in FLAGS and str(value).strip().lower() in ("false", "0", "0.0", "-1", "-1.0")


@lru_cache(maxsize=4096)
def unusable(name: str) -> str:
    """Why the model would have to see a column of this name and cannot, or ""."""
    name = name.lower()
    first, *_, last = re.split(r"[^a-z0-9]+", f"{name}_{name}")
    return UNUSABLE.get(name) or (UNUSABLE.get(first, "") if last in PLACES and first in MEDIA else "")


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
    return name == "text" and isinstance(value, str) and all(line in value for text in said for line in _lines(text))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


def said_in(groups: list[PreferenceGroup]) -> set[str]:
    """All texts of groups, without white space around them."""
    parts: list[Text] = [part for group in groups for part in (group.prompt, *group.responses)]
    texts: set[str] = set()
    for part in parts:
        texts |= {part.strip()} if isinstance(part, str) else {m.content.strip() for m in part}
    return texts - {""}
