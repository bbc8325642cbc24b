"""Who prefills, who decodes, who waits: the plan of each step. Pure: no MLX, and no clock but the
time that `plan` is given."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from punie_model_host import shares
from punie_model_host.admission import Admission, Fits
from punie_model_host.jobs import Client, Job, Phase, Ticket
from punie_model_host.shares import MIN_CHUNK, PromptShares
from punie_protocol.errors import Overloaded, PunieError
from punie_protocol.messages.common import Priority

if TYPE_CHECKING:
    from punie_model_host.engine_messages import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLimits:
    """`max_batch` rows at most are decoded at once; a step has `step_tokens` tokens, rows and
    prompts together, or `solo_tokens` of prompts while nobody decodes. `max_queued` requests may
    wait, `max_queued_client` of one client. With `whole_prompts` the tokens of a step are a goal:
    see `PromptShares.chunks`; and while more prompts are computed than rows decoded, they get what
    they get alone."""

    max_batch: int = 16
    step_tokens: int = 256
    solo_tokens: int = 256
    whole_prompts: bool = False
    max_queued: int = 256
    max_queued_client: int = 64

    def __post_init__(self) -> None:
        if self.max_batch < 1 or not MIN_CHUNK <= self.step_tokens <= self.solo_tokens:
            raise ValueError(f"no step can be planned within {self}")


@dataclass(frozen=True, slots=True)
class Plan:
    """A step: the rows that decode a token, in order, and the chunks of prompts, in tokens."""

    decode: tuple[Key, ...]
    prefill: tuple[tuple[Key, int], ...]


class Scheduler:
    """Interactive requests come before background ones, which get their turn when nothing
    interactive is inside, or when they aged: `AGEING` seconds without a token, and they count as
    interactive until their prompt is computed and a quantum decoded, one such row at a time.
    Clients share alike, however many requests they have: `Admission` says who comes in,
    `shares.rows` who decodes, `PromptShares` whose prompts are computed.

    While somebody urgent waits too long for memory, all that hold some run.

    Reports may come late: one about a request that is gone changes nothing.
    """

    def __init__(self, limits: ScheduleLimits, fits: Fits) -> None:
        self._limits = limits
        self._jobs: dict[Key, Job] = {}
        self._clients: dict[str, Client] = {}
        self._order = itertools.count()
        self._admission = Admission(limits.max_batch, fits, self._order)
        self._prompts = PromptShares()
        self._now = float("-inf")

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, key: object) -> bool:
        return key in self._jobs

    @property
    def queued(self) -> int:
        """Requests that wait to come in."""
        return len(self._in(Phase.QUEUED))

    @property
    def prefilling(self) -> int:
        """Requests inside whose prompt is not computed yet."""
        return len(self._in(Phase.PREFILL))

    @property
    def decoding(self) -> int:
        """Requests that decode, in turn."""
        return len(self._in(Phase.DECODE))

    @property
    def totals(self) -> list[int]:
        """Tokens that each request inside may have in the end."""
        return [job.ticket.total for job in self._jobs.values() if job.phase is not Phase.QUEUED]

    def per_client(self) -> dict[str, tuple[int, int]]:
        """Return of each client how many of its requests wait, and how many are inside."""
        counts: dict[str, tuple[int, int]] = {}
        for job in self._jobs.values():
            queued, inside = counts.get(job.client.id, (0, 0))
            waits = job.phase is Phase.QUEUED
            counts[job.client.id] = (queued + waits, inside + (not waits))
        return counts

    def add(self, ticket: Ticket) -> None:
        """Queue a request. Raises `PunieError` with `Overloaded` that names the limit, `ValueError`
        for a key that is here or a prompt without tokens."""
        if ticket.key in self._jobs or ticket.prompt < 1:
            raise ValueError(f"a request that cannot be queued: {ticket}")
        self._check_queue(ticket.client_id)
        client = self._client(ticket.client_id)
        client.requests += 1
        self._jobs[ticket.key] = Job(
            ticket=ticket,
            client=client,
            interactive=ticket.priority is Priority.INTERACTIVE,
            served=ticket.arrived,
            turn=next(self._order),
        )

    def remove(self, key: Key) -> bool:
        """Forget a request, wherever it is; False when it is not here."""
        job = self._jobs.pop(key, None)
        if job is None:
            return False
        job.client.requests -= 1
        if not job.client.requests:
            del self._clients[job.client.id]
        return True

    def cached(self, key: Key, tokens: int) -> None:
        """The first `tokens` of its prompt need no computing. May be said at any time, best before
        the first plan: the order of prompts goes by what is left of them."""
        if job := self._jobs.get(key):
            self._advance(job, min(tokens, job.ticket.prompt - 1))

    def prefilled(self, key: Key, tokens: int) -> None:
        """`tokens` more of its prompt were computed. `ValueError` when it has not so many left."""
        job = self._jobs.get(key)
        if job is None:
            return
        if not 0 <= tokens <= job.remaining:
            raise ValueError(f"request {key}: {tokens} tokens of a prompt with {job.remaining}")
        self._prompts.computed(job.client, tokens)
        self._advance(job, job.done + tokens)

    def decoded(self, key: Key, tokens: int = 1) -> None:
        """It got `tokens`."""
        if job := self._jobs.get(key):
            job.serve(tokens, self._now)
            job.client.used += tokens

    def plan(self, now: float, *, drain: bool = False) -> Plan:
        """Return the next step, at `now` seconds; with `drain` nobody comes in. Empty when there is
        nothing to do."""
        self._now = now
        for job in self._jobs.values():
            job.age(now)
        for job in [] if drain else self._admission.choose(self._jobs.values(), now):
            self._enter(job)
        reserved = self._reserved()
        decode = self._rows(reserved)
        prompts = [job for job in self._in(Phase.PREFILL) if job.urgent or not reserved]
        burst = self._limits.whole_prompts and len(prompts) > len(decode)
        budget = self._limits.solo_tokens
        if decode and not burst:
            budget = max(MIN_CHUNK, self._limits.step_tokens - len(decode))
        whole = self._limits.whole_prompts
        chunks = self._prompts.chunks(prompts, budget, whole=whole)
        return Plan(tuple(job.ticket.key for job in decode), tuple(chunks.items()))

    def rows(self) -> tuple[Key, ...]:
        """Return who decodes in this step, now that some prompts were computed since its plan."""
        return tuple(job.ticket.key for job in self._rows(self._reserved()))

    def pace(self, step_tokens: int) -> None:
        """A step has so many tokens from now on, twice as many of prompts while nobody decodes."""
        if step_tokens != self._limits.step_tokens:
            solo = 2 * step_tokens
            self._limits = replace(self._limits, step_tokens=step_tokens, solo_tokens=solo)

    def _reserved(self) -> bool:
        """Whether this step is for urgent requests alone."""
        return not self._admission.held_up and any(
            job.interactive and job.phase is not Phase.QUEUED for job in self._jobs.values()
        )

    def _rows(self, reserved: bool) -> list[Job]:
        ready = self._in(Phase.DECODE)
        capacity = min(self._limits.max_batch, self._limits.step_tokens)
        if not reserved:
            return shares.rows(ready, capacity, self._order)
        aged = [job for job in ready if job.credit > 0 and not job.interactive]
        beside = shares.take(aged, 1, self._order)
        interactive = [job for job in ready if job.interactive]
        return shares.rows(interactive, capacity - len(beside), self._order) + beside

    def _in(self, phase: Phase) -> list[Job]:
        return [job for job in self._jobs.values() if job.phase is phase]

    def _enter(self, job: Job) -> None:
        job.move(Phase.PREFILL if job.remaining else Phase.DECODE)

    def _advance(self, job: Job, done: int) -> None:
        """The first `done` tokens of its prompt are there."""
        if done <= job.done:
            return
        tokens, job.done = done - job.done, done
        job.serve(tokens, self._now)
        if not job.remaining:
            job.used, job.turn = 0, next(self._order)
            if job.phase is Phase.PREFILL:
                job.move(Phase.DECODE)

    def _client(self, id: str) -> Client:
        if id not in self._clients:
            self._clients[id] = Client(id=id, turn=next(self._order), entered=next(self._order))
        return self._clients[id]

    def _check_queue(self, client_id: str) -> None:
        queued: Sequence[Job] = self._in(Phase.QUEUED)
        ours = sum(job.client.id == client_id for job in queued)
        for count, most, whose in (
            (len(queued), self._limits.max_queued, "all clients together"),
            (ours, self._limits.max_queued_client, f"client {client_id}"),
        ):
            if count >= most:
                text = f"the model host's queue is full: {count} requests of {whose} wait"
                hint = f"try again in a moment; at most {most} may wait"
                raise PunieError(Overloaded(message=text, hint=hint))
