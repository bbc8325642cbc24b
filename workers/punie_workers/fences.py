"""Whether the Python in an answer's fences parses. Lenient: a wrong alarm costs a model step."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator
from typing import Final

MAX_CHECKED: Final = 32_768
"""Characters of a fence; a longer one is not checked: parsing would hold up the event loop."""

_PYTHON: Final = frozenset({"python", "py", "python3"})
_FENCE: Final = re.compile(r"[ \t>]{0,40}(`{3,})[ \t]*(\w*)")
_LEFT_OUT: Final = ("...", "\N{HORIZONTAL ELLIPSIS}")
_SHELL: Final = re.compile(r"(?m)^([ \t]*)[!%].*$")


def broken_fence(text: str) -> str | None:
    """Return in words where the first Python fence of `text` that does not parse is wrong.

    Tolerated are interactive sessions, indented pieces, ``...`` and ``…`` for what is left out,
    headers without a body and clauses without their beginning.
    """
    for code in _python_fences(text):
        if (error := _error(code)) is not None:
            line = (error.text or "").strip()[:100]
            where = f"line {error.lineno or 1}" + (f" `{line}`" if line else "")
            return f"the Python in your answer does not parse: {where}: {error.msg}"
    return None


def _python_fences(text: str) -> Iterator[str]:
    """Yield the content of each closed Python fence. A fence ends with as many backticks."""
    ticks, language, lines = "", "", list[str]()
    for line in text.splitlines():
        fence = _FENCE.match(line)
        if not ticks:
            if fence:
                ticks, language, lines = fence[1], fence[2].lower(), []
        elif fence and fence[1] == ticks and line.strip(" \t>") == ticks:
            if language in _PYTHON:
                yield "\n".join(lines)
            ticks = ""
        else:
            lines.append(line)


def _error(code: str) -> SyntaxError | None:
    """Return why no reading of `code` parses, in the terms of the plain one."""
    if len(code) > MAX_CHECKED or code.lstrip().startswith(">>>"):
        return None
    plain = _SHELL.sub(r"\1pass", textwrap.dedent(code))
    error = _parse(plain)
    if error is None or any(mark in (error.text or "") for mark in _LEFT_OUT):
        return None
    return None if any(_parse(reading) is None for reading in _readings(plain)) else error


def _readings(code: str) -> Iterator[str]:
    """Yield what `code` may be a piece of."""
    last = next((line for line in reversed(code.splitlines()) if line.strip()), "")
    indent = last[: len(last) - len(last.lstrip())]
    endings = ["", f"\n{indent}    pass", "\ndef _(): pass", "\nfinally:\n    pass"]
    if "\n" not in code.strip():
        endings.append(": pass")
    for opening in ("", "if _:\n    pass\n", "try:\n    pass\n"):
        for ending in endings:
            yield f"{opening}{code}{ending}"
    yield "match _:\n" + textwrap.indent(code, "    ")
    yield f"async def _():\n{textwrap.indent(code, '    ')}"


def _parse(code: str) -> SyntaxError | None:
    """Return why `code` does not parse; ``None`` when it does, or when it is beyond the parser."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except SyntaxError as error:
        return error
    except RecursionError, MemoryError, ValueError:
        return None
    return None
