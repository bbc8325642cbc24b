"""The answers that `benchmarks.engine_speculation` forces: to whom, of which tokens.

`Tasks` deals out edits so that no round repeats a file, and new code for what has nothing to match.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from benchmarks import code_tokens, edit_answers, edits
from benchmarks.edit_answers import Call, Shown
from punie_protocol.messages.to_model_host import AnyChatMessage

REWRITTEN: Final = (500, 1_100)
"""Tokens of a file that is written again: so that a run ends in minutes."""
REPLACED: Final = (120, 350)
"""Tokens of an answer that replaces pieces of a file."""
SEED: Final = "edits"


@dataclass(frozen=True, slots=True)
class Task:
    """A conversation and the text of its answer, in which `calls` are."""

    messages: Sequence[AnyChatMessage]
    answer: str
    calls: Sequence[Call] = ()


@cache
def all_edits() -> tuple[edits.Edit, ...]:
    """Return every edit that a task may be made of, in an order of the seed."""
    found = [edits.edit(name, text, SEED) for name, text in edits.modules()]
    kept = [one for one in found if one is not None and _fits(one.after, REWRITTEN)]
    random.Random(SEED).shuffle(kept)
    return tuple(kept)


def _fits(text: str, limits: tuple[int, int]) -> bool:
    return limits[0] <= sum(1 for _ in code_tokens.tokens(text)) <= limits[1]


def corpus() -> list[str]:
    """Return all texts of which a vocabulary is needed."""
    told = [edit_answers.SYSTEM, *(f"{tool}" for tool in edit_answers.TOOLS)]
    for edit in all_edits():
        told += [edit.asked, edit.before, edit.after]
        told += [task.answer for task in (rewrite(edit), replace(edit), write_new(edit, edit))]
    return told


def rewrite(edit: edits.Edit, shown: Shown = Shown.TEXT) -> Task:
    """Return the task of writing the file again."""
    calls = edit_answers.rewrite(edit)
    prose = f"I write `{edit.path}` again with these changes."
    return Task(
        edit_answers.conversation(edit, shown), edit_answers.answer(prose, calls), tuple(calls)
    )


def replace(edit: edits.Edit, shown: Shown = Shown.TEXT) -> Task:
    """Return the task of replacing pieces of the file."""
    calls = edit_answers.replace(edit)
    prose = f"I make these changes in `{edit.path}`."
    return Task(
        edit_answers.conversation(edit, shown), edit_answers.answer(prose, calls), tuple(calls)
    )


def write_new(seen: edits.Edit, written: edits.Edit) -> Task:
    """Return the task of writing a file that is new, with another in the conversation."""
    calls = [("write_file", {"path": written.path, "text": written.before})]
    prose = f"I write `{written.path}`."
    return Task(
        edit_answers.conversation(seen, Shown.TEXT),
        edit_answers.answer(prose, calls),
        tuple(calls),
    )


class Tasks:
    """Deals tasks out; each edit once, then again from the first."""

    def __init__(self) -> None:
        self._rewritten = list(all_edits())
        others = reversed(self._rewritten)  # so that no prompt is in the prefix cache
        self._replaced = [one for one in others if _fits(replace(one).answer, REPLACED)]
        self._at = dict.fromkeys(("rewrite", "replace"), 0)

    def rewrites(self, count: int, shown: Shown = Shown.TEXT) -> list[Task]:
        """Return so many whole files to write again."""
        return [rewrite(edit, shown) for edit in self._deal("rewrite", self._rewritten, count)]

    def replaces(self, count: int, shown: Shown = Shown.TEXT) -> list[Task]:
        """Return so many edits in pieces."""
        return [replace(edit, shown) for edit in self._deal("replace", self._replaced, count)]

    def new_code(self, count: int) -> list[Task]:
        """Return so many new files."""
        pairs = self._deal("rewrite", self._rewritten, 2 * count)
        return [write_new(*pair) for pair in zip(pairs[::2], pairs[1::2], strict=True)]

    def _deal(self, name: str, of: Sequence[edits.Edit], count: int) -> list[edits.Edit]:
        start = self._at[name]
        self._at[name] += count
        return [of[number % len(of)] for number in range(start, start + count)]


def misleading(
    count: int, vocabulary: int, seed: str, matched: int = 3
) -> tuple[list[int], list[int]]:
    """Return a prompt and an answer of `count` tokens: wherever the answer is, its last `matched`
    tokens stand in the prompt, and something else comes after them there. No n-gram of the answer
    comes twice in it."""
    chance = random.Random(seed)
    answer = chance.sample(range(8, vocabulary), count)
    prompt = []
    for at in range(count - matched):
        wrong = chance.choice(answer)
        if wrong == answer[at + matched]:
            wrong = 8 + (wrong - 7) % (vocabulary - 8)
        prompt.append([*answer[at : at + matched], wrong])
    chance.shuffle(prompt)
    return [token for piece in prompt for token in piece], answer
