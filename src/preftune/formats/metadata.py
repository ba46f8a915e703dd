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
    r"comment|comments|reason|reasons|config|configs|state|status|guard|difficulty|critique|critiques|feedback)"
    r"([_-][abjk01234])?)|((quality|judge|annotator|labeler)[_-].+)",
    re.IGNORECASE,
)
#: Columns with these prefixes describe a row if their text is a label.
LABEL_PREFIXES = re.compile(r"(is|has|num|n|meta)[_-].+", re.IGNORECASE)
SIDE_AFFIX = re.compile(r"^(chosen|rejected)[_-]|[_-]([abjk01234]|chosen|rejected)$")
#: Columns of NAMES and PATTERNS that may contain sentences. In the others, long text may belong to the prompt.
PROSE = re.compile(
    r"(.+[_-])?(rationales?|meta|metadata|annotations|moderation|headers?|comments?|reasons?|critiques?|feedback|configs?|"
    r"revision|flags)([_-].+)?|(quality|judge|annotator|labeler)[_-].+"
)
MAX_LABEL_WORDS, SHORT = 15, 3
#: Columns of NAMES that may be the prompt if no other column is.
POSSIBLE_PROMPTS = frozenset({"task", "topic", "source", "src", "origin"})
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
    # openai/webgpt_comparisons: the pages that the answers quote
    ({"quotes_0", "quotes_1"}, {"quotes_0", "quotes_1", "tokens_0", "tokens_1"}),
    # prometheus-eval: `instruction` contains these texts
    ({"orig_instruction", "orig_criteria"}, {"orig_instruction", "orig_criteria", "orig_response", "orig_response_A",
      "orig_response_B", "orig_reference_answer", "orig_preference", "orig_feedback", "orig_feedback_A",
      "orig_feedback_B", *(f"orig_score{i}_description" for i in range(1, 6))}),
    # lmarena-ai: the two conversations together
    ({"conversation_a", "conversation_b"}, {"full_conversation", "conv_metadata", "tokens", "evaluation_order"}),
    # argilla/OpenHermesPreferences: the responses from which the pair was selected
    ({"candidates_completions"}, {"candidates_completions", "candidate_policies", "rank_str"}),
    # Magpie-Align: what a model says about the instruction
    ({"gen_input_configs"}, {"intent", "knowledge", "quality_explanation", "task_category"}),
    # Label Studio: the envelope of a task
    ({"drafts", "predictions"}, {"file_upload", "drafts", "predictions", "meta"}),
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
    *("overall_score", "stars", "star_rating", "user_rating", "human_rating", "response_rating", "grade", "upvotes"),
}
#: Columns that mark the only response of a row as good or bad.
FLAGS = {
    *("desirable", "is_desirable", "liked", "thumbs_up", "upvoted", "good", "is_good", "correct", "is_correct"),
    *("accepted", "is_accepted", "preferred", "is_preferred", "passed", "approved", "is_safe", "safe", "is_helpful"),
    *("is_response_safe", "response_safe", "is_chosen", "is_valid"),
}
#: Columns that mark the only response of a row as bad if they are true.
BAD_FLAGS = {
    *("bad", "is_bad", "unsafe", "is_unsafe", "incorrect", "is_incorrect", "disliked", "thumbs_down", "downvoted"),
    *("is_rejected", "rejected_by_human"),
}
#: Words in names of columns that grade the only response, and the grades that are bad.
GRADES = {"feedback", "rating", "quality", "status", "vote", "reaction", "verdict", "judgement", "judgment", "review"}
BAD_WORDS = {
    *("bad", "undesirable", "dislike", "disliked", "rejected", "thumbs_down", "thumbs-down", "thumbs down", "downvote"),
    *("downvoted", "negative", "poor", "incorrect", "unsafe"),
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

    "prose" is any text, "label" at most MAX_LABEL_WORDS words and "short" at most SHORT words.
    """
    name = re.sub("([a-z])([A-Z])", r"\1_\2", name)  # createdAt
    if name.lower() in ("task", "tasks", "user"):  # longer text is an instruction
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
    if (
        kind
        and not has_role(value)
        and not is_dialogue(value)
        and words <= (MAX_LABEL_WORDS if kind == "label" else SHORT)
    ):
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
    word = str(value).strip().lower()
    is_false, is_true = word in ("false", "0", "0.0", "-1", "-1.0", "no"), word in ("true", "1", "1.0", "yes")
    if word in BAD_WORDS and GRADES & set(re.split(r"[^a-z0-9]+", name.lower())):
        return True
    return (name.lower() in FLAGS and is_false) or (name.lower() in BAD_FLAGS and is_true)


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
