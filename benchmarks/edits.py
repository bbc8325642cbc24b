"""Edits of real code: what a person asks for, and the file before and after.

The files are modules of the standard library and of packages that Punie needs, 100 to 400 lines
long. From a seed each gets one to three changes as people make them in one go: a function or an
argument gets another name everywhere it is used, a parameter with a default, a docstring, a line of
logging, an early return, a ``try`` round it, or a number changes. They are made in the text, at
places that ``ast`` finds, so that the rest of the file stays as its authors wrote it.
"""

import ast
import importlib.util
import os
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LINES: Final = (100, 400)
"""How long the files are."""
_PACKAGES: Final = ("anyio", "starlette", "typer", "uvicorn")
_LEFT_OUT: Final = ("test", "site-packages", "idlelib", "encodings", "turtledemo", "sitecustomize")
_NUMBERS: Final = (2, 3, 5, 8, 16, 30, 60, 100, 256, 1024)

type Function = ast.FunctionDef | ast.AsyncFunctionDef
type Change = tuple[str, str]
"""What was asked for, and the whole text after it."""


@dataclass(frozen=True, slots=True)
class Edit:
    """A file, what is asked for, and the file as it is to be."""

    path: str
    asked: str
    before: str
    after: str


def modules() -> list[tuple[str, str]]:
    """Return name and text of every file that may be edited: ASCII, without control tokens."""
    roots = [(Path(os.__file__).parent, "lib")]
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        roots.append((Path(spec.origin).parent, package))
    found = (_read(root, path, name) for root, name in roots for path in sorted(root.rglob("*.py")))
    return [one for one in found if one is not None]


def _read(root: Path, path: Path, name: str) -> tuple[str, str] | None:
    relative = path.relative_to(root).as_posix()
    if any(part in relative for part in _LEFT_OUT) or not path.is_file():
        return None
    data = path.read_bytes()
    if not data.isascii() or b"<|" in data or b"tool_call>" in data or b"\r" in data:
        return None
    text = data.decode()
    return (f"{name}/{relative}", text) if LINES[0] <= text.count("\n") <= LINES[1] else None


def edit(path: str, text: str, seed: str) -> Edit | None:
    """Return an edit of that file, None when nothing can be asked for there."""
    chance = random.Random(f"{seed} {path}")
    asked: list[str] = []
    after = text
    kinds = list(_KINDS)
    chance.shuffle(kinds)
    wanted = chance.choice((1, 1, 2, 3))
    for kind in kinds:
        change = kind(after, chance)
        if change is not None and _parses(change[1]):
            asked.append(change[0])
            after = change[1]
        if len(asked) == wanted:
            return Edit(path, f"In `{path}`: {'; '.join(asked)}.", text, after)
    return None


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def _functions(text: str) -> list[Function]:
    """Return the functions whose body begins on a line of its own, with one statement that is not
    a docstring at least."""
    nodes = ast.walk(ast.parse(text))
    functions = [one for one in nodes if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [one for one in functions if _body(one) and _body(one)[0].lineno > one.lineno]


def _body(function: Function) -> list[ast.stmt]:
    """Return the statements less the docstring."""
    return function.body[1:] if ast.get_docstring(function) is not None else function.body


def _arguments(function: Function) -> list[str]:
    return [one.arg for one in function.args.args if one.arg not in ("self", "cls")]


def _some[T](chance: random.Random, items: list[T]) -> Iterator[T]:
    """Yield all of them in a random order."""
    chance.shuffle(items)
    yield from items


def _inserted(text: str, before: ast.stmt, lines: list[str]) -> str:
    """Put lines before a statement, with its indentation."""
    all_ = text.splitlines(keepends=True)
    at = before.lineno - 1
    all_[at:at] = [f"{' ' * before.col_offset}{line}\n" for line in lines]
    return "".join(all_)


def _rename_function(text: str, chance: random.Random) -> Change | None:
    for function in _some(chance, _functions(text)):
        old = function.name
        uses = len(re.findall(rf"\b{old}\b", text))
        if not old.startswith("__") and 3 <= uses <= 12:
            new = chance.choice((f"{old}_now", f"{old}_of", f"checked_{old.lstrip('_')}"))
            renamed = re.sub(rf"\b{old}\b", new, text)
            return f"rename `{old}` to `{new}`, everywhere it is used", renamed
    return None


def _rename_argument(text: str, chance: random.Random) -> Change | None:
    lines = text.splitlines(keepends=True)
    for function in _some(chance, _functions(text)):
        for old in _arguments(function):
            start, end = function.lineno - 1, function.end_lineno
            part = "".join(lines[start:end])
            if len(old) > 1 and 2 <= len(re.findall(rf"\b{old}\b", part)) <= 10:
                new = chance.choice((f"{old}_value", f"given_{old}", f"new_{old}"))
                part = re.sub(rf"\b{old}\b", new, part)
                asked = f"rename the argument `{old}` of `{function.name}` to `{new}`"
                return asked, "".join([*lines[:start], part, *lines[end:]])
    return None


def _add_parameter(text: str, chance: random.Random) -> Change | None:
    name, default = chance.choice((("strict", "False"), ("limit", "None"), ("verbose", "False")))
    lines = text.splitlines(keepends=True)
    for function in _some(chance, _functions(text)):
        given, at = function.args, function.lineno - 1
        head = re.fullmatch(r"(\s*(?:async )?def .*\(.*)(\).*:\s*\n)", lines[at])
        if head is None or given.kwonlyargs or given.vararg or given.kwarg or not given.args:
            continue
        later = _inserted(text, _body(function)[0], [f"if {name}:", f"    check({name})"])
        changed = later.splitlines(keepends=True)
        changed[at] = f"{head[1]}, {name}={default}{head[2]}"
        asked = f"give `{function.name}` a parameter `{name}` that is {default} by default"
        return f"{asked}, and call `check` with it when it is set", "".join(changed)
    return None


def _add_docstring(text: str, chance: random.Random) -> Change | None:
    for function in _some(chance, _functions(text)):
        if ast.get_docstring(function) is None and not function.name.startswith("__"):
            words = " ".join(function.name.strip("_").split("_"))
            told = [f"`{name}`" for name in _arguments(function)]
            line = f'"""Do the {words}' + (f" with {', '.join(told)}" if told else "") + '."""'
            asked = f"give `{function.name}` a docstring of one line"
            return asked, _inserted(text, function.body[0], [line])
    return None


def _add_log_line(text: str, chance: random.Random) -> Change | None:
    for function in _some(chance, _functions(text)):
        if names := _arguments(function):
            shown = ", ".join(f"{name}=%r" for name in names)
            line = f'logger.debug("{function.name}: {shown}", {", ".join(names)})'
            asked = f"let `{function.name}` log its arguments at the level debug"
            return asked, _inserted(text, _body(function)[0], [line])
    return None


def _early_return(text: str, chance: random.Random) -> Change | None:
    for function in _some(chance, _functions(text)):
        if names := _arguments(function):
            name = chance.choice(names)
            asked = f"let `{function.name}` return None at once when `{name}` is None"
            lines = [f"if {name} is None:", "    return None"]
            return asked, _inserted(text, _body(function)[0], lines)
    return None


def _wrap_in_try(text: str, chance: random.Random) -> Change | None:
    lines = text.splitlines(keepends=True)
    for function in _some(chance, _functions(text)):
        body = _body(function)
        start, end, indent = body[0].lineno - 1, function.end_lineno or 0, body[0].col_offset
        part = lines[start:end]
        if not 2 <= len(part) <= 12 or any('"""' in line for line in part):
            continue
        wrapped = [f"    {line}" if line.strip() else line for line in part]
        spaces = " " * indent
        after = [
            *(f"{spaces}except OSError as error:\n", f"{spaces}    raise RuntimeError("),
            f'"{function.name} failed") from error\n',
        ]
        whole = [*lines[:start], f"{spaces}try:\n", *wrapped, *after, *lines[end:]]
        return f"let `{function.name}` raise RuntimeError where it raises OSError", "".join(whole)
    return None


def _change_number(text: str, chance: random.Random) -> Change | None:
    numbers = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value > 1
    ]
    lines = text.splitlines(keepends=True)
    for node in _some(chance, numbers):
        new = chance.choice([number for number in _NUMBERS if number != node.value])
        line, start, end = lines[node.lineno - 1], node.col_offset, node.end_col_offset
        lines[node.lineno - 1] = f"{line[:start]}{new}{line[end:]}"
        return f"make it {new}, not {line[start:end]}, in line {node.lineno}", "".join(lines)
    return None


_KINDS: Final[tuple[Callable[[str, random.Random], Change | None], ...]] = (
    _rename_function,
    _rename_argument,
    _add_parameter,
    _add_docstring,
    _add_log_line,
    _early_return,
    _wrap_in_try,
    _change_number,
)
