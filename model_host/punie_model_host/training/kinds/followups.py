"""Second and later questions that lean on the exchange before."""

from __future__ import annotations

from collections.abc import Callable

from punie_model_host.training.concepts import ANSWERS, CONCEPTS, TALK
from punie_model_host.training.grammar import Phrases, fill, phrase, phrases, quoted
from punie_model_host.training.kinds import code, files, text
from punie_model_host.training.kinds.common import Draw, Exchange, any_count, written_folder

HOW_MANY, WHICH = phrases("f_how_many"), phrases("f_which")
OTHER_SORT, OTHER_FOLDER = phrases("f_sort"), phrases("f_folder")
OTHER_NAME = phrases("f_name")
WHERE_IT, USED = phrases("f_where"), phrases("f_used")
AGAIN, LENGTH, ITS_TITLE = phrases("f_again"), phrases("f_length"), phrases("f_title")


def _ask(draw: Draw, kind: Phrases, slots: dict[str, str] | None = None) -> str:
    asked = phrase(kind, draw.rng, draw.held_out_phrases)
    if draw.rng.random() < 0.6 and asked[-1:] not in "?!.":
        asked += "?"
    return fill(asked, slots or {}, draw.rng)


_Make = Callable[[Draw, str, files.Sort, str], Exchange]


def _other_sort(draw: Draw, memory: dict, make: _Make) -> Exchange:
    sort, words = files.draw_sort(draw)
    question = _ask(draw, OTHER_SORT, {"K": words}) if words else "And all files?"
    return make(draw, question, sort, memory["folder"])


def _other_folder(draw: Draw, memory: dict, make: _Make) -> Exchange:
    folder = draw.names.folder()
    question = _ask(draw, OTHER_FOLDER, {"D": written_folder(folder, draw.rng)})
    return make(draw, question, memory["sort"], folder)


def after_find(draw: Draw, memory: dict) -> Exchange:
    """How many, another sort of file, another folder."""
    roll = draw.rng.random()
    if roll < 0.4:
        answer = files.count_answer(memory["sort"].label, memory["folder"], memory["total"])
        return Exchange("count", _ask(draw, HOW_MANY), answer, memory=memory)
    return (_other_sort if roll < 0.8 else _other_folder)(draw, memory, files.find_exchange)


def after_count(draw: Draw, memory: dict) -> Exchange:
    """Which ones, another sort of file, another folder."""
    roll = draw.rng.random()
    if roll < 0.5:
        return files.find_exchange(draw, _ask(draw, WHICH), memory["sort"], memory["folder"])
    return (_other_sort if roll < 0.82 else _other_folder)(draw, memory, files.count_exchange)


def _renamed(draw: Draw, make: Callable[[Draw], Exchange], key: str = "name") -> Exchange:
    """The same question about another name, for the whole project."""
    exchange = make(draw)
    while exchange.memory.get("folder") or exchange.memory.get("glob") or not exchange.memory:
        exchange = make(draw)
    exchange.question = _ask(draw, OTHER_NAME, {"X": quoted(exchange.memory[key], draw.rng)})
    return exchange


def _counted(total: int, one: str, many: str, name: str) -> str:
    """ "2 files import numpy.", from the words between the number and the name."""
    head = f"{total} {many}" if total > 1 else f"{total or 'No'} {one}"
    return f"{head} {name}."


def after_subclasses(draw: Draw, memory: dict) -> Exchange:
    """Where is it, how many, another base."""
    roll = draw.rng.random()
    if memory["total"] == 1 and roll < 0.55:
        name, where = memory["rows"][0].rstrip(")").split(" (")
        answer = f"{name} is defined at {where}."
        return Exchange("where", _ask(draw, WHERE_IT), answer, memory=memory)
    if roll < 0.35:
        words = ("class inherits from", "classes inherit from")
        answer = _counted(memory["total"], *words, memory["name"])
        return Exchange("count", _ask(draw, HOW_MANY), answer, memory=memory)
    return _renamed(draw, code.subclasses)


def after_definition(draw: Draw, memory: dict) -> Exchange:
    """Which file, where is it used, another name."""
    roll = draw.rng.random()
    if memory["total"] == 1 and roll < 0.35:
        path, line = memory["rows"][0].rsplit(":", 1)
        answer = f"It is in {path}, line {line}."
        return Exchange("where", _ask(draw, WHERE_IT), answer, memory=memory)
    if roll < 0.65:
        return text.grep_exchange(draw, _ask(draw, USED), memory["name"], "", "")
    return _renamed(draw, code.definition)


def after_grep(draw: Draw, memory: dict) -> Exchange:
    """How many, another text."""
    if draw.rng.random() < 0.45:
        answer = text.grep_count_answer(memory["name"], memory["total"])
        return Exchange("count", _ask(draw, HOW_MANY), answer, memory=memory)
    return _renamed(draw, text.grep)


def after_grep_count(draw: Draw, memory: dict) -> Exchange:
    """Which ones, another text."""
    if draw.rng.random() < 0.45:
        return _renamed(draw, text.grep_count)
    question = _ask(draw, WHICH)
    return text.grep_exchange(draw, question, memory["name"], memory["glob"], memory["folder"])


def after_importers(draw: Draw, memory: dict) -> Exchange:
    """How many, another module."""
    if draw.rng.random() < 0.45:
        answer = _counted(memory["total"], "file imports", "files import", memory["name"])
        return Exchange("count", _ask(draw, HOW_MANY), answer, memory=memory)
    return _renamed(draw, code.importers)


def after_title(draw: Draw, memory: dict) -> Exchange:
    """The title again, its length, another file."""
    roll, path = draw.rng.random(), memory["path"]
    if roll < 0.4:
        answer = text.title_answer(path, memory["title"])
        return Exchange("title", _ask(draw, AGAIN), answer, memory=memory)
    if roll < 0.6:
        return text.lines_exchange(_ask(draw, LENGTH), path, any_count(draw.rng))
    return _renamed(draw, text.title, "path")


def after_lines(draw: Draw, memory: dict) -> Exchange:
    """Its title, another file."""
    if draw.rng.random() < 0.4:
        return text.title_exchange(_ask(draw, ITS_TITLE), memory["path"], draw.names.title())
    return _renamed(draw, text.lines, "path")


def after_concept(draw: Draw) -> Exchange:
    """Another concept."""
    fact = draw.rng.choice(CONCEPTS)
    question = _ask(draw, OTHER_NAME, {"X": draw.rng.choice(fact.names)})
    return Exchange("concept", question, fact.answer)


AFTER: dict[str, Callable[[Draw, dict], Exchange]] = {
    "find": after_find,
    "count": after_count,
    "subclasses": after_subclasses,
    "definition": after_definition,
    "grep": after_grep,
    "grep_count": after_grep_count,
    "importers": after_importers,
    "title": after_title,
    "lines": after_lines,
}


def follow_up(draw: Draw, last: Exchange) -> Exchange | None:
    """A question that leans on ``last``, or None where there is none."""
    if last.kind in ("concept", "compare", "when"):
        return after_concept(draw)
    make = AFTER.get(last.kind)
    if make is None or not last.memory:
        return None
    if last.code is None and last.kind == "count":
        return after_find(draw, last.memory) if "sort" in last.memory else None
    return make(draw, last.memory)


def thanks(draw: Draw) -> Exchange:
    """A last word."""
    words = Phrases("talk", bare=(draw.rng.choice(TALK["welcome"]),))
    return Exchange("talk", _ask(draw, words).rstrip("?"), ANSWERS["welcome"])
