"""Answers without a tool: concepts, comparisons, small talk, and what is out of reach."""

from __future__ import annotations

from punie_model_host.training.concepts import (
    ANSWERS,
    COMPARISONS,
    CONCEPTS,
    TALK,
    WHEN,
    subject_words,
)
from punie_model_host.training.grammar import Phrases, phrases
from punie_model_host.training.kinds.common import Draw, Exchange
from punie_model_host.training.names import OUTSIDE_PHRASES, THINGS

CONCEPT = phrases("concept")
COMPARE = phrases("compare")
WHEN_TO_USE = phrases("when")
_OUT_OF_REACH = (
    (phrases("outside"), "unknown", 3),
    (phrases("edit"), "cannot_edit", 2),
    (phrases("run"), "cannot_run", 1.5),
    (phrases("show"), "cannot_show", 1),
)
_ARTICLES = ("a ", "an ", "the ")
_TAKEN = subject_words()


def _cased(name: str, draw: Draw) -> str:
    return name.lower() if draw.rng.random() < 0.15 else name


def concept(draw: Draw) -> Exchange:
    """ "What is dependency injection?"."""
    rng = draw.rng
    fact = rng.choice(CONCEPTS)
    name = rng.choice(fact.names)
    question = draw.ask(CONCEPT, {"C": _cased(name, draw)})
    for article in _ARTICLES:
        if name.startswith(article) and rng.random() < 0.3:
            question = question.replace(name, name[len(article) :])
    return Exchange("concept", question, fact.answer)


def comparison(draw: Draw) -> Exchange:
    """ "What is the difference between an ORM and raw SQL?"."""
    rng = draw.rng
    fact = rng.choice(COMPARISONS)
    sides = (fact.names, fact.others) if rng.random() < 0.6 else (fact.others, fact.names)
    one, other = (_cased(rng.choice(side), draw) for side in sides)
    return Exchange("compare", draw.ask(COMPARE, {"A": one, "B": other}), fact.answer)


def when(draw: Draw) -> Exchange:
    """ "When should I use type hints in Python?"."""
    fact = draw.rng.choice(WHEN)
    name = _cased(draw.rng.choice(fact.names), draw)
    return Exchange("when", draw.ask(WHEN_TO_USE, {"C": name}), fact.answer)


def talk(draw: Draw) -> Exchange:
    """Greetings, thanks, who are you, what can you do."""
    answer = draw.rng.choice(list(TALK))
    said = draw.rng.choice(TALK[answer])
    return Exchange("talk", draw.ask(Phrases("talk", bare=(said,)), {}), ANSWERS[answer])


def _free_word(draw: Draw) -> str:
    word = draw.names.word()
    return word if word not in _TAKEN else draw.names.invented()


def _thing(draw: Draw) -> str:
    """Something that no answer is known for."""
    rng, names = draw.rng, draw.names
    roll = rng.random()
    if roll < 0.35:
        return rng.choice(THINGS)
    if roll < 0.55:
        return rng.choice(OUTSIDE_PHRASES)
    if roll < 0.8:
        words = [_free_word(draw) for _ in range(rng.choice((1, 2, 2, 3)))]
        return rng.choice(("", "", "the ", "a ", "my ")) + " ".join(words)
    if roll < 0.9:
        return names.invented().capitalize()
    return rng.choice((names.camel, names.snake))()


def out_of_reach(draw: Draw) -> Exchange:
    """General knowledge, edits and runs: an honest sentence."""
    rng, names = draw.rng, draw.names
    weights = [weight for *_, weight in _OUT_OF_REACH]
    asked, answer, _ = rng.choices(_OUT_OF_REACH, weights)[0]
    path = rng.choice((names.folder() + "/", names.source(), names.source()))
    if answer == "cannot_show":
        path = rng.choice((names.source, names.document))()
    slots = {"Z": "{Z}", "f": path, "n": str(rng.randrange(1, 3000)), "V": rng.choice(THINGS[:10])}
    question = draw.ask(asked, slots)
    while "{Z}" in question:
        question = question.replace("{Z}", _thing(draw), 1)
    return Exchange("unknown", question, ANSWERS[answer])
