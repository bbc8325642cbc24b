"""A tiny phrase grammar and the noise that users add.

A pattern is text with ``(a|b|c)`` alternatives, ``[x]`` options (half the time) and ``{K}`` slots.
``expand`` chooses; slots are filled later, so that a skeleton can be held out whatever names
stand in it.
"""

from __future__ import annotations

import random
import re
import zlib
from dataclasses import dataclass

from punie_model_host.training.tables import tables

_GROUP = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")


def expand(pattern: str, rng: random.Random) -> str:
    """Chooses one expansion of a pattern; innermost groups first."""
    while match := _GROUP.search(pattern):
        if match[1] is not None:
            chosen = rng.choice(match[1].split("|"))
        else:
            chosen = rng.choice(match[2].split("|")) if rng.random() < 0.5 else ""
        pattern = pattern[: match.start()] + chosen + pattern[match.end() :]
    return re.sub(" +", " ", pattern).strip()


@dataclass(frozen=True)
class Phrases:
    """The ways to ask for one thing, by grammatical form; each becomes several sentences.

    ``orders`` are imperatives ("find {K} files"), ``questions`` direct questions ("which ...?"),
    ``clauses`` indirect ones ("which files are ..."), ``nouns`` noun phrases ("all {K} files"),
    ``bare`` short inputs that take no frame ("{K} files?").
    """

    name: str
    orders: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    clauses: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()


FORMS = ("orders", "questions", "clauses", "nouns", "bare")
_TABLE = tables("phrases")
_FRAMES: dict[str, list[str]] = _TABLE["frames"]


def phrases(name: str) -> Phrases:
    """The phrases of one kind, from ``data/phrases.toml``."""
    return Phrases(name, **{form: tuple(cores) for form, cores in _TABLE[name].items()})


def frame(name: str, rng: random.Random) -> str:
    """One frame of a sort, such as ``reasons`` or ``folders``, expanded."""
    return expand(rng.choice(_FRAMES[name]), rng)


def place(rng: random.Random) -> str:
    """A phrase for the whole project, or nothing (60 %)."""
    return " " + frame("places", rng) if rng.random() < 0.4 else ""


def is_held_out(name: str, core: str) -> bool:
    """Whether a core phrase is kept for evaluation: a fixed tenth of them."""
    return zlib.crc32(f"{name}:{core}".encode()) % 10 == 3


def phrase(kind: Phrases, rng: random.Random, held_out: bool = False) -> str:
    """A framed sentence with unfilled slots, from the training or the held-out cores."""
    forms = [form for form in FORMS if getattr(kind, form)]
    for _ in range(200):
        form = rng.choice(forms)
        core = expand(rng.choice(getattr(kind, form)), rng)
        if is_held_out(kind.name, core) == held_out:
            break
    text = frame(form, rng).replace("{x}", core)
    if rng.random() < 0.08:
        text = frame("reasons", rng) + " " + text
    if rng.random() < 0.05:
        text = text + " " + frame("tails", rng)
    return re.sub(" +", " ", text).strip()


_NOT_COPIED = {"K", "C", "A", "B"}
"""Slots that stand for one of a known set, so that their case may change."""


def fill(text: str, slots: dict[str, str], rng: random.Random) -> str:
    """Fills the slots and adds noise of case, punctuation and typing outside the names."""
    for name, value in slots.items():
        text = text if value else text.replace(f"{{{name}}} ", "")
    text = text.replace("{P}", place(rng))
    text = re.sub(" +", " ", text).replace(" ?", "?").replace(" ,", ",").strip()
    if rng.random() < 0.05 and slots.keys() <= _NOT_COPIED and "." not in slots.get("K", ""):
        return text.format_map(slots).upper()
    parts = re.split(r"(\{\w+\})", noise(text, rng))
    return "".join(slots.get(p[1:-1], p) if p.startswith("{") else p for p in parts)


def typo(text: str, rng: random.Random) -> str:
    """One slip of the keyboard inside a word: a letter lost, doubled or swapped."""
    spots = [i for i in range(1, len(text) - 1) if text[i - 1 : i + 2].isalpha()]
    if not spots:
        return text
    i = rng.choice(spots)
    match rng.randrange(3):
        case 0:
            return text[:i] + text[i + 1 :]
        case 1:
            return text[:i] + text[i] + text[i:]
        case _:
            return text[:i] + text[i + 1] + text[i] + text[i + 2 :]


def noise(text: str, rng: random.Random) -> str:
    """Case, punctuation and typing noise; slots (``{X}``) are left whole."""
    roll = rng.random()
    if roll < 0.62:
        text = text[:1].upper() + text[1:]
        text = re.sub(r"\bi\b", "I", text)
    elif roll < 0.63:
        text = "".join(p if p[:1] == "{" else p.upper() for p in re.split(r"(\{\w+\})", text))
    roll = rng.random()
    if roll < 0.2:
        text = text.rstrip("?")
    elif roll < 0.5 and text[-1:] not in "?!.:":
        text += "."
    if rng.random() < 0.02:
        text += rng.choice(("!", "!!", "??", " ...", " :)"))
    if rng.random() < 0.025:
        parts = re.split(r"(\{\w+\})", text)
        i = rng.randrange(0, len(parts), 2)
        parts[i] = typo(parts[i], rng)
        text = "".join(parts)
    return text


def quoted(name: str, rng: random.Random) -> str:
    """A name as users write it: mostly bare, else in backticks or quotes."""
    roll = rng.random()
    if roll < 0.68:
        return name
    mark = rng.choice("``'\"")
    return f"{mark}{name}{mark}"
