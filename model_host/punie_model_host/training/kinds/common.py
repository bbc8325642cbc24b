"""What the kinds share: the exchange, scopes, lists in answers, and errors."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from punie_model_host.training import programs
from punie_model_host.training.grammar import Phrases, fill, frame, phrase, place, quoted
from punie_model_host.training.names import Names


@dataclass
class Exchange:
    """One question with its program, the program's output and the answer.

    ``code`` and ``result`` are None for a direct answer. ``memory`` holds what a follow-up needs.
    """

    kind: str
    question: str
    answer: str
    code: str | None = None
    result: str | None = None
    memory: dict = field(default_factory=dict)


@dataclass
class Draw:
    """Where a kind takes its chances from: names and phrasings, each perhaps held out."""

    rng: random.Random
    names: Names
    held_out_phrases: bool = False
    long_lists: float = 0.05

    def ask(self, kind: Phrases, slots: dict[str, str], folder: str = "", file: str = "") -> str:
        """A question; ``{P}`` says the folder or file, or (perhaps) the whole project."""
        text = phrase(kind, self.rng, self.held_out_phrases)
        if folder or file:
            written = quoted(file, self.rng) if file else written_folder(folder, self.rng)
            slots = {**slots, "D": written}
            where = frame("files" if file else "folders", self.rng)
            if self.rng.random() < 0.12 or "{P}" not in text:
                lead = frame("file_leads" if file else "folder_leads", self.rng) + " "
                text = lead + text.replace("{P}", "")
            text = text.replace("{P}", " " + where)
        else:
            text = text.replace("{P}", place(self.rng))
        return fill(text, slots, self.rng)

    def folder(self, chance: float) -> str:
        """A folder to look in, or "" for the whole project."""
        return self.names.folder() if self.rng.random() < chance else ""

    def size(self, most: int) -> int:
        """How many results: few as a rule, sometimes none, seldom beyond ``most``."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.12:
            return 0
        if roll < 0.3:
            return 1
        if roll < 0.98 - 2 * self.long_lists:
            return rng.choice((2, 2, 2, 3, 3, 4, 5))
        if roll < 0.98 - self.long_lists / 2:
            return rng.randrange(6, most)
        return rng.randrange(most, most + 300)


def written_folder(folder: str, rng: random.Random) -> str:
    """A folder as users write it: some with a slash at the end, backticks or quotes."""
    roll = rng.random()
    if roll < 0.55:
        return folder
    if roll < 0.85:
        return folder + "/"
    mark = rng.choice("``'\"")
    return mark + folder + rng.choice(("", "/")) + mark


def any_count(rng: random.Random) -> int:
    """A count of any size, small ones as a rule."""
    roll = rng.random()
    if roll < 0.12:
        return 0
    if roll < 0.24:
        return 1
    return int(10 ** rng.uniform(0.3, 4.3)) if roll < 0.7 else rng.randrange(2, 60)


def listing(lines: list[str], total: int, most: int) -> list[str]:
    """The printed lines of a list that is cut at ``most``."""
    return lines[:most] + ([f"… and {total - most} more"] if total > most else [])


def bullets(head: str, lines: list[str]) -> str:
    """An answer with a list; the line that says "more" is no list item."""
    rows = [line if line.startswith("… and ") else "- " + line for line in lines]
    return "\n".join([head, *rows])


def hits(draw: Draw, total: int, name: Callable[[], str]) -> list[str]:
    """Random ``file:line`` results, sorted by file, several in one file now and then."""
    rng = draw.rng
    rows: list[tuple[str, int]] = []
    path = name()
    for _ in range(min(total, programs.LIST_LIMIT)):
        path = path if rng.random() < 0.4 else name()
        rows.append((path, int(10 ** rng.uniform(0, 3.2))))
    return [f"{path}:{line}" for path, line in sorted(set(rows))]


def failing(draw: Draw, exchange: Exchange, path: str, noun: str, chance: float) -> Exchange:
    """The same exchange with a failed program, for ``chance`` of the calls."""
    rng = draw.rng
    if not path or rng.random() >= chance:
        return exchange
    exchange.result, exchange.answer = error(path, noun, rng)
    exchange.memory = {}
    return exchange


def error(path: str, noun: str, rng: random.Random) -> tuple[str, str]:
    """An error line of ``execute_code`` and the answer to it."""
    roll = rng.random()
    if path.startswith(("..", "/")):
        return (
            f"error: outside_root: '{path}' is outside this project",
            f"{path} is outside this project, so I cannot read it.",
        )
    if roll < 0.6:
        noun = rng.choice((noun, noun, noun, "file"))
        return (
            f"error: not_found: no {noun} '{path}' in this project",
            f"There is no {noun} {path} in this project.",
        )
    if roll < 0.9:
        message, answer = rng.choice(_PATH_ERRORS[noun])
        return f"error: {message.format(p=path)}", answer.format(p=path)
    return rng.choice(_OTHER_ERRORS)


_PERMISSION = ("permission: no permission to read '{p}'", "I have no permission to read {p}.")
_PART = ("not_a_directory: a part of '{p}' is not a folder", "A part of {p} is not a folder.")
_PATH_ERRORS = {
    "file": (
        ("not_text: '{p}' is not a text file", "{p} is not a text file, so I cannot read it."),
        ("not_a_file: '{p}' is a folder, not a file", "{p} is a folder, not a file."),
        ("not_a_file: '{p}' is not a file", "{p} is not a file."),
        ("too_large: '{p}' is larger than 2 MB", "{p} is too large, so I cannot read it."),
        ("too_large: '{p}' has 7340032 bytes", "{p} is too large, so I cannot read it."),
        _PERMISSION,
        _PART,
    ),
    "folder": (
        ("not_a_directory: '{p}' is a file, not a folder", "{p} is a file, not a folder."),
        _PERMISSION,
        _PART,
    ),
}
_SLOW = "That took too long, so I stopped."
_PATTERN = "That is not a valid search pattern."
_FAILED = "That did not work, so I have no answer."
_OTHER_ERRORS = (
    ("error: time_limit: stopped after 30 seconds", _SLOW),
    ("error: time_limit: stopped after 10 seconds", _SLOW),
    ("error: time_limit: the program took too long", _SLOW),
    ("error: invalid_pattern: regex parse error: unclosed group", _PATTERN),
    ("error: invalid_pattern: regex parse error", _PATTERN),
    ("error: io: Input/output error", _FAILED),
    ("error: crashed: the sandbox ended unexpectedly", _FAILED),
    ("error: memory_limit: more than 64 MB", _FAILED),
    ("error: internal: sandbox", _FAILED),
    ("error: type_check: line 1: unknown name", _FAILED),
    ("error: IndexError: list index out of range", _FAILED),
    ("error: too_many_calls: more than 1000 tool calls", _FAILED),
)


def outside(draw: Draw, path: str, chance: float = 0.04) -> str:
    """The path, or now and then one outside the project."""
    rng = draw.rng
    if rng.random() >= chance:
        return path
    return rng.choice(("../", "../", "../../", "/", "/etc/")) + rng.choice(
        (path, draw.names.word())
    )
