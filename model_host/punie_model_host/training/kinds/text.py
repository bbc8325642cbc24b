"""Titles of files, lines of a file, and where a text occurs."""

from __future__ import annotations

from punie_model_host.training import programs
from punie_model_host.training.grammar import FORMS, Phrases, phrases, quoted
from punie_model_host.training.kinds.common import (
    Draw,
    Exchange,
    any_count,
    bullets,
    failing,
    hits,
    listing,
    outside,
)
from punie_model_host.training.names import NICKNAMES, SORTS

TITLE, LINES = phrases("title"), phrases("lines")
GREP, GREP_COUNT, GREP_LEFT = phrases("grep"), phrases("grep_count"), phrases("grep_left")
_MARKS = ("TODO", "TODO", "FIXME", "XXX", "HACK", "BUG", "NOTE")


def title_answer(path: str, text: str) -> str:
    """The answer that quotes a title."""
    return f'The title of {path} is "{text}".'


def _written_path(draw: Draw, path: str) -> str:
    rng = draw.rng
    if path in NICKNAMES and rng.random() < 0.35:
        return rng.choice(NICKNAMES[path])
    if rng.random() < 0.8:
        return quoted(path, rng)
    return rng.choice(("the file ", "file ", "the document ")) + path


def title_exchange(question: str, path: str, heading: str) -> Exchange:
    """A title that is found."""
    memory = {"path": path, "title": heading}
    answer = title_answer(path, heading)
    return Exchange("title", question, answer, programs.title(path), heading, memory)


def title(draw: Draw) -> Exchange:
    """ "What is the title of README.md?"."""
    rng = draw.rng
    path = outside(draw, draw.names.document())
    question = draw.ask(TITLE, {"F": _written_path(draw, path)})
    exchange = title_exchange(question, path, draw.names.title())
    if path.startswith(("/", "..")):
        return failing(draw, exchange, path, "file", 1)
    if rng.random() < 0.02:
        exchange.result, exchange.answer = "(no output)", f"{path} is empty."
        exchange.memory = {}
        return exchange
    return failing(draw, exchange, path, "file", 0.1)


def lines_exchange(question: str, path: str, number: int) -> Exchange:
    """The length of a file that exists."""
    answer = f"{path} has {number} {'line' if number == 1 else 'lines'}."
    return Exchange("lines", question, answer, programs.lines(path), str(number), {"path": path})


def lines(draw: Draw) -> Exchange:
    """ "How many lines does src/a.py have?"."""
    path = outside(draw, draw.names.source())
    question = draw.ask(LINES, {"F": quoted(path, draw.rng)})
    exchange = lines_exchange(question, path, any_count(draw.rng))
    return failing(draw, exchange, path, "file", 1 if path.startswith(("/", "..")) else 0.12)


def scope(draw: Draw) -> tuple[str, str, str]:
    """Where to search: (glob, folder, words for the glob); mostly everywhere."""
    rng = draw.rng
    roll = rng.random()
    if roll < 0.66:
        return "", "", ""
    if roll < 0.82:
        return "", draw.names.folder(), ""
    if roll < 0.92:
        path = draw.names.source()
        return path, "", " in " + quoted(path, rng)
    sort = rng.choice(SORTS[:20])
    return sort.glob, "", f" in {rng.choice(('', 'all ', 'the '))}{rng.choice(sort.words)} files"


def grep_answer(text: str, total: int, rows: list[str]) -> str:
    """The answer to a search for a text."""
    if not total:
        return f"No line contains {text}."
    if total == 1:
        return f"1 line contains {text}: {rows[0]}"
    return bullets(f"{total} lines contain {text}:", rows)


def grep_count_answer(text: str, total: int) -> str:
    """The answer to a count of lines with a text."""
    if total == 1:
        return f"1 line contains {text}."
    return f"{total or 'No'} {'lines contain' if total else 'line contains'} {text}."


def _asked(draw: Draw, kind: Phrases, text: str) -> tuple[str, str, str]:
    """A question about a text, and the glob and folder it names."""
    glob, folder, words = scope(draw)
    written = text if kind is GREP_LEFT else quoted(text, draw.rng)
    if " " in text:
        mark = draw.rng.choice("`'\"")
        written = mark + text + mark
    kind = _scoped(kind) if words else kind
    return draw.ask(kind, {"T": written, "G": words}, folder), glob, folder


def _scoped(kind: Phrases) -> Phrases:
    """The same phrases with a slot for a sort of file or a path in place of ``{P}``."""

    def of(form: str) -> tuple[str, ...]:
        return tuple(c.replace("{P}", "{G}") for c in getattr(kind, form) if "{P}" in c)

    return Phrases(kind.name, **{form: of(form) for form in FORMS})


def _places(draw: Draw, glob: str, folder: str, total: int) -> list[str]:
    if glob and not glob.startswith("*"):
        return hits(draw, total, lambda: glob)
    extension = glob.rsplit(".")[-1] if glob and "{" not in glob else "py"
    return hits(draw, total, lambda: draw.names.file(extension, folder))


def grep_exchange(draw: Draw, question: str, text: str, glob: str, folder: str) -> Exchange:
    """A search with a random result."""
    most = programs.LIST_LIMIT
    total = draw.size(most)
    rows = _places(draw, glob, folder, total)
    total = total if len(rows) == most else len(rows)
    rows = listing(rows, total, most)
    return Exchange(
        "grep",
        question,
        grep_answer(text, total, rows),
        programs.grep(text, glob, folder),
        "\n".join([str(total), *rows]),
        {"name": text, "total": total, "glob": glob, "folder": folder},
    )


def grep(draw: Draw) -> Exchange:
    """ "Where is 'timeout' used?"."""
    text = draw.names.text()
    question, glob, folder = _asked(draw, GREP, text)
    exchange = grep_exchange(draw, question, text, glob, folder)
    return failing(draw, exchange, folder, "folder", 0.08)


def grep_count(draw: Draw) -> Exchange:
    """ "How many lines contain timeout?", "How many TODOs are left?"."""
    text, kind = draw.names.text(), GREP_COUNT
    if draw.rng.random() < 0.15:
        text, kind = draw.rng.choice(_MARKS), GREP_LEFT
    question, glob, folder = _asked(draw, kind, text)
    total = any_count(draw.rng)
    exchange = Exchange(
        "grep_count",
        question,
        grep_count_answer(text, total),
        programs.grep_count(text, glob, folder),
        str(total),
        {"name": text, "total": total, "glob": glob, "folder": folder},
    )
    return failing(draw, exchange, folder, "folder", 0.08)
