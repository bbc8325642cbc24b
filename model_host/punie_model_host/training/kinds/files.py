"""Finding and counting files of a kind, by name, and their lines."""

from __future__ import annotations

from punie_model_host.training import programs
from punie_model_host.training.grammar import phrases, typo
from punie_model_host.training.kinds.common import (
    Draw,
    Exchange,
    any_count,
    bullets,
    failing,
    listing,
    outside,
    written_folder,
)
from punie_model_host.training.names import EXTENSIONS, SORTS, Sort

_COMMON = [*SORTS[:17], next(sort for sort in SORTS if sort.label == "test")]
FIND = phrases("find")
CONTENTS = phrases("contents")
COUNT = phrases("count")
NAMED = phrases("named")
TOTAL = phrases("total")


_WRITTEN_EXTENSIONS = (
    ".{e}", ".{e}", "*.{e}", "*.{e}", "`.{e}`", "`*.{e}`", "'.{e}'", '"*.{e}"',
)  # fmt: skip


def label_files(label: str, n: int) -> str:
    """The noun phrase of an answer: "Python files", "file"."""
    return (label + " " if label else "") + ("file" if n == 1 else "files")


def draw_sort(draw: Draw) -> tuple[Sort, str]:
    """A sort of file and the words of the question for it."""
    rng = draw.rng
    roll = rng.random()
    if roll < 0.66:
        sort = rng.choice(_COMMON if roll < 0.5 else SORTS)
        words = rng.choice(sort.words)
        return sort, typo(words, rng) if len(words) > 4 and rng.random() < 0.03 else words
    if roll < 0.74:
        return Sort("", "*", rng.choice(EXTENSIONS)), ""
    extension = rng.choice(EXTENSIONS) if rng.random() < 0.6 else draw.names.word()
    written = rng.choice(_WRITTEN_EXTENSIONS).replace("{e}", extension)
    return Sort("." + extension, "*." + extension, extension), written


def _file(draw: Draw, sort: Sort, folder: str) -> str:
    rng, names = draw.rng, draw.names
    if sort.glob.startswith("test_"):
        folder = folder or rng.choice(("tests", "tests", ""))
        return names.file("py", folder, "test_" + names.word())
    extension = sort.extension
    if sort.glob == "*":
        extension = rng.choice(EXTENSIONS[:30])
    elif "{" in sort.glob:
        extension = rng.choice(sort.glob[sort.glob.index("{") + 1 : -1].split(","))
    return names.file(extension, folder)


def found(draw: Draw, sort: Sort, folder: str) -> tuple[int, list[str]]:
    """A random result of ``programs.find``: the count and the printed lines."""
    most = programs.FIND_LIMIT
    total = draw.size(most)
    paths = sorted({_file(draw, sort, folder) for _ in range(min(total, most))})
    total = total if len(paths) == most else len(paths)
    return total, listing(paths, total, most)


def find_answer(label: str, folder: str, total: int, rows: list[str], name: str = "") -> str:
    """The answer to a find."""
    tail = (f" named {name}" if name else "") + (f" in {folder}" if folder else "")
    if not total:
        return f"I found no {label_files(label, 0)}{tail}."
    return bullets(f"I found {total} {label_files(label, total)}{tail}:", rows)


def count_answer(label: str, folder: str, total: int) -> str:
    """The answer to a count."""
    tail = f" in {folder}." if folder else "."
    verb = "is" if total == 1 else "are"
    return f"There {verb} {total or 'no'} {label_files(label, total)}{tail}"


def find_exchange(draw: Draw, question: str, sort: Sort, folder: str) -> Exchange:
    """A find with a random result."""
    total, rows = found(draw, sort, folder)
    return Exchange(
        "find",
        question,
        find_answer(sort.label, folder, total, rows),
        programs.find(sort.glob, folder),
        "\n".join([str(total), *rows]),
        {"sort": sort, "folder": folder, "total": total},
    )


def count_exchange(draw: Draw, question: str, sort: Sort, folder: str) -> Exchange:
    """A count with a random result."""
    total = any_count(draw.rng)
    return Exchange(
        "count",
        question,
        count_answer(sort.label, folder, total),
        programs.count(sort.glob, folder),
        str(total),
        {"sort": sort, "folder": folder, "total": total},
    )


def find(draw: Draw) -> Exchange:
    """ "Find all Python files [in src]"."""
    sort, words = draw_sort(draw)
    folder = outside(draw, draw.folder(0.3))
    if sort.glob == "*" and folder and draw.rng.random() < 0.5:
        question = draw.ask(CONTENTS, {"D": written_folder(folder, draw.rng)})
    else:
        question = draw.ask(FIND, {"K": words}, folder)
    exchange = find_exchange(draw, question, sort, folder)
    return failing(draw, exchange, folder, "folder", 1 if folder.startswith(("/", "..")) else 0.1)


def count(draw: Draw) -> Exchange:
    """ "How many Python files are there [in src]?"."""
    sort, words = draw_sort(draw)
    folder = draw.folder(0.3)
    exchange = count_exchange(draw, draw.ask(COUNT, {"K": words}, folder), sort, folder)
    return failing(draw, exchange, folder, "folder", 0.1)


def _file_name(draw: Draw) -> str:
    rng, names = draw.rng, draw.names
    if rng.random() < 0.85:
        return names.source().rsplit("/")[-1]
    return names.word() + rng.choice(("*", "_*.py", "*.md", ".*"))


def named(draw: Draw) -> Exchange:
    """ "Where is conftest.py?"; also name patterns (``test_*``)."""
    rng = draw.rng
    name = _file_name(draw)
    folder = draw.folder(0.12)
    start = folder + "/" if folder else ""
    below = [rng.choice(("", draw.names.folder() + "/")) for _ in range(min(draw.size(20), 12))]
    paths = sorted({start + middle + name.replace("*", "x") for middle in below})
    written = name if rng.random() < 0.8 else f"`{name}`"
    return Exchange(
        "named",
        draw.ask(NAMED, {"N": written}, folder),
        find_answer("", folder, len(paths), paths, name),
        programs.find(name, folder),
        "\n".join([str(len(paths)), *paths]),
    )


def total(draw: Draw) -> Exchange:
    """ "Find all Python files and count total lines"."""
    sort, words = draw_sort(draw)
    folder = draw.folder(0.2)
    number = any_count(draw.rng)
    lines = number * draw.rng.randrange(1, 400)
    head = f"{number or 'No'} {label_files(sort.label, number)}"
    exchange = Exchange(
        "total",
        draw.ask(TOTAL, {"K": words}, folder),
        f"{head}{' in ' + folder if folder else ''}, {lines} lines in total.",
        programs.total_lines(sort.glob, folder),
        f"{number}\n{lines}",
    )
    return failing(draw, exchange, folder, "folder", 0.08)
