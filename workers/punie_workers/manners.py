"""What a model loop does not put up with: text and calls that repeat without end, useless
answers, turns without measure. Pure: text and counts in, a verdict out."""

from collections import Counter, deque
from typing import Final

from punie_workers.fences import broken_fence
from punie_workers.stops import TurnStopped

MAX_PERIOD: Final = 400
MIN_REPEATS: Final = 8
MIN_REPEATED: Final = 600
"""Text counts as stuck when its end repeats a piece of up to `MAX_PERIOD` characters, so often
and for so many characters at least."""
SHORT_PERIOD: Final = 20
MIN_PLAIN: Final = 4000
"""The same for a piece that is shorter than `SHORT_PERIOD` or without a letter: rules, padding and
columns of a table are long in earnest."""

_STRIDE: Final = 64
_ANCHOR: Final = 32
_KEPT: Final = max(MAX_PERIOD * MIN_REPEATS, MIN_PLAIN) + MAX_PERIOD

SAME_CALLS: Final = 3
"""Equal calls with equal results in a row that are worth a word; also A B A B."""


class Repetition:
    """Watches one streamed answer. The work is constant per character."""

    def __init__(self) -> None:
        self._tail = ""
        self._new = 0

    def add(self, text: str) -> bool:
        """Take more text; return whether the model is stuck at its end."""
        stuck = False
        for begin in range(0, len(text), _STRIDE):
            piece = text[begin : begin + _STRIDE]
            self._tail += piece
            self._new += len(piece)
            if self._new >= _STRIDE:
                self._new = 0
                self._tail = self._tail[-_KEPT:]
                stuck = stuck or _is_stuck(self._tail)
        return stuck


def _is_stuck(tail: str) -> bool:
    """Whether `tail` ends in repetitions: where its last characters stood before is where a
    period may begin. The shortest one decides, its multiples are no others."""
    anchor, end = tail[-_ANCHOR:], len(tail) - 1
    lowest = max(0, len(tail) - MAX_PERIOD - _ANCHOR)
    while len(tail) >= MIN_REPEATED and (at := tail.rfind(anchor, lowest, end)) >= 0:
        period = len(tail) - _ANCHOR - at
        if _has_period(tail, period, MIN_REPEATED):
            return _has_period(tail, period, _enough(tail[-period:]))
        end = at + _ANCHOR - 1
    return False


def _has_period(tail: str, period: int, length: int) -> bool:
    """Whether the last `length` characters repeat their last `period`."""
    return len(tail) >= length and tail[-length:-period] == tail[len(tail) - length + period :]


def _enough(piece: str) -> int:
    is_plain = len(piece) < SHORT_PERIOD or not any(map(str.isalpha, piece))
    return max(MIN_PLAIN if is_plain else MIN_REPEATED, MIN_REPEATS * len(piece))


class CallHistory:
    """The tool calls of one turn that had no effect between them. `stuck` says that the model
    was told of a repetition and went on with it, or began another one."""

    def __init__(self) -> None:
        self.stuck = False
        self._told = False
        self._last: deque[tuple[str, str, str]] = deque(maxlen=4)

    def add(self, name: str, arguments: str, result: str) -> str | None:
        """Take a call; return what the model, or when `stuck` the user, is to be told of it."""
        self._last.append((name, arguments, result))
        if (repeated := self._repeated()) is None:
            return None
        self.stuck, self._told = self._told, True
        if self.stuck:
            return f"the model {repeated} and went on after it was told so"
        return (
            f"note: you {repeated}: the result does not change. Do something else, or answer "
            "with what you know"
        )

    def reset(self) -> None:
        """Something changed: what comes now may give another result."""
        self._last.clear()
        self._told = self.stuck = False

    def _repeated(self) -> str | None:
        calls = list(self._last)
        name = calls[-1][0]
        if len(calls) >= SAME_CALLS and len(set(calls[-SAME_CALLS:])) == 1:
            return f"called {name} {SAME_CALLS} times with the same arguments and the same result"
        if len(calls) == 4 and calls[:2] == calls[2:]:
            other = calls[0][0]
            both = name if name == other else f"{other} and {name}"
            return f"called {both} in turn with the same arguments and the same results"
        return None


def answer_problem(text: str, check_fences: bool) -> str | None:
    """Return what is wrong with an answer, to be told to the model; ``None`` when nothing is.
    With `check_fences`, Python in its fences must parse."""
    if not text.strip():
        return "your answer is empty: say in words what you found or did"
    broken = broken_fence(text) if check_fences else None
    return f"{broken}. Send the whole answer again, corrected" if broken else None


class TurnLimits:
    """Counts what one turn uses. Each method takes one more and returns why the turn must stop
    when that is over the limit, else ``None``."""

    def __init__(
        self,
        *,
        requests: int = 24,
        tool_calls: int = 200,
        output_tokens: int = 100_000,
        wrong_per_tool: int = 3,
        wrong: int = 6,
    ) -> None:
        self._max_requests = requests
        self._max_calls = tool_calls
        self._max_tokens = output_tokens
        self._max_wrong_per_tool = wrong_per_tool
        self._max_wrong = wrong
        self._requests = 0
        self._calls = 0
        self._wrong: Counter[str] = Counter()

    def request(self) -> TurnStopped | None:
        """A request to the model is about to be sent."""
        self._requests += 1
        if self._requests <= self._max_requests:
            return None
        return _too_many(f"the turn took {self._max_requests} requests to the model")

    def tool_call(self) -> TurnStopped | None:
        """A tool is about to run that the model called by itself, not from a program."""
        self._calls += 1
        if self._calls <= self._max_calls:
            return None
        return _too_many(f"the turn took {self._max_calls} tool calls")

    def tokens(self, total: int) -> TurnStopped | None:
        """The turn has `total` output tokens so far."""
        if total <= self._max_tokens:
            return None
        detail = f"the model wrote {total:,} tokens in this turn, the limit is {self._max_tokens:,}"
        return TurnStopped("max_tokens", detail)

    def wrong_call(self, tool: str, why: str) -> TurnStopped | None:
        """The model called `tool` wrongly and was told `why`."""
        self._wrong[tool] += 1
        if self._wrong[tool] > self._max_wrong_per_tool:
            what = f"the model called {tool} wrongly {self._wrong[tool]} times"
        elif self._wrong.total() > self._max_wrong:
            what = f"the model made {self._wrong.total()} wrong tool calls"
        else:
            return None
        return _too_many(f"{what}; the last: {why}")


def _too_many(what: str) -> TurnStopped:
    return TurnStopped("max_turn_requests", f"{what}. Say how to go on, or ask for less at once")
