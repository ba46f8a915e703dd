"""Synthetic product reviews whose true reward is known.

A grammar generates prompts ("my review of the harbour hotel :") and reviews of one to three sentences, which are
positive, negative or neutral, with negation ("not good"), emphasis ("really awful") and contrast ("... but ...").
The true reward of any text, including the output of a model, is its sentiment in (-1, 1).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

THINGS = {
    "film": ("the lighthouse film", "the space film", "the quiet film", "the new comedy", "the winter drama"),
    "hotel": ("the harbour hotel", "the hill hotel", "the old inn", "the station hotel", "the garden hostel"),
    "meal": ("the fish soup", "the lemon cake", "the noodle bowl", "the lamb stew", "the breakfast plate"),
    "tool": ("the red kettle", "the cordless drill", "the pocket radio", "the desk lamp", "the garden hose"),
    "book": ("the island novel", "the bird guide", "the long memoir", "the crime story", "the cook book"),
}
ASPECTS = {
    "film": ("plot", "acting", "music", "ending", "dialogue", "camera work"),
    "hotel": ("room", "staff", "view", "bed", "breakfast", "location"),
    "meal": ("taste", "portion", "sauce", "service", "smell", "price"),
    "tool": ("handle", "battery", "switch", "noise", "finish", "manual"),
    "book": ("plot", "style", "cover", "ending", "first chapter", "print"),
}
ADJECTIVES = {
    "wonderful": 2.0, "superb": 2.0, "lovely": 1.5, "great": 1.5, "good": 1.0, "pleasant": 1.0, "solid": 0.7,
    "decent": 0.5, "fair": 0.2, "plain": -0.2, "odd": -0.4, "dull": -0.9, "weak": -1.0, "bad": -1.2,
    "poor": -1.3, "dreadful": -1.8, "awful": -2.0, "horrible": -2.0,
}  # fmt: skip
VERBS = {
    "loved": 1.8, "adored": 2.0, "enjoyed": 1.3, "liked": 0.9, "noticed": 0.0, "expected more from": -0.9,
    "disliked": -1.2, "regretted": -1.4, "hated": -2.0,
}  # fmt: skip
VERDICTS = {
    "worth every penny": 1.6, "i would buy it again": 1.3, "recommended": 1.2, "it does the job": 0.3,
    "nothing special": -0.6, "not worth the money": -1.4, "a waste of time": -1.7, "never again": -1.8,
}  # fmt: skip
EMPHASIS = {"really": 1.4, "very": 1.3, "quite": 1.1, "rather": 0.9, "slightly": 0.5}
FACTS = (
    "we went there in {month}", "my {person} chose it", "it came in a {colour} box", "i paid in cash",
    "we tried it twice", "it rained all day", "a friend told me about it", "i wrote this on the train",
)  # fmt: skip
FILLERS = {
    "month": ("march", "june", "october", "december"),
    "person": ("sister", "uncle", "neighbour", "daughter", "boss"),
    "colour": ("grey", "green", "yellow"),
}
NEGATION = -0.6  # "not good" is bad, but less bad than "bad"
SOFTNESS = 3.0


@dataclass
class Writer:
    """Makes random choices and adds up their log-probability."""

    rng: random.Random
    logp: float = 0.0

    def pick(self, options: tuple[str, ...] | list[str]) -> str:
        self.logp -= math.log(len(options))
        return options[self.rng.randrange(len(options))]

    def chance(self, p: float) -> bool:
        outcome = self.rng.random() < p
        self.logp += math.log(p if outcome else 1 - p)
        return outcome


@dataclass(frozen=True, slots=True)
class Review:
    """A prompt, a review, and the review's log-probability under the grammar."""

    prompt: str
    text: str
    logp: float


def prompts() -> list[str]:
    """Return all prompts."""
    openings = ("my review of {} :", "what i think of {} :", "{} , a short review :", "about {} :")
    return [o.format(thing) for things in THINGS.values() for thing in things for o in openings]


def kind_of(prompt: str) -> str:
    return next(kind for kind, things in THINGS.items() if any(thing in prompt for thing in things))


def write(prompt: str, rng: random.Random) -> Review:
    """Generate a review. Reviews are positive about as often as negative."""
    w = Writer(rng)
    kind = kind_of(prompt)
    sentences = [_sentence(w, kind)]
    while len(sentences) < 3 and w.chance(0.6):
        sentences.append(_sentence(w, kind))
    if w.chance(0.3):
        sentences.append(w.pick(list(VERDICTS)))
    return Review(prompt, "".join(f" {sentence} ." for sentence in sentences), w.logp)


def _sentence(w: Writer, kind: str) -> str:
    if w.chance(0.25):
        fact = w.pick(FACTS)
        for name, words in FILLERS.items():
            if f"{{{name}}}" in fact:
                fact = fact.replace(f"{{{name}}}", w.pick(words))
        return fact
    clause = _opinion(w, kind)
    if w.chance(0.3):
        joint = "but" if w.chance(0.5) else "and"
        return f"{clause} {joint} {_opinion(w, kind)}"
    return clause


def _opinion(w: Writer, kind: str) -> str:
    aspect = w.pick(ASPECTS[kind])
    if w.chance(0.3):
        return f"i {w.pick(list(VERBS))} the {aspect}"
    adjective = w.pick(list(ADJECTIVES))
    if w.chance(0.2):
        return f"the {aspect} was not {adjective}"
    if w.chance(0.4):
        return f"the {aspect} was {w.pick(list(EMPHASIS))} {adjective}"
    return f"the {aspect} was {adjective}"


def true_reward(text: str) -> float:
    """Return the sentiment of a text in (-1, 1)."""
    padded = f" {' '.join(text.replace('.', ' . ').split())} "
    total = 0.0
    for phrase, value in (*VERDICTS.items(), *VERBS.items()):
        total += value * padded.count(f" {phrase} ")
    words = padded.split()
    for before, word in zip(["", *words], words, strict=False):
        if word in ADJECTIVES:
            factor = NEGATION if before == "not" else EMPHASIS.get(before, 1.0)
            total += factor * ADJECTIVES[word]
    return math.tanh(total / SOFTNESS)
