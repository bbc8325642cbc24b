"""What the model knows without a tool: short answers, from ``data/concepts.toml``."""

from __future__ import annotations

from dataclasses import dataclass

from punie_model_host.training.tables import tables

_TABLE = tables("concepts")
ANSWERS: dict[str, str] = _TABLE["answers"]
"""Fixed answers by name: who, abilities, unknown, cannot_edit, ..."""
TALK: dict[str, list[str]] = _TABLE["talk"]
"""Small talk: what is said, by the name of its answer."""


@dataclass(frozen=True)
class Fact:
    """An answer and the names of its subject; ``others`` name what it is compared with."""

    names: tuple[str, ...]
    answer: str
    others: tuple[str, ...] = ()


CONCEPTS = [Fact(tuple(f["names"]), f["answer"]) for f in _TABLE["concept"]]
COMPARISONS = [Fact(tuple(f["one"]), f["answer"], tuple(f["other"])) for f in _TABLE["comparison"]]
WHEN = [Fact(tuple(f["names"]), f["answer"]) for f in _TABLE["when"]]


def answer(facts: list[Fact], name: str) -> str:
    """The answer of the fact that has this name."""
    return next(f.answer for f in facts if name in f.names or name in f.others)


def subject_words() -> set[str]:
    """Every word of every subject, in lower case."""
    names = [n for f in (*CONCEPTS, *COMPARISONS, *WHEN) for n in (*f.names, *f.others)]
    return {word.lower() for name in names for word in name.split()}
