"""Seeded, endless synthetic conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from punie_model_host.training.kinds import code, direct, files, followups, text
from punie_model_host.training.kinds.common import Draw, Exchange
from punie_model_host.training.names import WORDS, Names
from punie_model_host.training.render import call

KINDS = {
    "find": (files.find, 15),
    "count": (files.count, 8),
    "named": (files.named, 4),
    "total": (files.total, 2.5),
    "title": (text.title, 13),
    "lines": (text.lines, 3),
    "grep": (text.grep, 13),
    "grep_count": (text.grep_count, 4.5),
    "subclasses": (code.subclasses, 12),
    "definition": (code.definition, 7.5),
    "importers": (code.importers, 6),
    "symbols": (code.symbols, 6),
    "symbol_list": (code.symbol_list, 4),
    "concept": (direct.concept, 21),
    "compare": (direct.comparison, 9),
    "when": (direct.when, 4),
    "talk": (direct.talk, 6),
    "unknown": (direct.out_of_reach, 17),
}
"""Kind: (maker, weight)."""

MULTI_TURN = 0.22
"""Share of conversations with two or three questions."""
NOISY = 0.025
"""Share of questions with pasted text before or after them."""


@dataclass
class Conversation:
    """Messages as a chat template takes them, and the kind of every question."""

    kinds: list[str]
    messages: list[dict]


def messages_of(exchange: Exchange) -> list[dict]:
    """The two or four messages of an exchange."""
    out: list[dict] = [{"role": "user", "content": exchange.question}]
    if exchange.code is not None:
        out += [call(exchange.code), {"role": "tool", "content": exchange.result}]
    return [*out, {"role": "assistant", "content": exchange.answer}]


def _pasted(draw: Draw) -> str:
    rng, names = draw.rng, draw.names
    makers = (
        lambda: " ".join(rng.choice(WORDS) for _ in range(rng.randrange(4, 12))).capitalize() + ".",
        lambda: f"def {names.snake()}({names.word()}, {names.word()}):",
        lambda: f"    {names.snake()} = {names.word()}.{names.snake()}({rng.randrange(99)})",
        lambda: f'  File "{names.file("py")}", line {rng.randrange(999)}, in {names.snake()}',
        lambda: names.file("py"),
        lambda: f"- {names.title()}",
        lambda: "",
    )
    kinds = rng.sample(makers, 2)
    return "\n".join(rng.choice(kinds)() for _ in range(rng.choice((1, 2, 3, 5, 9, 15))))


def _noisy(draw: Draw, question: str) -> str:
    rng = draw.rng
    pasted = _pasted(draw)
    frames = (
        "Context:\n{p}\n\n{q}",
        "{p}\n\n{q}",
        "{q}\n\n{p}",
        "{q}\n\nContext:\n{p}",
        "Context: {p}\nQuestion: {q}",
        "{p}\n{q}",
        "```\n{p}\n```\n{q}",
        "{q}\n```\n{p}\n```",
    )
    return rng.choice(frames).format(p=pasted, q=question)


class Generator:
    """Draws conversations; equal seeds give equal sequences.

    ``held_out_names`` and ``held_out_phrases`` choose what training never sees.
    """

    def __init__(self, seed: int, held_out_names: bool = False, held_out_phrases: bool = False):
        self.rng = random.Random(seed)
        self.draw = Draw(self.rng, Names(self.rng, held_out_names), held_out_phrases)
        self.weights = [weight for _, weight in KINDS.values()]

    def exchange(self, kind: str | None = None) -> Exchange:
        """One question on its own."""
        self.draw.names.new_project()
        kind = kind or self.rng.choices(list(KINDS), self.weights)[0]
        return KINDS[kind][0](self.draw)

    def _next(self, last: Exchange) -> Exchange:
        roll = self.rng.random()
        if roll < 0.08:
            return followups.thanks(self.draw)
        following = followups.follow_up(self.draw, last) if roll < 0.75 else None
        return following or self.exchange()

    def conversation(self, kind: str | None = None, turns: int | None = None) -> Conversation:
        """A conversation of one question, or now and then of two or three."""
        if turns is None:
            turns = self.rng.choice((2, 2, 3)) if self.rng.random() < MULTI_TURN else 1
        exchanges = [self.exchange(kind)]
        if kind is None and self.rng.random() < NOISY:
            exchanges[0].question = _noisy(self.draw, exchanges[0].question)
        while len(exchanges) < turns:
            exchanges.append(self._next(exchanges[-1]))
        messages = [message for exchange in exchanges for message in messages_of(exchange)]
        return Conversation([exchange.kind for exchange in exchanges], messages)

    def drill(self) -> Conversation:
        """A copying exercise for the start of training: "Repeat a/b.py"."""
        names = self.draw.names
        makers = (names.text, names.camel, names.document, names.title, names.folder, names.source)
        parts = [self.rng.choice(makers)() for _ in range(self.rng.choice((1, 2, 3, 5, 8)))]
        copied = "\n".join(parts)
        return Conversation(
            ["drill"],
            [
                {"role": "user", "content": "Repeat " + copied},
                {"role": "assistant", "content": copied},
            ],
        )

    def __iter__(self) -> Iterator[Conversation]:
        while True:
            yield self.conversation()
