"""Random names: files, folders, identifiers, words, titles. Pools are split for evaluation.

A ``Names`` draws every name from one side of a fixed split (by hash): training never sees a
compound of the held-out side.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from punie_model_host.training.tables import tables

_TABLE = tables("names")


def pool(name: str) -> list[str]:
    """The words of one pool of ``data/names.toml``."""
    return _TABLE[name].split()


WORDS = pool("words")
EXTENSIONS = pool("extensions")
THINGS = pool("things")
"""Names from general knowledge, of which the model knows nothing."""
OUTSIDE_PHRASES: list[str] = _TABLE["outside_phrases"]
NICKNAMES: dict[str, list[str]] = _TABLE["nicknames"]
_MORE_WORDS, _WORD_ENDINGS = pool("more_words"), pool("word_endings")
_SYLLABLES, _ENDINGS = pool("syllables"), pool("endings")
_BASES, _SUFFIXES, _ACRONYMS = pool("bases"), pool("suffixes"), pool("acronyms")
_MODULES, _TEXTS, _TOP = pool("modules"), pool("texts"), pool("top_folders")
_KNOWN_FILES, _TITLE_WORDS = pool("known_files"), pool("title_words")
_DOCUMENT_EXTENSIONS, _CODE_EXTENSIONS = pool("document_extensions"), pool("code_extensions")
_ODD_WORDS: list[str] = _TABLE["odd_title_words"]


_LETTERS = "abcdefghijklmnopqrstuvwxyz" + "etaoinsrhldcum" * 2
_COMMON_FUNCTIONS = [
    "__init__",
    "__repr__",
    "__enter__",
    "__call__",
    "__len__",
    "main",
    "setup",
    "run",
]


@dataclass(frozen=True)
class Sort:
    """A sort of file: what answers call it, its glob, one extension, what users call it."""

    label: str
    glob: str
    extension: str
    words: tuple[str, ...] = ()


SORTS = [Sort(s["label"], s["glob"], s["extension"], tuple(s["words"])) for s in _TABLE["sorts"]]


class Names:
    """Draws names; ``held_out`` chooses the side of the split."""

    def __init__(self, rng: random.Random, held_out: bool = False):
        self.rng = rng
        self.held_out = held_out
        self._tree: list[str] = []

    def new_project(self) -> None:
        """Begin another project: half of them have a few folders, one below the other, that all
        of their files share; in the others every file is somewhere else."""
        self._tree = []
        if self.rng.random() < 0.5:
            return
        folders = [self.folder() for _ in range(self.rng.choice((1, 1, 2, 3, 4)))]
        for _ in range(self.rng.randrange(5)):
            folders.append(self.rng.choice(folders) + "/" + self.folder().split("/")[0])
        self._tree = folders

    def _ok(self, name: str) -> bool:
        return (zlib.crc32(name.lower().encode()) % 12 == 5) == self.held_out

    def _draw(self, make: Callable[[], str]) -> str:
        for _ in range(200):
            name = make()
            if self._ok(name):
                return name
        return name

    def invented(self) -> str:
        """A made-up word of two or three syllables."""
        rng = self.rng
        end = rng.choice(_ENDINGS) if rng.random() < 0.5 else ""
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3)))) + end

    def word(self) -> str:
        """One lower-case word: from the pools, with an ending, invented, or any letters.

        The variety is what makes copying general: every piece of the vocabulary has to turn up
        in names.
        """
        rng = self.rng
        roll = rng.random()
        if roll < 0.45:
            return rng.choice(WORDS)
        if roll < 0.65:
            return rng.choice(_MORE_WORDS)
        if roll < 0.78:
            return rng.choice(rng.choice((WORDS, _MORE_WORDS))) + rng.choice(_WORD_ENDINGS)
        if roll < 0.9:
            return self.invented()
        if roll < 0.97:
            letters = rng.choices(_LETTERS, k=rng.choice((2, 3, 4, 5, 6, 8)))
            return "".join(letters)
        return rng.choice(WORDS)[:3] + str(rng.randrange(100))

    def _parts(self, most: int = 3) -> list[str]:
        return [self.word() for _ in range(self.rng.choice(range(1, most + 1)))]

    def snake(self) -> str:
        """A snake_case identifier, sometimes private."""
        lead = self.rng.choice(("", "", "", "", "_"))
        return self._draw(lambda: lead + "_".join(self._parts()))

    def camel(self) -> str:
        """A CamelCase identifier, sometimes with an acronym or a class suffix."""
        rng = self.rng

        def make() -> str:
            parts = [p.capitalize() for p in self._parts(2)]
            if rng.random() < 0.15:
                parts.insert(0, rng.choice(_ACRONYMS))
            if rng.random() < 0.5:
                parts.append(rng.choice(_SUFFIXES))
            if rng.random() < 0.04:
                parts.append(str(rng.randrange(10)))
            return ("_" if rng.random() < 0.05 else "") + "".join(parts)

        return self._draw(make)

    def upper(self) -> str:
        """An UPPER_CASE identifier."""
        return self._draw(lambda: "_".join(self._parts()).upper())

    def function(self) -> str:
        """A function name."""
        rng = self.rng
        if rng.random() < 0.05:
            return rng.choice(_COMMON_FUNCTIONS)
        if rng.random() < 0.1:
            return self._draw(lambda: "test_" + "_".join(self._parts()))
        return self.snake()

    def base(self) -> str:
        """A class to inherit from, sometimes dotted."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.45 and not self.held_out:
            return rng.choice(_BASES)
        if roll < 0.08 or (self.held_out and roll < 0.1):
            return self.word() + "." + self.camel()
        return self.camel()

    def symbol(self) -> str:
        """Anything that can be defined: class, function or constant."""
        roll = self.rng.random()
        if roll < 0.4:
            return self.camel()
        if roll < 0.8:
            return self.function()
        if roll < 0.9:
            return self.upper()
        return self.camel() + "." + self.snake() if roll < 0.94 else self.word()

    def module(self) -> str:
        """A module name, sometimes dotted."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.5 and not self.held_out:
            return rng.choice(_MODULES)
        if roll < 0.65:
            return self._draw(lambda: ".".join(self._parts(3)))
        return self._draw(lambda: "_".join(self._parts(2)))

    def text(self) -> str:
        """Something to grep for."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.22 and not self.held_out:
            return rng.choice(_TEXTS)
        if roll < 0.45:
            return self.word()
        if roll < 0.62:
            return self.snake()
        if roll < 0.76:
            return self.camel()
        if roll < 0.86:
            return self.upper()
        if roll < 0.92:
            return self._draw(lambda: ".".join(self._parts(3)))
        if roll < 0.94:
            return str(rng.randrange(10, 100000))
        if roll < 0.95:
            return self.word() + "-" + self.word()
        if roll < 0.98:
            return " ".join(self._parts(3))
        return "__" + self.word() + "__"

    def stem(self) -> str:
        """A file name without its extension."""
        rng = self.rng
        roll = rng.random()
        if roll < 0.6:
            return self._draw(lambda: "_".join(self._parts(2)))
        if roll < 0.75:
            return self._draw(lambda: "-".join(self._parts(3)))
        if roll < 0.83:
            return self.camel()
        if roll < 0.88:
            return self.upper()
        if roll < 0.93:
            return rng.choice(("__init__", "__main__", "index", "main", "README", "conftest"))
        return f"{rng.randrange(1, 30):0{rng.choice((1, 2, 3))}d}-{self.word()}"

    def folder(self) -> str:
        """A folder path of one to three parts, without a trailing slash."""
        rng = self.rng
        depth = rng.choice((1, 1, 1, 1, 1, 1, 2, 2, 2, 3))
        parts = [
            rng.choice(_TOP) if rng.random() < 0.6 else self._draw(lambda: "_".join(self._parts(2)))
        ]
        parts += [self._draw(lambda: "_".join(self._parts(2))) for _ in range(depth - 1)]
        if rng.random() < 0.03:
            parts[0] = "." + parts[0]
        return "/".join(parts)

    def file(self, ext: str, folder: str = "", stem: str = "") -> str:
        """A relative path with the given extension (without its dot), below ``folder``."""
        rng = self.rng
        name = (stem or self.stem()) + ("." + ext if ext else "")
        deeper = ""
        if rng.random() < (0.2 if folder else 0.8 if self._tree else 0.55):
            deeper = rng.choice(self._tree) if self._tree else self.folder()
        return "/".join(p for p in (folder, deeper, name) if p)

    def document(self) -> str:
        """A file whose title one may ask for."""
        if self.rng.random() < 0.4 and not self.held_out:
            return self.rng.choice(_KNOWN_FILES)
        if self.rng.random() < 0.04:
            return self.file("")
        return self.file(self.rng.choice(_DOCUMENT_EXTENSIONS))

    def source(self) -> str:
        """A source file."""
        if self.rng.random() < 0.2 and not self.held_out:
            return self.rng.choice(_KNOWN_FILES)
        return self.file(self.rng.choice(_CODE_EXTENSIONS))

    def title(self) -> str:
        """A title: words of any kind, code names, digits, punctuation; one to ten words."""
        rng = self.rng
        words = [self._title_word() for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10)))]
        text = words[0]
        for word in words[1:]:
            text += (
                rng.choice((" ",) * 22 + (": ", " - ", ", ", " & ", " / ", ". ", " – ", " (", "; "))
                + word
            )
        text += ")" if "(" in text else ""
        roll = rng.random()
        if roll < 0.12:
            text += rng.choice((".", ".", "!", "?", " 🚀", ":", " ✨", "…"))
        if roll > 0.9:
            text = text[:1].upper() + text[1:].lower()
        return text.strip("\"' ") or "Notes"

    def _title_word(self) -> str:
        rng = self.rng
        roll = rng.random()
        if roll < 0.4:
            return rng.choice(_TITLE_WORDS)
        if roll < 0.6:
            return self.word().capitalize()
        if roll < 0.75:
            return self.word()
        if roll < 0.81:
            return self.camel()
        if roll < 0.86:
            return rng.choice((self.snake(), f"`{self.snake()}`", self.upper()))
        if roll < 0.92:
            a, b, c = (rng.randrange(20) for _ in range(3))
            return rng.choice((f"v{a}.{b}", str(rng.randrange(2030)), f"{a}.{b}.{c}", f"#{a}{b}"))
        if roll < 0.95:
            return rng.choice(_ODD_WORDS)
        return self.stem() + "." + rng.choice(_CODE_EXTENSIONS)
