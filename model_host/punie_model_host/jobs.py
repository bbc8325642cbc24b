"""What the scheduler knows of a request, and of a client. Pure data; tokens are counted, never
seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from punie_model_host.engine_messages import Key
    from punie_protocol.messages.common import Priority

QUANTUM: Final = 64
"""Tokens a row decodes before another of those that take turns with it does: rows change seldom,
because a row that leaves the batch is copied out of it."""
AGEING: Final = 20.0
"""Seconds without a token after which a request is aged."""
HEAD_PATIENCE: Final = 2.0
"""Seconds a request that does not fit into memory may be overtaken by smaller ones."""


class Phase(StrEnum):
    """Where a request is. It is gone, from any phase, when it is removed."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"


NEXT: Final[Mapping[Phase, frozenset[Phase]]] = {
    Phase.QUEUED: frozenset({Phase.PREFILL, Phase.DECODE}),
    Phase.PREFILL: frozenset({Phase.DECODE}),
    Phase.DECODE: frozenset(),
}
"""Who comes in prefills, unless nothing of its prompt but the last token is left to compute."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request as the scheduler sees it: `prompt` tokens to compute at most, `total` with what it
    may generate, `arrived` in seconds of the clock that `plan` is given."""

    key: Key
    client_id: str
    priority: Priority
    prompt: int
    total: int
    arrived: float


@dataclass(slots=True, eq=False)
class Turn:
    """One of those who take turns: the lowest `turn` is first, `used` tokens of it are gone."""

    turn: int
    used: int = 0


@dataclass(slots=True, eq=False, kw_only=True)
class Client(Turn):
    """A client (project) with requests. `entered` orders clients by who came in last, `spent` is
    its part of the prompts' virtual time, in tokens."""

    id: str
    entered: int
    requests: int = 0
    spent: float = 0.0


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Turn):
    """A request; somebody waits for it if it is `interactive`. Keys and values of the first `done`
    tokens of its prompt are there. `served` is when it last got a token, `blocked` since when it
    does not fit into memory. While it has `credit`, in tokens, it goes before those of its kind,
    and as if it were interactive."""

    ticket: Ticket
    client: Client
    interactive: bool
    served: float
    phase: Phase = Phase.QUEUED
    done: int = 0
    credit: int = 0
    fresh: bool = True
    blocked: float | None = None

    @property
    def urgent(self) -> bool:
        """Whether it counts as interactive now."""
        return self.credit > 0 or self.interactive

    @property
    def remaining(self) -> int:
        """Prompt tokens to compute before it decodes: its last one is the first decode's input."""
        return self.ticket.prompt - 1 - self.done

    def move(self, phase: Phase) -> None:
        """Enter `phase`; `ValueError` when the table has no such way."""
        if phase not in NEXT[self.phase]:
            raise ValueError(f"request {self.ticket.key} is in {self.phase}, not before {phase}")
        self.phase = phase

    def age(self, now: float) -> None:
        """Give it credit when it was not served for too long: for the rest of its prompt and a
        quantum."""
        if self.credit <= 0 and now - self.served >= AGEING:
            self.credit = max(0, self.remaining) + QUANTUM

    def serve(self, tokens: int, now: float) -> None:
        """It got `tokens`."""
        self.used += tokens
        self.credit = max(0, self.credit - tokens)
        self.served = max(self.served, now)

    def overdue(self, now: float) -> bool:
        """Whether nobody may overtake it any more."""
        return self.blocked is not None and now - self.blocked >= HEAD_PATIENCE
