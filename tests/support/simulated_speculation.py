"""A batch without a model: rows that say what they say, on a machine whose forwards take what a
formula gives. Shows what a policy of drafts costs and wins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from punie_model_host.draft_rows import Wish
from punie_model_host.engine_messages import Key
from punie_model_host.ngram import History
from punie_model_host.speculation import Drafts, Source, Speculator
from punie_protocol.engine import DraftCounts, Speculation

type Seconds = Callable[[int, int], float]
"""What a forward of so many rows takes, of so many tokens each."""


@dataclass
class Said:
    """Stands for a request: `says` is the whole answer."""

    key: Key
    prompt: list[int]
    says: list[int]
    done: int = 0
    history: History = field(init=False)
    sampler: Any = None

    def __post_init__(self) -> None:
        self.history = History(self.prompt)

    @property
    def left(self) -> int:
        return len(self.says) - self.done


class Knowing:
    """Stands for a draft model: it is right with each token but every `wrong`-th, and takes
    `seconds` for one."""

    catching_up = 0.0

    def __init__(self, machine: Machine, seconds: float, wrong: int) -> None:
        self._machine, self._seconds, self._wrong = machine, seconds, wrong
        self.wishes: list[list[Wish]] = []

    def propose(self, wishes: Sequence[Wish]) -> dict[Key, list[int]]:
        self._machine.now += self._seconds * max(wish.count for wish in wishes)
        self.wishes.append(list(wishes))
        return {wish.key: self._draft(wish) for wish in wishes}

    def _draft(self, wish: Wish) -> list[int]:
        row = self._machine.rows[wish.key]
        assert wish.tokens.tolist() == [*row.prompt, *row.says[: row.done]]
        known = row.says[row.done : row.done + wish.count]
        return [t + 1 if (row.done + n) % self._wrong == 0 else t for n, t in enumerate(known)]

    def forget(self, _key: Key) -> None:
        pass


class Machine:
    """Decodes rows with a `speculator`; `seconds` of each forward and its width are in `widths`.
    `plain` is the time that the same tokens take without drafts."""

    def __init__(
        self,
        seconds: Seconds,
        mode: Speculation = Speculation.NGRAM,
        *,
        most: int | None = None,
        draft: tuple[float, int] | None = None,
    ) -> None:
        self._seconds = seconds
        self.now = self.plain = 0.0
        self.rows: dict[Key, Said] = {}
        self.widths: list[int] = []
        self.counts = {source: DraftCounts() for source in Source}
        self.draft_model = Knowing(self, *draft) if draft else None
        model: Any = self.draft_model
        self.speculator = Speculator(mode, most, model, lambda: self.now)

    @property
    def slowdown(self) -> float:
        """How many times as long it all took as without drafts."""
        return self.now / self.plain

    def add(self, says: list[int], prompt: list[int] | None = None) -> Said:
        """Begin a row."""
        row = Said(Key(1, len(self.rows)), [0] if prompt is None else prompt, says)
        self.rows[row.key] = row
        return row

    def run(self, steps: int = 1_000_000) -> None:
        """Decode until all is said."""
        while steps and (going := [row for row in self.rows.values() if row.left]):
            self.step(going)
            steps -= 1

    def step(self, going: Sequence[Any], *, alone: bool = True) -> None:
        """One forward, `alone` in its step or not; a row that is done is forgotten before the
        policy learns, as the engine does."""
        began = self.now
        drafts = self.speculator.propose(going, alone=alone)
        self.check(drafts)
        width = 1 + max((len(draft) for draft in drafts.values()), default=0)
        self.widths.append(width)
        self.now += self._seconds(len(going), width)
        taken = {row.key: self.take(row, drafts.get(row.key, ())) for row in going}
        tokens = sum(map(len, taken.values()))
        self.plain += self._seconds(len(going), 1) * tokens / len(going)
        for row in going:
            if not row.left:
                self.speculator.forget(row.key)
        self.count(self.speculator.stepped(self.now - began, taken, alone=alone), drafts, taken)

    def take(self, row: Said, draft: Sequence[int]) -> list[int]:
        """Take what a row says: its draft as far as it is right, and one more."""
        says = row.says[row.done :]
        right = 0
        while right < len(draft) and draft[right] == says[right]:
            right += 1
        for token in says[: right + 1]:
            row.history.append(token)
        row.done += right + 1
        return says[: right + 1]

    def check(self, drafts: Drafts) -> None:
        """What holds of every proposal."""
        for key, draft in drafts.items():
            assert 1 <= len(draft) < self.rows[key].left, "more than may be said"

    def count(
        self,
        said: dict[Source, DraftCounts],
        drafts: Drafts,
        taken: dict[Key, list[int]],
    ) -> None:
        """Every proposal is counted once, the last one of a row too."""
        assert sum(one.proposed for one in said.values()) == sum(map(len, drafts.values()))
        assert sum(one.emitted for one in said.values()) == sum(len(taken[key]) for key in drafts)
        shown = sum(one.emitted - one.accepted for one in said.values())
        assert shown == len(drafts)
        for source, one in said.items():
            had = self.counts[source]
            self.counts[source] = DraftCounts(
                proposed=had.proposed + one.proposed,
                accepted=had.accepted + one.accepted,
                emitted=had.emitted + one.emitted,
            )
