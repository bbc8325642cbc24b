"""How a rule's ``command`` reads what is run. Pure.

A rule that allows is read to the letter: the command begins with its words. A text for a shell is
such a command only when a shell would do nothing with it but split it.

One that forbids is read widely: its words count anywhere in the command or in a text for a shell
in there, whatever stands before them (``env A=1 git push``, ``sh -c 'cd x && git push'``), by the
name of the program wherever it lies, with options between them (``git -C x push``). It cannot
read what is not written there: a script, a variable, what another program makes of its arguments.
So a rule is a guard, and the sandbox the boundary; and a text that a shell would work out first
(`is_opaque`) is not let through by a mode while a rule forbids commands.
"""

import posixpath
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final

from punie_protocol.permissions import command_words

SHELL: Final = ("/bin/sh", "-c")
"""What runs a text."""

type Words = tuple[str, ...]

_MAX_DEPTH: Final = 4
_PLAIN: Final = re.compile(r"[\w@%+=:,./ -]+", re.ASCII)
"""A text that a shell only splits."""
_ASSIGNMENT: Final = re.compile(r"\w+=", re.ASCII)
_IFS: Final = re.compile(r"\$(?:IFS\b|\{IFS[^}]*\})")
_SEPARATORS: Final = re.compile(r"[;&|()<>`\n\r]|\$(?=[({])")
_TEXT: Final = re.compile(r"[;&|()<>`{},\s]")
_WORKED_OUT: Final = re.compile(r"[$`*?\[{\\~]|\b(?:eval|source|alias)\b|(?:^|[;&|\s])\.\s")
_SHELLS: Final = frozenset(
    {"sh", "bash", "dash", "zsh", "ksh", "fish", "busybox", "csh", "tcsh"}
    | {"ash", "rbash", "mksh", "yash", "pwsh", "nu"}
)
_QUOTES: Final = str.maketrans("{},", "   ", "\"'\\")
"""Without quotes, and as if braces had been expanded."""


def shell_text(command: Words) -> str:
    """Return the text that `command` has a shell run, empty for any other command."""
    return command[2] if command[:2] == SHELL and len(command) == 3 else ""


def shown(command: Words) -> str:
    """Return a command as a person writes it, whole."""
    return shell_text(command) or shlex.join(command)


def begins(rule: str, command: Words) -> bool:
    """Whether `command` is one that `rule` allows."""
    words, text = _words(rule), shell_text(command)
    if command[: len(words)] == words:
        return True
    is_plain = _PLAIN.fullmatch(text) and not _ASSIGNMENT.match(text.strip())
    return bool(is_plain) and tuple(text.split())[: len(words)] == words


def occurs(rule: str, command: Words) -> bool:
    """Whether `command` does, as far as one can read it, what `rule` forbids."""
    words = _words(rule)
    return any(_stands_in(words, segment) for segment in _segments(command))


def is_opaque(command: Words) -> bool:
    """Whether a shell would work out first what there is to run."""
    if not any(posixpath.basename(word) in _SHELLS for word in command):
        return False
    return any(_WORKED_OUT.search(word) for word in command)


@lru_cache(maxsize=4096)
def _words(rule: str) -> Words:
    return command_words(rule)


def _stands_in(words: Words, segment: Sequence[str]) -> bool:
    """Whether `words` stand in `segment`, the first by the name of a program, options and a value
    of each between them. One pass, whatever a model wrote: it holds up the loop."""
    fresh: set[int] = set()  # how many of the words stood up to the word before
    waiting: set[int] = set()  # the same, with options since
    after_option = False
    for word in segment:
        found = {count + 1 for count in fresh | waiting if words[count] == word}
        if words[0] in (word, posixpath.basename(word)):
            found.add(1)
        if len(words) in found:
            return True
        is_option = word.startswith("-")
        if is_option:
            waiting |= fresh
        elif not after_option:
            waiting = set()
        fresh, after_option = found, is_option
    return False


@lru_cache(maxsize=1024)
def _segments(command: Words) -> tuple[Words, ...]:
    return tuple(dict.fromkeys(_read(command, _MAX_DEPTH)))


def _read(command: Words, depth: int) -> Iterator[Words]:
    """Yield the words themselves, then those of each part of a text among them."""
    yield command
    for word in command:
        if depth and _is_text(word):
            for part in _parts(word):
                yield from _read(part, depth - 1)


def _is_text(word: str) -> bool:
    return bool(_TEXT.search(word))


def _parts(text: str) -> Iterator[Words]:
    """Yield the words of each part of a text, as a shell splits it, and as if no quote counted."""
    text = _IFS.sub(" ", text.replace("\\\n", ""))
    try:
        lexer = shlex.shlex(text.replace("\n", ";"), posix=True, punctuation_chars=";&|()<>")
        lexer.commenters = ""
        lexer.whitespace_split = True
        part: list[str] = []
        for token in lexer:
            if set(token) <= set(";&|()<>"):
                yield tuple(part)
                part = []
            else:
                part.append(token)
        yield tuple(part)
    except ValueError:  # an open quote: what follows says enough
        pass
    for piece in _SEPARATORS.split(text):
        yield tuple(piece.translate(_QUOTES).split())
