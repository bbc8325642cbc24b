"""Subclasses, definitions, imports, and counts of classes, functions and tests."""

from __future__ import annotations

from dataclasses import dataclass

from punie_model_host.training import programs
from punie_model_host.training.grammar import phrases, quoted
from punie_model_host.training.kinds.common import (
    Draw,
    Exchange,
    any_count,
    bullets,
    failing,
    hits,
    listing,
)

SUBCLASSES, DEFINITION = phrases("subclasses"), phrases("definition")
IMPORTERS = phrases("importers")
SYMBOL_COUNT, SYMBOL_LIST = phrases("symbols"), phrases("symbol_list")
TESTS_IN_FILES = phrases("symbols_tests")


@dataclass(frozen=True)
class Symbol:
    """Something definitions of which are counted: its names and how its program starts."""

    one: str
    many: str
    start: str
    words: tuple[str, ...]


CLASS = Symbol(
    "class",
    "classes",
    programs.CLASSES,
    ("classes", "classes", "Python classes", "class definitions"),
)
FUNCTION = Symbol(
    "function",
    "functions",
    programs.FUNCTIONS,
    ("functions", "functions", "Python functions", "functions and methods", "methods"),
)
TEST = Symbol(
    "test function",
    "test functions",
    programs.TESTS,
    ("test functions", "tests", "tests", "unit tests", "test cases", "test functions"),
)


def subclasses_answer(base: str, total: int, rows: list[str]) -> str:
    """The answer to a search for subclasses."""
    if not total:
        return f"No class inherits from {base}."
    if total == 1:
        return f"1 class inherits from {base}: {rows[0]}."
    return bullets(f"{total} classes inherit from {base}:", rows)


def subclasses(draw: Draw) -> Exchange:
    """ "Find all classes that inherit from ValueError"."""
    rng, names = draw.rng, draw.names
    base = names.base()
    folder = draw.folder(0.12)
    total = draw.size(programs.LIST_LIMIT)
    shown = [
        f"{names.camel()} ({where})"
        for where in hits(draw, total, lambda: names.file("py", folder))
    ]
    total = total if len(shown) == programs.LIST_LIMIT else len(shown)
    rows = listing(shown, total, programs.LIST_LIMIT)
    exchange = Exchange(
        "subclasses",
        draw.ask(SUBCLASSES, {"X": quoted(base, rng)}, folder),
        subclasses_answer(base, total, rows),
        programs.subclasses(base, folder),
        "\n".join([str(total), *rows]),
        {"name": base, "total": total, "rows": rows, "folder": folder},
    )
    return failing(draw, exchange, folder, "folder", 0.08)


def definition_answer(name: str, total: int, rows: list[str]) -> str:
    """The answer to a search for a definition."""
    if not total:
        return f"I found no definition of {name}."
    if total == 1:
        return f"{name} is defined at {rows[0]}."
    return bullets(f"{name} is defined in {total} places:", rows)


def definition(draw: Draw) -> Exchange:
    """ "Where is parse_args defined?"."""
    rng, names = draw.rng, draw.names
    name = names.symbol()
    folder = draw.folder(0.07)
    roll = rng.random()
    total = 1 if roll < 0.6 else 0 if roll < 0.75 else draw.size(20)
    rows = hits(draw, total, lambda: names.file("py", folder))
    total = total if len(rows) == programs.LIST_LIMIT else len(rows)
    rows = listing(rows, total, programs.LIST_LIMIT)
    written = quoted(name + ("()" if name[-1:].islower() and rng.random() < 0.1 else ""), rng)
    return Exchange(
        "definition",
        draw.ask(DEFINITION, {"X": written}, folder),
        definition_answer(name, total, rows),
        programs.definition(name, folder),
        "\n".join([str(total), *rows]),
        {"name": name, "total": total, "rows": rows, "folder": folder},
    )


def importers_answer(module: str, total: int, rows: list[str]) -> str:
    """The answer to a search for imports."""
    if not total:
        return f"No file imports {module}."
    if total == 1:
        return f"1 file imports {module}: {rows[0]}"
    return bullets(f"{total} files import {module}:", rows)


def importers(draw: Draw) -> Exchange:
    """ "Which files import numpy?"."""
    names = draw.names
    module = names.module()
    folder = draw.folder(0.12)
    total = draw.size(programs.LIST_LIMIT)
    files = sorted({names.file("py", folder) for _ in range(min(total, programs.LIST_LIMIT))})
    total = total if len(files) == programs.LIST_LIMIT else len(files)
    rows = listing(files, total, programs.LIST_LIMIT)
    exchange = Exchange(
        "importers",
        draw.ask(IMPORTERS, {"M": quoted(module, draw.rng)}, folder),
        importers_answer(module, total, rows),
        programs.importers(module, folder),
        "\n".join([str(total), *rows]),
        {"name": module, "total": total, "rows": rows, "folder": folder},
    )
    return failing(draw, exchange, folder, "folder", 0.08)


def _symbol_scope(draw: Draw, in_file: float) -> tuple[str, str, str]:
    """Where to count: (folder, file, words for either in the answer); mostly everywhere."""
    if draw.rng.random() < in_file:
        path = draw.names.file("py")
        return "", path, f" in {path}"
    folder = draw.folder(0.25)
    return folder, "", f" in {folder}" if folder else ""


def symbols(draw: Draw) -> Exchange:
    """ "How many classes are there [in src/a.py]?"."""
    rng = draw.rng
    symbol = rng.choice((CLASS, FUNCTION, TEST))
    in_files = symbol is TEST and rng.random() < 0.3
    folder, path, tail = _symbol_scope(draw, 0 if in_files else 0.2)
    number = any_count(rng)
    asked = TESTS_IN_FILES if in_files else SYMBOL_COUNT
    noun = symbol.one if number == 1 else symbol.many
    exchange = Exchange(
        "symbols",
        draw.ask(asked, {"K": rng.choice(symbol.words)}, folder, path),
        f"There {'is' if number == 1 else 'are'} {number or 'no'} {noun}{tail}.",
        programs.count_symbols(symbol.start, path or "*.py", folder),
        str(number),
    )
    return failing(draw, exchange, folder, "folder", 0.08)


def _symbol_name(draw: Draw, symbol: Symbol) -> str:
    if symbol is CLASS:
        return draw.names.camel()
    return draw.names.function() if symbol is FUNCTION else "test_" + draw.names.word()


def symbol_list(draw: Draw) -> Exchange:
    """ "List all classes [in src/a.py]"."""
    rng, most = draw.rng, programs.LIST_LIMIT
    symbol = rng.choice((CLASS, CLASS, FUNCTION, TEST))
    folder, path, tail = _symbol_scope(draw, 0.3)
    total = draw.size(most)
    places = hits(draw, total, lambda: path or draw.names.file("py", folder))
    shown = [f"{_symbol_name(draw, symbol)} ({where})" for where in places]
    total = total if len(shown) == most else len(shown)
    rows = listing(shown, total, most)
    head = f"I found {total or 'no'} {symbol.one if total == 1 else symbol.many}{tail}"
    exchange = Exchange(
        "symbol_list",
        draw.ask(SYMBOL_LIST, {"K": rng.choice(symbol.words)}, folder, path),
        bullets(head + ":", rows) if total else head + ".",
        programs.list_symbols(symbol.start, path or "*.py", folder),
        "\n".join([str(total), *rows]),
    )
    return failing(draw, exchange, folder, "folder", 0.08)
