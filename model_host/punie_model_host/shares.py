"""What clients get of a step: rows of the batch, and tokens of their prompts. Pure."""

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from punie_model_host.jobs import QUANTUM, Client, Job, Turn

if TYPE_CHECKING:
    from punie_model_host.engine_messages import Key

MIN_CHUNK: Final = 16
"""Tokens of a prompt that are worth a forward pass. A full batch leaves room for so many."""


def take[T: Turn](waiting: Collection[T], count: int, turns: Iterator[int]) -> list[T]:
    """Return the first `count` by turn. Where not all can be, who used up its quantum goes to the
    back."""
    line = sorted(waiting, key=lambda one: one.turn)
    if len(line) <= count:
        return line
    for one in line:
        if one.used >= QUANTUM:
            one.turn, one.used = next(turns), 0
    return sorted(line, key=lambda one: one.turn)[:count]


def rows(ready: Iterable[Job], capacity: int, turns: Iterator[int]) -> list[Job]:
    """Return who of the `ready` decodes: of each client the same number, which is what the client
    with fewest has; of a client alone, all. Within a client, and where there are more clients than
    rows, they take turns."""
    lines = _by_client(ready)
    if not lines or capacity < 1:
        return []
    clients: Iterable[Client] = lines
    each = min(len(line) for line in lines.values())
    if len(lines) > capacity:
        clients, each = take(lines, capacity, turns), 1
    each = min(each, capacity // min(len(lines), capacity))
    return [job for client in clients for job in take(lines[client], each, turns)]


class PromptShares:
    """Deficit round-robin between clients, over prompt tokens that were computed.

    Virtual time is what an equal share of each client would be by now, in tokens; a client's
    deficit is how far it is behind that. The largest deficit goes first and may take the whole
    step, so that a forward pass is worth its cost; what it leaves goes to the next. A client that
    had no prompts for a while has no deficit: it saves nothing up. Within a client aged requests go
    first, then those with least left.

    Before that, clients that join get their first tokens, of half the step, and so do short prompts
    that come: who joins is not behind a long prompt. A long one does wait for a shorter of its own
    client: what they begin with alike may be in the prefix cache then. None of this for a client
    that is a step ahead of its share; and not while there are aged ones: whoever comes, they go
    first.
    """

    def __init__(self) -> None:
        self._virtual = 0.0
        self._sharing: frozenset[Client] = frozenset()

    def computed(self, client: Client, tokens: int) -> None:
        """So many of its prompt tokens were computed."""
        client.spent += tokens
        self._virtual += tokens / max(1, len(self._sharing))

    def chunks(self, jobs: Iterable[Job], budget: int, *, whole: bool = False) -> dict[Key, int]:
        """Return how many tokens of whose prompts come now: `budget` in all, at most. A chunk is
        not below `MIN_CHUNK`, unless it ends its prompt. With `whole` few prompts are cut, because
        each chunk costs a look at all weights: the first new one that fits twice the budget is not,
        and beside another chunk none comes that is less than half of it and ends nothing."""
        lines = _by_client(jobs)
        self._share_between(lines)
        given = _Given(budget, whole=whole)
        self._begin(lines, given)
        for client in sorted(lines, key=lambda one: (one.spent, lines[one][0].remaining, one.turn)):
            for job in lines[client]:
                given.give(job, given.left)
        return given.tokens

    def _share_between(self, lines: dict[Client, list[Job]]) -> None:
        for client, line in lines.items():
            line.sort(key=lambda job: (job.credit <= 0, job.remaining, job.turn))
            if client not in self._sharing:
                client.spent = max(client.spent, self._virtual)
        self._sharing = frozenset(lines)

    def _begin(self, lines: dict[Client, list[Job]], given: _Given) -> None:
        waiting = [job for line in lines.values() for job in line]
        if len(waiting) == 1 or any(job.credit > 0 for job in waiting):
            return
        allowed = max(MIN_CHUNK, given.left // 2)
        ahead = self._virtual + given.left
        entitled = [line for client, line in lines.items() if client.spent <= ahead]
        first = [job for line in entitled if (job := _joins(line, allowed)) is not None]
        each = max(MIN_CHUNK, allowed // max(1, len(first)))
        for job in sorted(first, key=lambda job: (job.remaining, job.turn)):
            allowed -= given.give(job, min(each, allowed))


def _joins(line: list[Job], short: int) -> Job | None:
    """Return who of a client's prompts begins now, beside what is under way."""
    job = next((job for job in line if job.fresh), None)
    if job is None or (job.remaining > short and not all(job.fresh for job in line)):
        return None
    return job


class _Given:
    """A step's prompt tokens, while they are given away."""

    def __init__(self, budget: int, *, whole: bool) -> None:
        self.left = budget
        self.tokens: dict[Key, int] = {}
        self._new: set[Key] = set()
        self._least = budget // 2 if whole else 0
        self._stretch = budget if whole else 0

    def give(self, job: Job, most: int) -> int:
        """Give at most `most`, or all of a new prompt; return how many it got now."""
        key = job.ticket.key
        had = self.tokens.get(key, 0)
        rest = job.remaining - had
        tokens = min(most, self.left, rest)
        if tokens < 1 or had + tokens < min(MIN_CHUNK, job.remaining):
            return 0
        if job.fresh:
            self._new.add(key)
        if key in self._new and tokens == self.left and tokens < rest <= tokens + self._stretch:
            tokens, self._stretch = rest, 0
        elif tokens < rest and self.tokens.keys() - {key} and had + tokens < self._least:
            return 0
        job.fresh = False
        self.tokens[key] = had + tokens
        self.left = max(0, self.left - tokens)
        return tokens


def _by_client(jobs: Iterable[Job]) -> dict[Client, list[Job]]:
    lines: dict[Client, list[Job]] = {}
    for job in jobs:
        lines.setdefault(job.client, []).append(job)
    return lines
