"""Who comes in: gets room for its keys and values, and with that its part of the steps. Pure."""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from punie_model_host.jobs import Job, Phase

type Fits = Callable[[Sequence[int]], bool]
"""Whether the predicted keys and values of requests of these sizes, in tokens, fit the budget."""


class Admission:
    """Interactive requests come first, with those that aged; background ones come in when nothing
    interactive is there. Of several clients the one with fewest requests inside is next, then the
    one whose last request came in longest ago (a new client counts from its arrival); requests of
    one client keep their order.

    At most `max_batch` requests of a priority are inside, or twice as many when a client comes that
    has none there: others, with many or long ones, do not keep it out, and the rows take turns.

    Who does not fit into memory is overtaken by those that do, for `HEAD_PATIENCE` seconds; then
    nobody comes in before it. Alone, a request always comes in: that it can fit at all is checked
    before it is queued.
    """

    def __init__(self, max_batch: int, fits: Fits, order: Iterator[int]) -> None:
        self._max_batch = max_batch
        self._fits = fits
        self._order = order
        self.held_up = False
        """Whether somebody urgent waits for memory, and its patience is over."""

    def choose(self, jobs: Iterable[Job], now: float) -> list[Job]:
        """Return who of the queued comes in now, in order."""
        every = list(jobs)
        queued = [job for job in every if job.phase is Phase.QUEUED]
        self.held_up = False
        if not queued:
            return []
        inside = _Inside(job for job in every if job.phase is not Phase.QUEUED)
        urgent = [job for job in queued if job.urgent]
        came = self._fill(inside, urgent, now)
        self.held_up = any(job.overdue(now) for job in urgent)
        if not any(job.interactive for job in every):
            came += self._fill(inside, [job for job in queued if not job.urgent], now)
        return came

    def _fill(self, inside: _Inside, queued: Sequence[Job], now: float) -> list[Job]:
        came: list[Job] = []
        lines = _lines(queued)
        heads = [_head(line, inside, now) for line in lines.values()]
        heapq.heapify(heads)
        while heads:
            _, line = heapq.heappop(heads)
            job = line[0]
            if self._has_place(job, inside) and self._has_room(job, inside, now):
                came.append(line.popleft())
                inside.add(job)
                job.client.entered = next(self._order)
                if line:
                    heapq.heappush(heads, _head(line, inside, now))
            elif job.overdue(now):
                break
        return came

    def _has_place(self, job: Job, inside: _Inside) -> bool:
        has_none = not inside.rows_of(job)
        return inside.count[job.interactive] < self._max_batch * (1 + has_none)

    def _has_room(self, job: Job, inside: _Inside, now: float) -> bool:
        if not inside.totals or self._fits([*inside.totals, job.ticket.total]):
            job.blocked = None
            return True
        if job.blocked is None:
            job.blocked = now
        return False


class _Inside:
    """Who is in, counted by priority, and by client."""

    def __init__(self, jobs: Iterable[Job]) -> None:
        self.totals: list[int] = []
        self.count: Counter[bool] = Counter()
        self.rows: Counter[tuple[str, bool]] = Counter()
        for job in jobs:
            self.add(job)

    def add(self, job: Job) -> None:
        self.totals.append(job.ticket.total)
        self.count[job.interactive] += 1
        self.rows[job.client.id, job.interactive] += 1

    def rows_of(self, job: Job) -> int:
        return self.rows[job.client.id, job.interactive]


type _Line = deque[Job]
type _Head = tuple[tuple[bool, float, int, int], _Line]


def _lines(queued: Iterable[Job]) -> dict[str, _Line]:
    lines: dict[str, _Line] = {}
    for job in queued:
        lines.setdefault(job.client.id, deque()).append(job)
    return lines


def _head(line: _Line, inside: _Inside, now: float) -> _Head:
    """Order a client by its first request. `entered` is unlike that of any other client."""
    job = line[0]
    if job.overdue(now):
        return (False, job.blocked or 0.0, 0, job.client.entered), line
    return (True, 0.0, inside.rows_of(job), job.client.entered), line
