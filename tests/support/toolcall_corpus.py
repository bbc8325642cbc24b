"""The corpus of tool calls as models write them, well and badly, and how many are handled.

``tests/data/toolcalls`` holds entries written by hand (``handwritten.jsonl``) and made by
`tests.support.toolcall_generator` (``generated.jsonl``). What is expected of each kind is in
``docs/reference/tool-calls.md``.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, assert_never

import msgspec

from punie_model_host.answer import Call, Malformed, Piece, Text, Thinking
from punie_model_host.calls.formats import ToolCallFormat
from punie_model_host.toolcalls import AnswerParser

FOLDER: Final = Path(__file__).parents[1] / "data" / "toolcalls"
FILES: Final = ("handwritten.jsonl", "generated.jsonl")
WELL_FORMED: Final = "well-formed"
"""The kind of the entries that nothing is wrong with."""
_RANDOM_CUTS: Final = 3


class NamedCall(msgspec.Struct, frozen=True):
    """A call and its arguments."""

    name: str
    arguments: dict[str, Any]


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer comes to. `fault` is (part of) the reason why a call cannot be made."""

    calls: list[NamedCall] = []
    text: str = ""
    thinking: str = ""
    fault: str | None = None

    def fits(self, expected: Outcome) -> bool:
        """Whether it is what was expected; numbers are of the same type."""
        mine = self.fault is not None and expected.fault is not None
        fault = expected.fault in self.fault if mine else self.fault == expected.fault
        return fault and _comparable(self) == _comparable(expected)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An answer, and what it is to become. `cut`: it ended at the limit of tokens; `thinking`: it
    begins inside the thinking. `schemas` names one of ``schemas.json``."""

    id: str
    kind: str
    format: ToolCallFormat
    text: str
    expect: Outcome
    schemas: str = "agent"
    cut: bool = False
    thinking: bool = False
    note: str = ""


class Share(msgspec.Struct, frozen=True):
    """How many malformed entries were handled as documented, in all and by kind (handled, total);
    the ids of those that were not."""

    handled: int
    total: int
    by_kind: dict[str, tuple[int, int]]
    failed: list[str]

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.handled / self.total


def entries() -> list[Entry]:
    """Return the corpus."""
    lines = [line for name in FILES for line in (FOLDER / name).read_text("utf-8").splitlines()]
    return [msgspec.json.decode(line, type=Entry) for line in lines]


def schemas() -> dict[str, Any]:
    """Return the schemas that entries name."""
    return json.loads((FOLDER / "schemas.json").read_text("utf-8"))


def outcome(entry: Entry, chunks: Sequence[str]) -> Outcome:
    """Return what an entry's text comes to when it arrives in `chunks`."""
    parser = AnswerParser(schemas()[entry.schemas], entry.format, thinking=entry.thinking)
    pieces = [piece for chunk in chunks for piece in parser.feed(chunk)]
    return _joined([*pieces, *parser.finish(cut=entry.cut)])


def is_handled(entry: Entry) -> bool:
    """Whether an entry comes to what is expected: whole, by characters, and cut at random."""
    rng = random.Random(entry.id)
    ways = [[entry.text], list(entry.text)]
    ways += [cut_at_random(entry.text, rng) for _ in range(_RANDOM_CUTS)]
    return all(outcome(entry, chunks).fits(entry.expect) for chunks in ways)


def share() -> Share:
    """Return how many malformed entries are handled as documented."""
    total: Counter[str] = Counter()
    handled: Counter[str] = Counter()
    failed: list[str] = []
    for entry in entries():
        if entry.kind == WELL_FORMED:
            continue
        good = is_handled(entry)
        total[entry.kind] += 1
        handled[entry.kind] += good
        failed += [] if good else [entry.id]
    by_kind = {kind: (handled[kind], number) for kind, number in sorted(total.items())}
    return Share(handled.total(), total.total(), by_kind, failed)


def cut_at_random(text: str, rng: random.Random) -> list[str]:
    """Return `text` in some pieces."""
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randint(1, 8)))
    return [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]


def _joined(pieces: Iterable[Piece]) -> Outcome:
    calls: list[NamedCall] = []
    text = thinking = ""
    fault: str | None = None
    for piece in pieces:
        match piece:
            case Text(more):
                text += more
            case Thinking(more):
                thinking += more
            case Call(name, arguments):
                calls.append(NamedCall(name, json.loads(arguments)))
            case Malformed(reason):
                fault = reason
            case _:
                assert_never(piece)
    return Outcome(calls, text, thinking, fault)


def _comparable(outcome: Outcome) -> str:
    """As JSON: there 1, 1.0 and true differ, and the order of keys counts."""
    return json.dumps([msgspec.to_builtins(outcome.calls), outcome.text, outcome.thinking])
