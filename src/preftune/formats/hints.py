"""Words in column names that suggest what a column contains. They are used for suggestions only, never for reading."""

from __future__ import annotations

import re

from preftune.formats.names import PROMPT_WORDS, words_in

#: English words. A column name has one of them as a whole word.
WORDS = {
    "prompt": PROMPT_WORDS,
    "chosen": {
        *("chosen", "choosen", "good", "better", "best", "preferred", "win", "winner", "accepted", "positive", "pos"),
        *("positives", "safe", "winning", "improved", "corrected", "revised", "edited"),
    },
    "rejected": {
        *("rejected", "reject", "bad", "worse", "worst", "dispreferred", "lose", "loser", "negative", "neg"),
        *("negatives",),
        *("unsafe", "losing", "other", "alternative", "original", "draft"),
    },
    "completion": {
        *("completion", "response", "answer", "solution", "reply", "summary", "assistant", "target", "output", "bot"),
    },
    "label": {
        "label",
        "feedback",
        "thumbs",
        "thumb",
        "liked",
        "vote",
        "rating",
        "reaction",
        "verdict",
        "desirable",
        "scores",
    },
}
#: Words and beginnings of words in other languages: German, French, Spanish, Portuguese, Italian, Russian, ...
FOREIGN = {
    "prompt": "frage aufgabe eingabe anfrage requête pregunta consulta pergunta domanda вопрос "
    "质问 質問 问题 問題 提示 指令 질문",
    "chosen": "gut besser beste bevorzugt gewählt préféré choisi meilleur bonne bueno buena mejor elegid preferid "
    "melhor escolhid migliore scelt хорош лучш выбран 良い 好 优 選択 选中 좋은 선택",
    "rejected": "schlecht abgelehnt verworfen rejeté mauvais pire malo mala peor rechazad pior rejeitad peggior "
    "rifiutat плох худш отклон 悪い 坏 差 拒 却下 나쁜 거부",
    "completion": "antwort réponse respuesta resposta risposta ответ 回答 答案 답변 応答",
    "label": "bewertung avis valoración avaliação оценка 評価 评价 평가",
}
LATER = {"second", "third", "fourth", "2nd", "3rd", "4th"}  # "second best" is not the best


def suggests(role: str, column: str) -> bool:
    """Return whether the name of a column suggests that it has the role "prompt", "chosen", "rejected", ..."""
    words = set(words_in(column))
    if words & WORDS[role]:
        return not words & LATER
    lower = column.lower()
    if lower.isascii() and role not in FOREIGN:
        return False
    starts = [word for word in FOREIGN[role].split() if word.isascii() or not _is_east_asian(word)]
    foreign = [part for part in re.split(r"[\W_]+", lower) if part]
    inside = [word for word in FOREIGN[role].split() if _is_east_asian(word)]
    return any(part.startswith(word) for part in foreign for word in starts) or any(word in lower for word in inside)


def _is_east_asian(word: str) -> bool:
    """Return whether a word is in a script that is written without spaces."""
    return ord(word[0]) > 0x2E00
