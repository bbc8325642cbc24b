"""Exact match through mlx-lm: whole calls and whole answers, greedy, in fp32 on the CPU.

A segment counts when every one of its tokens is the model's first choice after the true
history: that is when greedy decoding would write exactly this segment.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
from mlx.utils import tree_map

from punie_model_host.training.conversations import KINDS, Generator
from punie_model_host.training.handwritten import ANSWERS, CONVERSATIONS, PROGRAMS
from punie_model_host.training.render import call, render
from punie_model_host.training.tokenizer import CONTEXT, Encoder, load

SETS = {
    "known": {},
    "held_out_names": {"held_out_names": True},
    "held_out_phrases": {"held_out_phrases": True},
    "held_out_both": {"held_out_names": True, "held_out_phrases": True},
}
_SEED = 990_001


@dataclass
class Score:
    """Right and asked, for calls, answers and whole conversations."""

    call: list[bool] = field(default_factory=list)
    answer: list[bool] = field(default_factory=list)
    all: list[bool] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Shares of right segments; what was never asked is left out."""
        shares = {"call": self.call, "answer": self.answer, "all": self.all}
        return {name: round(sum(v) / len(v), 3) for name, v in shares.items() if v}


@dataclass
class Segment:
    """What the model writes in one turn, and what it would have written up to the first fault."""

    is_call: bool
    right: bool
    expected: str
    written: str


class Judge:
    """A loaded model that checks conversations."""

    def __init__(self, folder: Path):
        mx.set_default_device(mx.cpu)
        self.model, self.wrapper = mlx_lm.load(str(folder))
        self.model.update(tree_map(lambda w: w.astype(mx.float32), self.model.parameters()))
        self.encoder = Encoder(load(folder))

    def segments(self, messages: list[dict]) -> list[Segment]:
        """One segment per assistant message."""
        ids, mask = self.encoder.encode(messages)
        first = np.array(mx.argmax(self.model(mx.array([ids[:CONTEXT]]))[0], -1))
        out, start = [], None
        for i in range(1, min(len(ids), CONTEXT)):
            if mask[i] and start is None:
                start = i
            if mask[i] and ids[i] == self.encoder.end and start is not None:
                out.append(self._segment(ids[start : i + 1], first[start - 1 : i].tolist()))
                start = None
        return out

    def _segment(self, true: list[int], first: list[int]) -> Segment:
        decode = self.encoder.tokenizer.decode
        right = true == first
        cut = next((i for i, (a, b) in enumerate(zip(true, first, strict=True)) if a != b), len(true))
        text = decode(true, skip_special_tokens=False)
        written = decode(true[:cut] + first[cut : cut + 1], skip_special_tokens=False)
        return Segment(text.startswith("<tool_call>"), right, text, written)

    def same_ids(self, messages: list[dict]) -> bool:
        """Whether transformers' template and tokenizer give the ids training used."""
        ids = self.wrapper.apply_chat_template(messages, tokenize=True, return_dict=False)
        return list(ids) == self.encoder.encode(messages)[0]

    def write(self, messages: list[dict], most: int = 300) -> str:
        """Free greedy generation after the messages."""
        prompt = self.encoder.tokenizer.encode(render(messages, True)).ids
        return mlx_lm.generate(self.model, self.wrapper, prompt, max_tokens=most)


def _shown(kind: str, question: str, segment: Segment) -> str:
    return f"[{kind}] {question!r}\n   expected {segment.expected!r}\n   wrote    {segment.written!r}"


def generated(judge: Judge, options: dict, count: int, show: bool) -> dict[str, dict]:
    """Scores per kind over ``count`` single questions each, and over free conversations."""
    generator = Generator(_SEED, **options)
    scores: dict[str, Score] = defaultdict(Score)
    for kind in [*KINDS, "turns"]:
        for _ in range(count):
            turns = generator.rng.choice((2, 3)) if kind == "turns" else 1
            messages = generator.conversation(None if kind == "turns" else kind, turns).messages
            _score(judge, scores[kind], kind, messages, show)
    total = Score()
    for score in scores.values():
        for name in ("call", "answer", "all"):
            getattr(total, name).extend(getattr(score, name))
    return {kind: s.summary() for kind, s in scores.items()} | {"total": total.summary()}


def _score(judge: Judge, score: Score, kind: str, messages: list[dict], show: bool) -> None:
    segments = judge.segments(messages)
    for segment in segments:
        (score.call if segment.is_call else score.answer).append(segment.right)
        if show and not segment.right:
            print(_shown(kind, messages[0]["content"], segment))
    score.all.append(all(s.right for s in segments))


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


def _handwritten(judge: Judge) -> Iterable[tuple[str, list[dict], int]]:
    for question, program in PROGRAMS:
        yield "program", [{"role": "user", "content": question}, call(program)], 1
    for question, answer in ANSWERS:
        asked = {"role": "user", "content": question}
        yield "answer", [asked, {"role": "assistant", "content": answer}], 1
    for steps in CONVERSATIONS:
        yield "conversation", steps_to_messages(steps), 0


def handwritten(judge: Judge) -> dict[str, float | list[str]]:
    """Shares of right handwritten questions, and the wrong ones; always printed."""
    right: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for kind, messages, _ in _handwritten(judge):
        segments = judge.segments(messages)
        right[kind].append(all(s.right for s in segments))
        for segment in segments:
            if not segment.right:
                print(_shown(kind, messages[0]["content"], segment))
                wrong.append(messages[0]["content"])
    return {k: round(sum(v) / len(v), 3) for k, v in right.items()} | {"wrong": wrong}


def main(folder: Path, count: int, show: bool) -> None:
    """Prints failures, then one JSON line with all figures."""
    judge = Judge(folder)
    generator = Generator(_SEED + 1)
    samples = [generator.conversation().messages for _ in range(50)]
    result: dict = {"template_agrees": all(map(judge.same_ids, samples))}
    free = [judge.write([{"role": "user", "content": q}]) for q, _ in PROGRAMS[:3]]
    result["free_generation"] = free
    result["handwritten"] = handwritten(judge)
    for name, options in SETS.items() if count else ():
        result[name] = generated(judge, options, count, show)
    print(json.dumps(result))
