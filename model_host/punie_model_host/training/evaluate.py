"""Exact match of whole calls and whole answers, greedy.

A segment counts when every one of its tokens is the model's first choice after the true
history: that is when greedy decoding would write exactly this segment.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from punie_model_host.training.conversations import KINDS, Generator
from punie_model_host.training.handwritten import ANSWERS, CONVERSATIONS, PROGRAMS
from punie_model_host.training.judges import Judge, MlxJudge, TorchJudge
from punie_model_host.training.render import call, call_text
from punie_model_host.training.tokenizer import CONTEXT

SETS = {
    "known": {},
    "held_out_names": {"held_out_names": True},
    "held_out_phrases": {"held_out_phrases": True},
    "held_out_both": {"held_out_names": True, "held_out_phrases": True},
}
_SEED = 990_001


@dataclass
class Score:
    """Right or wrong for every call, every answer and every whole conversation."""

    call: list[bool] = field(default_factory=list)
    answer: list[bool] = field(default_factory=list)
    all: list[bool] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Shares of right segments; what was never asked is left out."""
        shares = {"call": self.call, "answer": self.answer, "all": self.all}
        return {name: round(sum(v) / len(v), 3) for name, v in shares.items() if v}

    def add(self, other: Score) -> None:
        """Takes over the outcomes of another score."""
        self.call += other.call
        self.answer += other.answer
        self.all += other.all


@dataclass
class Segment:
    """What one assistant turn should be, and what the model wrote up to its first fault."""

    is_call: bool
    right: bool
    expected: str
    written: str

    def shown(self, kind: str, question: str) -> str:
        """Three lines for a person."""
        head = f"[{kind}] {question!r}"
        return f"{head}\n   expected {self.expected!r}\n   wrote    {self.written!r}"


def segments(judge: Judge, messages: list[dict]) -> list[Segment]:
    """One segment per assistant message; conversations are cut at the model's context."""
    ids, mask = judge.encoder.encode(messages)
    ids = ids[:CONTEXT]
    first = judge.choices(ids)
    out: list[Segment] = []
    start = 0
    for i in range(1, len(ids)):
        if mask[i] and not mask[i - 1]:
            start = i
        if mask[i] and ids[i] == judge.encoder.end:
            out.append(_segment(judge, ids[start : i + 1], first[start - 1 : i]))
    return out


def _segment(judge: Judge, true: list[int], first: list[int]) -> Segment:
    pairs = enumerate(zip(true, first, strict=True))
    cut = next((i for i, (a, b) in pairs if a != b), len(true))
    decode = judge.encoder.tokenizer.decode
    expected = decode(true, skip_special_tokens=False)
    written = decode(true[:cut] + first[cut : cut + 1], skip_special_tokens=False)
    return Segment(expected.startswith("<tool_call>"), true == first, expected, written)


def _score(judge: Judge, kind: str, messages: list[dict], show: bool) -> Score:
    found = segments(judge, messages)
    for segment in found:
        if show and not segment.right:
            print(segment.shown(kind, messages[0]["content"]))
    return Score(
        [s.right for s in found if s.is_call],
        [s.right for s in found if not s.is_call],
        [all(s.right for s in found)],
    )


def generated(judge: Judge, options: dict, count: int, show: bool) -> dict[str, dict]:
    """Scores per kind over ``count`` single questions each, and over longer conversations."""
    generator = Generator(_SEED, **options)
    scores: dict[str, Score] = defaultdict(Score)
    for kind in [*KINDS, "turns"]:
        for _ in range(count):
            turns = generator.rng.choice((2, 3)) if kind == "turns" else 1
            talk = generator.conversation(None if kind == "turns" else kind, turns)
            score = _score(judge, kind, talk.messages, show)
            scores[kind].add(score)
            scores["overall"].add(score)
    return {kind: score.summary() for kind, score in scores.items()}


def steps_to_messages(steps: list[tuple[str, str, str]]) -> list[dict]:
    """A handwritten conversation as messages."""
    messages = []
    for question, program, text in steps:
        if question:
            messages.append({"role": "user", "content": question})
        if program:
            messages += [call(program), {"role": "tool", "content": text}]
        else:
            messages.append({"role": "assistant", "content": text})
    return messages


def _handwritten() -> Iterable[tuple[str, list[dict]]]:
    for question, program in PROGRAMS:
        yield "program", [{"role": "user", "content": question}, call(program)]
    for question, answer in ANSWERS:
        asked = {"role": "user", "content": question}
        yield "answer", [asked, {"role": "assistant", "content": answer}]
    for steps in CONVERSATIONS:
        yield "conversation", steps_to_messages(steps)


def handwritten(judge: Judge) -> dict[str, float | list[str]]:
    """Shares of right handwritten questions and the wrong ones; faults are printed."""
    right: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for kind, messages in _handwritten():
        score = _score(judge, kind, messages, show=True)
        right[kind] += score.all
        wrong += [] if all(score.all) else [messages[0]["content"]]
    return {k: round(sum(v) / len(v), 3) for k, v in right.items()} | {"wrong": wrong}


def _free(judge: Judge, count: int) -> float:
    """The share of handwritten programs that free generation writes exactly."""
    asked = PROGRAMS[:count]
    written = [judge.write([{"role": "user", "content": question}]) for question, _ in asked]
    texts = [call_text(program) for _, program in asked]
    return sum(a == b for a, b in zip(written, texts, strict=True)) / len(asked)


def main(folder: Path, count: int, show: bool, backend: str) -> None:
    """Prints failures, then one JSON line with all figures."""
    judge: Judge = MlxJudge(folder) if backend == "mlx" else TorchJudge(folder)
    generator = Generator(_SEED + 1)
    samples = [generator.conversation().messages for _ in range(50)]
    result: dict = {
        "backend": backend,
        "template_agrees": all(map(judge.template_agrees, samples)),
        "handwritten": handwritten(judge),
        "handwritten_free": _free(judge, 10 if backend == "mlx" else 3),
    }
    for name, options in SETS.items() if count else ():
        result[name] = generated(judge, options, count, show)
    print(json.dumps(result))
