"""An engine without a model: it does what the scheduler's plans say, checks that each plan may be,
and counts who got what."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from punie_model_host.engine_messages import Key
from punie_model_host.jobs import Ticket
from punie_model_host.scheduler import Plan, ScheduleLimits, Scheduler
from punie_model_host.shares import MIN_CHUNK
from punie_protocol.messages.common import Priority

STEP_S = 0.05


@dataclass
class Row:
    """A request: what is left to compute and to generate, and the step it came in."""

    ticket: Ticket
    prompt: int
    output: int
    since: int


class SimulatedEngine:
    """`memory` is the budget in tokens, a rectangle as the batch's is: rows times the longest."""

    def __init__(self, memory: int = 1_000_000, **limits: int) -> None:
        small = ScheduleLimits(step_tokens=64, solo_tokens=128)
        self.limits = replace(small, **limits)
        self.memory = memory
        self.scheduler = Scheduler(self.limits, self.fits)
        self.rows: dict[Key, Row] = {}
        self.gone: set[Key] = set()
        self.first: dict[Key, int] = {}
        self.finished: dict[Key, int] = {}
        self.prefilled: Counter[str] = Counter()
        self.decoded: Counter[str] = Counter()
        self.steps = 0
        self.joined = 0
        self.plan = Plan((), ())

    def fits(self, totals: Sequence[int]) -> bool:
        return len(totals) * max(totals, default=0) <= self.memory

    @property
    def now(self) -> float:
        return self.steps * STEP_S

    def add(
        self,
        client: str,
        prompt: int = 100,
        output: int = 100,
        *,
        background: bool = False,
        cached: int = 0,
    ) -> Key:
        key = Key(len(self.rows) + len(self.gone), 0)
        priority = Priority.BACKGROUND if background else Priority.INTERACTIVE
        ticket = Ticket(key, client, priority, prompt, prompt + output, self.now)
        self.scheduler.add(ticket)
        self.rows[key] = Row(ticket, prompt - 1, output, self.steps)
        if cached:
            self.cached(key, cached)
        return key

    def cached(self, key: Key, tokens: int) -> None:
        self.scheduler.cached(key, tokens)
        row = self.rows[key]
        row.prompt = min(row.prompt, max(0, row.ticket.prompt - 1 - tokens))

    def cancel(self, key: Key) -> None:
        assert self.scheduler.remove(key)
        del self.rows[key]
        self.gone.add(key)

    def step(self, *, drain: bool = False) -> Plan:
        before, self.plan = set(self.plan.decode), self.scheduler.plan(self.now, drain=drain)
        self.check(self.plan)
        self.joined += len(set(self.plan.decode) - before)
        for key, tokens in self.plan.prefill:
            self.rows[key].prompt -= tokens
            self.prefilled[self.rows[key].ticket.client_id] += tokens
            self.scheduler.prefilled(key, tokens)
            self.first.setdefault(key, self.steps)
        for key in self.plan.decode:
            self.decode(key)
        self.steps += 1
        return self.plan

    def decode(self, key: Key) -> None:
        row = self.rows[key]
        row.output -= 1
        self.decoded[row.ticket.client_id] += 1
        self.first.setdefault(key, self.steps)
        self.scheduler.decoded(key)
        if row.output < 1:
            self.finished[key] = self.steps
            self.cancel(key)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def finish(self, within: int) -> None:
        """Run until nothing is left; fail when that takes more than `within` steps."""
        end = self.steps + within
        while self.rows:
            assert self.steps < end, f"after {within} steps: {self.rows}"
            self.step()
            assert self.plan.decode or self.plan.prefill, "work is left, and the plan is empty"

    def check(self, plan: Plan) -> None:
        """What holds of every plan."""
        limits = self.limits
        keys = [*plan.decode, *(key for key, _ in plan.prefill)]
        assert len(keys) == len(set(keys)), "planned twice"
        assert not self.gone & set(keys), "planned, and it is gone"
        assert len(plan.decode) <= limits.max_batch
        tokens = sum(tokens for _, tokens in plan.prefill)
        if plan.decode:
            assert len(plan.decode) + tokens <= max(
                limits.step_tokens, len(plan.decode) + MIN_CHUNK
            )
        assert tokens <= limits.solo_tokens
        for key, chunk in plan.prefill:
            assert 1 <= chunk <= self.rows[key].prompt
            assert chunk >= min(MIN_CHUNK, self.rows[key].prompt)
        assert all(self.rows[key].prompt == 0 for key in plan.decode)
        totals = self.scheduler.totals
        assert len(totals) <= 1 or self.fits(totals), "more is inside than fits"
