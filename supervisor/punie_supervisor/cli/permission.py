"""A permission question in the terminal: shown on stderr, answered on standard input."""

import asyncio
import difflib
import os
import sys
import termios
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from msgspec import Raw

from punie_protocol.permissions import Answer, TrustAnswer
from punie_protocol.verbatim import unfenced
from punie_supervisor.cli import output

MAX_LINES: Final = 200
"""Lines of a diff or a text that are shown; the rest is counted. What is run is shown whole."""
_EXECUTE: Final = "execute"

_OUR_KEYS: Final[dict[str, str]] = {
    Answer.ALLOW_ONCE: "y",
    Answer.ALLOW_FOR_SESSION: "s",
    Answer.REJECT_ONCE: "n",
    Answer.REJECT_ALWAYS: "never",
    TrustAnswer.TRUST: "y",
    TrustAnswer.IGNORE: "n",
}
_WORDS: Final = {"yes": "y", "session": "s", "no": "n"}


class _Text(msgspec.Struct):
    text: str = ""


class _Content(msgspec.Struct, rename="camel"):
    type: str
    content: _Text | None = None
    path: str = ""
    old_text: str | None = None
    new_text: str = ""


class _ToolCall(msgspec.Struct, rename="camel"):
    tool_call_id: str
    title: str | None = None
    kind: str | None = None
    content: list[_Content] | None = None
    raw_input: Any = None


class _Option(msgspec.Struct, rename="camel"):
    option_id: str
    name: str = ""
    kind: str = ""

    @property
    def refuses(self) -> bool:
        return self.kind.startswith("reject")


class Asked(msgspec.Struct, rename="camel"):
    """Params of ``session/request_permission``, the part that is shown."""

    session_id: str
    tool_call: _ToolCall
    options: list[_Option]

    @property
    def title(self) -> str:
        """What it is about, in one line."""
        return output.printable(self.tool_call.title or self.tool_call.tool_call_id)

    def refuses(self, option: str | None) -> bool:
        """Whether an answer is a no; a dismissal is one."""
        return option is None or any(o.refuses for o in self.options if o.option_id == option)

    @property
    def is_about_settings(self) -> bool:
        """Whether it is asked if a project's own settings count."""
        return any(o.option_id == TrustAnswer.TRUST for o in self.options)

    def is_of(self, prompt_id: str) -> bool:
        """Whether it is about that prompt: about a call of it, or about the session itself."""
        owner = self.tool_call.tool_call_id.partition(":")[0]
        return owner in (prompt_id, self.session_id)


def decode(params: Raw) -> Asked:
    """Return the question."""
    return msgspec.json.decode(params, type=Asked)


def outcome(option: str | None) -> dict[str, Any]:
    """Return the answer for the daemon; ``None``: the question was dismissed."""
    if option is None:
        return {"outcome": {"outcome": "cancelled"}}
    return {"outcome": {"outcome": "selected", "optionId": option}}


def is_interactive() -> bool:
    """Whether somebody can be asked: both ends of the dialog are a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


async def ask(asked: Asked) -> str | None:
    """Show the question and return the id of the option chosen, ``None`` at the end of input.

    Waits as long as the person does. What was typed before the question is no answer to it.
    Cancelled, it takes the question back.
    """
    output.clear_progress()
    _forget_input()
    choices = _choices(asked)
    _write("".join(f"{line}\n" for line in render(asked, colours=output.colours(sys.stderr))))
    try:
        while True:
            _write(f"{', '.join(_keys(asked))}? ")
            if (line := await _line()) is None:
                _write("\n")
                return None
            if (chosen := choices.get(line.strip().lower())) is not None:
                return chosen
            _write(f"That is no answer. Type one of: {', '.join(_keys(asked))}\n")
    except asyncio.CancelledError:
        _write("\n")
        output.say("the question is withdrawn")
        raise


def render(asked: Asked, *, colours: bool) -> Iterator[str]:
    """Yield the lines of a question: what is to be done, its diffs and texts, the choices."""
    yield output.paint(f"punie wants to: {asked.title}", "1", colours=colours)
    call = asked.tool_call
    shown = _whole if call.kind == _EXECUTE else _cut
    for content in call.content or []:
        if content.type == "diff":
            yield from _diff(content, colours)
        elif content.content is not None:
            yield from shown(_indented(unfenced(content.content.text)))
    if not call.content:
        yield from shown(_arguments(call.raw_input))
    for key, option in zip(_keys(asked), asked.options, strict=True):
        yield f"  [{key}] {output.printable(option.name)}"


def _arguments(given: Any) -> list[str]:
    """Return what a call without a diff was given, whole: a title shows the beginning only."""
    lines: list[str] = []
    if isinstance(given, dict):
        for name, value in given.items():
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            lines += _indented(f"{name}: {text}") if text else []
    return lines


def _indented(text: str) -> list[str]:
    return [f"  {output.printable(line)}" for line in text.splitlines()]


def _cut(lines: list[str]) -> Iterator[str]:
    yield from lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        yield f"  … {len(lines) - MAX_LINES} more lines"


def _whole(lines: list[str]) -> Iterator[str]:
    """Yield every line: of what is run, none may be allowed unseen."""
    yield from lines
    if len(lines) > MAX_LINES:
        yield f"  (these were {len(lines)} lines: scroll up to see them all)"


def _diff(content: _Content, colours: bool) -> Iterator[str]:
    lines = list(
        difflib.unified_diff(
            (content.old_text or "").splitlines(),
            content.new_text.splitlines(),
            content.path if content.old_text is not None else "(new file)",
            content.path,
            lineterm="",
        )
    )
    yield from _cut([f"  {_painted(line, colours)}" for line in lines])


def _painted(line: str, colours: bool) -> str:
    code = {"+": "32", "-": "31", "@": "36"}.get(line[:1], "")
    return output.paint(output.printable(line), code, colours=colours)


def _keys(asked: Asked) -> list[str]:
    """Return for each option what is typed for it: a letter for ours, else its number."""
    return [_OUR_KEYS.get(o.option_id, str(n)) for n, o in enumerate(asked.options, 1)]


def _choices(asked: Asked) -> dict[str, str]:
    """Return the option each input stands for."""
    by_key = {key: o.option_id for key, o in zip(_keys(asked), asked.options, strict=True)}
    if asked.is_about_settings:
        by_key |= {str(n): o.option_id for n, o in enumerate(asked.options, 1)}
    return by_key | {word: by_key[key] for word, key in _WORDS.items() if key in by_key}


def _write(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _forget_input() -> None:
    if sys.stdin.isatty():
        termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)


async def _line() -> str | None:
    """Return a line of standard input, ``None`` at its end. The terminal hands over whole lines,
    so what is read at once is one."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    fd = sys.stdin.fileno()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
    try:
        data = os.read(fd, 4096)
    except OSError:  # the terminal is gone
        return None
    return data.decode(errors="replace") if data else None
